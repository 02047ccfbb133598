"""A checkpoint from wherever it is: a run, a folder of the store, a weights file, or a hub.

All become a `Checkpoint` record in the store, from which everything else goes on as in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import models
from pipeline import summary
from pipeline.context import Context
from pipeline.errors import CheckpointError, ConfigError, StoreError
from pipeline.machine import versions
from pipeline.progress import console
from pipeline.records import Checkpoint, InputSpec
from pipeline.sources import listed
from pipeline.store import Store, file_sha256
from pipeline.summary import FILE, Report

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".pt", ".pth", ".safetensors")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's and most of timm's published weights were trained with."""
IMAGENET_CLASSES = 1000


class Origin(NamedTuple):
    """What is known of weights that this pipeline did not train."""

    arch: str | None = None
    """Network of a weights file."""
    labels: tuple[str, ...] | None = None
    """Class names, in the order of the network's answers."""
    size: int = 224
    """Height and width of its images in pixels."""
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] | None = None
    """Per channel, of values in 0..1; by default ImageNet's."""
    std: tuple[float, ...] | None = None
    width: float = 1.0
    untrained: bool = False
    """Take random weights where a network is named: for sizes and speeds."""


def find(
    what: str, origin: Origin, folders: tuple[str, ...] | None, context: Context, runs: Path
) -> tuple[Checkpoint, Report | None]:
    """The checkpoint `what` names, and the report of its run where it is a run's student.

    Where nothing else names the classes of a weights file, the class `folders` of its images do.

    A run by name or folder; a folder of the store; a weights file, with `origin.arch`; or the name
    of a network of torchvision or timm, with the weights that its hub publishes. Raises
    `CheckpointError`, `ConfigError` or `StoreError` where there is none or it does not fit.
    """
    path = Path(what)
    kept = [folder for folder in (runs / what, path) if (folder / FILE).is_file()]
    if (kept or path.is_dir()) and origin != Origin():
        raise ConfigError(
            f"{what} is a checkpoint of this pipeline, which knows its network, labels and images",
            remedy="Leave out --arch, --width, --labels, --size, --grey, --mean, --std and "
            "--untrained.",
        )
    if kept:
        return _of_run(kept[0], context.store)
    if path.is_dir():
        found = Store.load(Checkpoint, path)
        if found is None:
            raise CheckpointError(
                f"{path} holds neither a run's report nor a checkpoint",
                remedy="Name a run, runs/.store/distill/<key>, a weights file, or a network.",
            )
        context.store.refer(found)
        return found, None
    if path.suffix in SUFFIXES:
        if origin.labels is None and folders:
            console.print(
                f"labels: the names of the class folders, sorted: {listed(folders)}. Give --labels "
                "if the network was trained with another order.",
                highlight=False,
                soft_wrap=True,
            )
            origin = origin._replace(labels=folders)
        return _of_file(path, origin, context), None
    if path.exists():
        raise CheckpointError(
            f"{path} is no weights file", remedy=f"Those end in {', '.join(SUFFIXES)}."
        )
    if origin.untrained and origin.labels is None:
        origin = origin._replace(labels=folders)
    return _of_hub(what, origin, context), None


def _of_run(folder: Path, store: Store) -> tuple[Checkpoint, Report]:
    report = summary.read(folder)
    student = report.model("student")
    home = store.root / "distill" / student.key if student else store.root
    found = Store.load(Checkpoint, home)
    if found is None:
        raise StoreError(
            f"the student of run '{report.run}' is not in the store: {home}",
            remedy="Name the store with --store, or run it again.",
        )
    store.refer(found)
    return found, report


def _of_file(path: Path, origin: Origin, context: Context) -> Checkpoint:
    if origin.arch is None:
        raise ConfigError(
            f"{path} holds weights only",
            remedy="Say of which network they are: --arch mobilenet_v2",
        )
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}", remedy="Check the path.")
    arch = origin.arch

    def fill(classes: int | None) -> nn.Module:
        from pipeline.checkpoints import fit_weights, read_weights

        weights = read_weights(path)
        network = _build(arch, classes or _classes(arch, weights, origin), origin)
        fit_weights(network, weights, path, arch)
        return network

    facts = {"sha256": file_sha256(path)}
    return _keep(origin, context, fill, arch, "trained elsewhere", facts)


def _classes(arch: str, weights: Mapping[str, Tensor], origin: Origin) -> int:
    """How many classes the `weights` of `arch` tell apart: the length of the last layer's bias.

    By the layer's name, because a .safetensors file lists weights in the order of theirs.
    """
    from pipeline.pretrained import head

    last = head(_build(arch, IMAGENET_CLASSES, origin))
    found = [value for name, value in weights.items() if name.startswith(last) and value.ndim]
    return int(found[-1].shape[0]) if found else IMAGENET_CLASSES


