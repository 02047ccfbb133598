"""Weights on disk: writing them, and reading those that were trained elsewhere."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the state dict."""
PREFIXES = ("module.", "_orig_mod.", "network.")
"""What DataParallel, torch.compile and `Classifier` put before each name."""
COUNTERS = "num_batches_tracked"
"""Ends the names of what normalisation layers count; weights without these fit all the same."""


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


class Differences(NamedTuple):
    """What keeps weights from fitting a network; empty, hence false, where they fit."""

    shapes: list[str]
    missing: list[str]
    extra: list[str]

    @classmethod
    def between(cls, wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Self:
        """How `weights` differ from the state dict `wanted` in names and shapes."""
        shapes = [
            f"{name} is {tuple(weights[name].shape)}, wanted {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in weights and weights[name].shape != value.shape
        ]
        missing = [name for name in wanted if name not in weights and not name.endswith(COUNTERS)]
        return cls(shapes, missing, [name for name in weights if name not in wanted])

    def __bool__(self) -> bool:
        return any(self)

    def in_words(self, arch: str) -> str:
        """The first of each kind, and how many there are."""
        first = [
            *self.shapes[:3],
            *(f"{name} is missing" for name in self.missing[:3]),
            *(f"{name} is not part of {arch}" for name in self.extra[:3]),
        ]
        count = sum(map(len, self))
        return f"{'; '.join(first)} ({count} difference{'s' * (count > 1)})"


def fit_weights(network: nn.Module, weights: dict[str, Tensor], path: Path, arch: str) -> None:
    """Load `weights` into `network`.

    Raises `CheckpointError` naming the number of classes when it is the last layer that does not
    fit, and otherwise the first names and shapes that differ.
    """
    wanted = network.state_dict()
    differences = Differences.between(wanted, weights)
    if not differences:
        network.load_state_dict(weights, strict=False)
        return
    last = [name for name in wanted if not name.endswith(COUNTERS)][-1]
    only_shapes = not (differences.missing or differences.extra)
    if only_shapes and last in weights and weights[last].shape != wanted[last].shape:
        raise CheckpointError(
            f"{path} was trained for {weights[last].shape[0]} classes, "
            f"the image set has {wanted[last].shape[0]}",
            remedy="Give a checkpoint trained on the same classes, in the same order.",
        )
    raise CheckpointError(
        f"{path} does not fit {arch}: {differences.in_words(arch)}",
        remedy="Set teach.arch and teach.width to the network that was trained.",
    )
