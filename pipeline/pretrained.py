"""Transfer learning: a network starts from weights that were trained on other classes.

Importable without torch, so that a missing file is found before anything heavy is loaded.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import CheckpointError
from pipeline.settings import Pretrained
from pipeline.store import file_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "pretrained"
PATIENCE = 15.0
"""Seconds without an answer after which the hub counts as out of reach."""
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""The further heads of GoogLeNet and Inception: published, and not part of the networks here."""


def check(settings: Pretrained | None, key: str = KEY, arch: str = "", width: float = 1.0) -> None:
    """Raise `CheckpointError` where the weights cannot be had; quick, and without the network.

    `key` is where `settings` stand in the settings file, for example ``teach.pretrained``. With
    `arch` and `width`, "hub" is refused for a network of which no weights are published.
    """
    if settings is None:
        return
    if isinstance(settings.weights, Path):
        path = settings.weights
        if not path.is_file():
            folder = path.is_dir()
            wrong = f"{path} is a folder, not a file" if folder else f"there is no file {path}"
            raise CheckpointError(f"{key}.weights: {wrong}", remedy="Check the path.")
    elif arch.endswith("_cifar"):
        raise _unpublished(arch, key)
    elif width != 1:
        raise _unpublished(f"{arch or 'a network'} at width {width:g}", key)


def facts(settings: Pretrained | None) -> dict[str, str]:
    """What decides the result, for the store's key: the SHA-256 of the file, or "hub".

    Raises `CheckpointError` where there is no such file.
    """
    check(settings)
    if settings is None:
        return {}
    weights = settings.weights
    return {"pretrained": file_sha256(weights) if isinstance(weights, Path) else weights}


def start_from(network: nn.Module, arch: str, settings: Pretrained, key: str = KEY) -> set[str]:
    """Load pretrained weights into a freshly built `network`; the parameters that stay fresh.

    Those are the last layer's, even where the weights were trained on as many classes as the
    image set has: they are other classes, or the same in another order, and what was learned for
    them would mislead. A first convolution whose weights want grey images where these are in
    colour, or the other way round, is converted so that its answers keep their size.

    Raises `CheckpointError` where the weights are missing, unreadable, out of reach, or those of
    another network.
    """
    from pipeline.checkpoints import read_weights

    check(settings, key, arch)
    if isinstance(settings.weights, Path):
        weights, source = read_weights(settings.weights), str(settings.weights)
    else:
        weights, source = published(network, arch, key), "what the hub has"
    last = head(network)
    _fit_body(network, weights, last, source, arch, key)
    return {name for name, _ in network.named_parameters() if name.startswith(last)}


def head(network: nn.Module) -> tuple[str, ...]:
    """What the names of the last layer's parameters start with.

    timm's networks say which layer that is, and some have two; elsewhere it is the last linear
    layer or, in a SqueezeNet, the last convolution.
    """
    from torch import nn

    layers = dict(network.named_modules())
    classifier: Callable[[], Any] | None = getattr(network, "get_classifier", None)
    told = classifier() if classifier is not None else ()
    told = told if isinstance(told, tuple | list) else (told,)
    names = [name for name, layer in layers.items() if any(layer is one for one in told)]
    if names:
        names += layers.keys() & {"aux_head"}  # of which VOLO is silent
    else:
        names = [n for n, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)][-1:]
    return tuple(f"{name}." for name in names)


def _fit_body(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    head: tuple[str, ...],
    source: str,
    arch: str,
    key: str,
) -> None:
    """Load all of `weights` but the `head`.

    Raises `CheckpointError` naming the first names and shapes that differ.
    """
    from pipeline.checkpoints import Differences

    dropped = (*head, *AUXILIARY)
    wanted = {n: value for n, value in network.state_dict().items() if not n.startswith(head)}
    body = {n: value for n, value in weights.items() if not n.startswith(dropped)}
    for name in _first_convolutions(network):
        if name in body and name in wanted:
            body[name] = _with_channels(body[name], wanted[name])
    differences = Differences.between(wanted, body)
    if differences:
        table = f"{key.rpartition('.')[0]}.".lstrip(".")
        raise CheckpointError(
            f"{source} does not fit {arch}: {differences.in_words(arch)}",
            remedy=f"Set {table}arch, {table}width and, for a network that is made for one image "
            "size, data.size to what was trained.",
        )
    network.load_state_dict(body, strict=False)


