"""Weights on disk: writing them, and reading those that were trained elsewhere."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the state dict."""
PREFIXES = ("module.", "_orig_mod.", "network.")
"""What DataParallel, torch.compile and `Classifier` put before each name."""


def write_weights(network: nn.Module, path: Path) -> None:
    """Write the state dict of `network`, on the CPU and in the usual memory layout.

    Raises `OSError` where it cannot be written (`torch.save` to a path loses the reason).
    """
    buffer = io.BytesIO()
    torch.save(network.to("cpu").to(memory_format=torch.contiguous_format).state_dict(), buffer)
    path.write_bytes(buffer.getbuffer())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in `path` (.pt, .pth or .safetensors), without wrappers and prefixes.

    Raises `CheckpointError` where the file is unreadable or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the package safetensors", remedy="pip install safetensors"
        ) from error
    except Exception as error:  # torch.load raises whatever its unpickler met
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"cannot read the weights in {path}: {reason}",
            remedy="Save a plain state dict: torch.save(network.state_dict(), path).",
        ) from error
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path} holds no state dict (names with tensors)",
            remedy="Save a plain state dict: torch.save(network.state_dict(), path).",
        )
    for prefix in PREFIXES:
        if content and all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def fit_weights(network: nn.Module, weights: dict[str, Tensor], path: Path, arch: str) -> None:
    """Load `weights` into `network`.

    Raises `CheckpointError` naming the number of classes when it is the last layer that does not
    fit, and otherwise the first names and shapes that differ.
    """
    wanted = network.state_dict()
    odd = [
        f"{name} is {tuple(weights[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    counters = "num_batches_tracked"
    missing = [n for n in wanted if n not in weights and not n.endswith(counters)]
    extra = [name for name in weights if name not in wanted]
    if not (odd or missing or extra):
        network.load_state_dict(weights, strict=False)
        return
    last = [name for name in wanted if not name.endswith(counters)][-1]
    if not (missing or extra) and last in weights and weights[last].shape != wanted[last].shape:
        raise CheckpointError(
            f"{path} was trained for {weights[last].shape[0]} classes, "
            f"the image set has {wanted[last].shape[0]}",
            remedy="Give a checkpoint trained on the same classes, in the same order.",
        )
    differences = [
        *odd[:3],
        *(f"{name} is missing" for name in missing[:3]),
        *(f"{name} is not part of {arch}" for name in extra[:3]),
    ]
    raise CheckpointError(
        f"{path} does not fit {arch}: {'; '.join(differences)} "
        f"({len(odd) + len(missing) + len(extra)} differences)",
        remedy="Set teach.arch and teach.width to the network that was trained.",
    )