def _of_hub(arch: str, origin: Origin, context: Context) -> Checkpoint:
    def fill(classes: int | None) -> nn.Module:
        import torch

        from pipeline import pretrained
        from pipeline.checkpoints import Differences

        torch.manual_seed(0)
        if origin.untrained:
            return _build(arch, classes or IMAGENET_CLASSES, origin)
        network = _build(arch, IMAGENET_CLASSES, origin)
        try:
            weights = pretrained.published(network, arch, "export")
        except CheckpointError as error:
            raise CheckpointError(
                error.message,
                remedy=f"With a file of its weights: export FILE.pt --arch {arch}; without any, to "
                "try formats and speeds: --untrained.",
            ) from error
        if differences := Differences.between(network.state_dict(), weights):
            raise CheckpointError(
                f"the published weights do not fit {arch}: {differences.in_words(arch)}",
                remedy=f"Give a file of weights that do: export FILE.pt --arch {arch}",
            )
        network.load_state_dict(weights, strict=False)
        return network

    if not origin.untrained and (origin.channels, origin.width) != (3, 1.0):
        raise ConfigError(
            f"published weights of {arch} are for colour images and width 1",
            remedy="Leave out --grey and --width, or give a weights file or --untrained.",
        )
    if not origin.untrained and origin.labels is None:
        origin = origin._replace(labels=_categories(arch))
    trained = "not trained" if origin.untrained else "trained by its publisher"
    return _keep(origin, context, fill, arch, trained, {})


def _categories(arch: str) -> tuple[str, ...] | None:
    """The classes of torchvision's published weights; None where it names none."""
    from torchvision import models as library

    name = arch.removeprefix("torchvision/")
    if name not in library.list_models():
        return None
    best = library.get_model_weights(name).__members__.get("DEFAULT")
    return tuple(best.meta["categories"]) if best else None


def _build(arch: str, classes: int, origin: Origin) -> nn.Module:
    return models.build(
        arch,
        classes=classes,
        channels=origin.channels,
        image_size=origin.size,
        width=origin.width,
    )


def read_labels(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line. Raises `ConfigError` where that is not so."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the labels {path}: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise ConfigError(
            f"{path} names {len(set(labels))} different classes in {len(labels)} lines",
            remedy="Give one class a line, each once, in the order of the network's answers.",
        )
    return labels


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers in "0.5,0.5,0.5", given to `option`. Raises `ConfigError` where they are none."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text}: not numbers, one a channel, with commas") from error


def _keep(
    origin: Origin,
    context: Context,
    fill: Callable[[int | None], nn.Module],
    arch: str,
    device: str,
    facts: Mapping[str, str],
) -> Checkpoint:
    """The record of what `fill` builds, for as many classes as there are labels, in the store."""
    labels = origin.labels

    def work(folder: Path) -> Checkpoint:
        import torch

        from pipeline.checkpoints import write_weights
        from pipeline.evaluation import count_macs

        network = fill(len(labels) if labels else None).eval()
        spec = _contract(origin, network)
        with torch.inference_mode():
            probe = torch.zeros(1, spec.channels, spec.size, spec.size)
            classes = int(network(probe).shape[1])
        if labels is not None and len(labels) != classes:
            raise ConfigError(
                f"there are {len(labels)} labels, and {arch} answers with {classes} numbers",
                remedy="Give a text file with --labels: one class a line, in the order of the "
                "network's answers.",
            )
        write_weights(network, folder / "weights.pt")
        strided = arch in models.STUDENTS
        return Checkpoint(
            role="student",
            arch=arch,
            width=origin.width,
            stem_stride=models.stride_of_stem("auto", spec.size) if strided else None,
            labels=labels or tuple(f"class {number}" for number in range(classes)),
            input=spec,
            params=sum(parameter.numel() for parameter in network.parameters()),
            macs=count_macs(network, spec),
            device=device,
        )

    settings = origin._asdict() | {"arch": arch}
    known = {**facts, **versions("torch", "torchvision", "timm")}
    return context.store.get(Checkpoint, "import", work, version=1, settings=settings, facts=known)


def _contract(origin: Origin, network: nn.Module) -> InputSpec:
    """The input contract: as given, as timm describes the network, or ImageNet's."""
    told = getattr(network, "pretrained_cfg", None) or {}
    mean = origin.mean or tuple(told.get("mean") or IMAGENET_MEAN)
    std = origin.std or tuple(told.get("std") or IMAGENET_STD)
    if origin.channels == 1:
        mean, std = mean[:1], std[:1]
    if not len(mean) == len(std) == origin.channels or min(std) <= 0:
        raise ConfigError(
            f"mean {mean} and std {std} do not fit {origin.channels} channels",
            remedy="Give both with one number a channel: --mean 0.5,0.5,0.5 --std 0.2,0.2,0.2",
        )
    return InputSpec(size=origin.size, channels=origin.channels, mean=mean, std=std)