def _first_convolutions(network: nn.Module) -> list[str]:
    """The weights that meet the image: those that timm names, else of the first convolution."""
    from torch import nn

    described = getattr(network, "pretrained_cfg", None) or {}
    told = described.get("first_conv")
    names = [told] if isinstance(told, str) else list(told or ())
    if not names:
        names = [n for n, layer in network.named_modules() if isinstance(layer, nn.Conv2d)][:1]
    return [f"{name}.weight" for name in names]


def _with_channels(weight: Tensor, wanted: Tensor) -> Tensor:
    """The kernel of a first convolution for as many channels as are `wanted` (timm's rule).

    From colour to grey the sum, so that a grey image answers as it did in three equal channels;
    from grey to colour a third for each, so that such an image still does.
    """
    if weight.ndim == wanted.ndim == 4:
        if weight.shape[1] == 3 and wanted.shape[1] == 1:
            return weight.float().sum(1, keepdim=True)
        if weight.shape[1] == 1 and wanted.shape[1] == 3:
            return weight.float().expand(-1, 3, -1, -1) / 3
    return weight


def _unpublished(what: str, key: str) -> CheckpointError:
    return CheckpointError(
        f"{key}.weights: no hub has weights of {what}",
        remedy=f"Name a file of weights that you trained: --set {key}.weights=PATH "
        "(runs/.store/teach/<key>/weights.pt is one).",
    )


class _Published(NamedTuple):
    """What a hub has for a network."""

    address: str
    """Of the weights; empty where there are none."""
    code: str
    """Python that makes the network with these weights."""
    make: Callable[[], nn.Module]
    """Does what `code` says."""


def published(network: nn.Module, arch: str, key: str) -> dict[str, Tensor]:
    """The published weights of `network`, which torchvision or timm has built.

    Raises `CheckpointError` where there are none or the hub cannot be reached.
    """
    import torch

    library = type(network).__module__.partition(".")[0]
    name = arch.rpartition("/")[2].replace("mobilenet_v4", "mobilenetv4")  # timm's name of it
    hubs = {"timm": _timm, "torchvision": _torchvision}
    hub = hubs[library](name, network) if library in hubs else None
    if hub is None or not hub.address:
        raise _unpublished(arch, key)
    try:
        # What building a second network draws must not change what training draws later.
        with torch.random.fork_rng(devices=[]), _patience():
            return hub.make().state_dict()
    except Exception as error:  # each client of a hub has errors of its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"cannot fetch the pretrained weights of {arch} from {hub.address}: {reason}",
            remedy="Fetch them on a machine that reaches the hub:\n"
            f'  python -c "import torch, {library}; '
            f"torch.save({hub.code}.state_dict(), '{name}.pt')\"\n"
            f"and name the file: --set {key}.weights={name}.pt",
        ) from error


def _torchvision(name: str, _: nn.Module) -> _Published:
    from torchvision import models

    # The network and not just its file: old files have names that only the network's maker knows.
    best = models.get_model_weights(name).__members__.get("DEFAULT")
    return _Published(
        address=best.url if best else "",
        code=f"torchvision.models.get_model('{name}', weights='DEFAULT')",
        make=lambda: models.get_model(name, weights="DEFAULT", progress=False),
    )


def _timm(name: str, network: nn.Module) -> _Published:
    import timm
    from huggingface_hub import hf_hub_url

    described: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    repository, _, revision = (described.get("hf_hub_id") or "").partition("@")
    file = described.get("hf_hub_filename") or "model.safetensors"
    address = described.get("url") or ""
    if repository:
        address = hf_hub_url(repository, file, revision=revision or None)

    def make() -> nn.Module:
        if repository and not _is_cached(repository, file, revision or None):
            _reach(address)
        return timm.create_model(name, pretrained=True)

    return _Published(address, f"timm.create_model('{name}', pretrained=True)", make)


def _is_cached(repository: str, file: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    names = (file, "pytorch_model.bin")
    found = [try_to_load_from_cache(repository, name, revision=revision) for name in names]
    return any(isinstance(path, str) for path in found)


def _reach(address: str) -> None:
    """Raise at once where the hub does not answer; timm's own attempts take 46 seconds."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.utils import EntryNotFoundError

    with suppress(EntryNotFoundError):  # an answer too: timm looks for a file of another name
        get_hf_file_metadata(address, timeout=PATIENCE)


@contextmanager
def _patience() -> Iterator[None]:
    """Let no connection without a time limit of its own wait for ever (torchvision's has none)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
