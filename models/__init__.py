"""The networks: teachers (any classifier) and students (MobileNets), built by name.

`build` gives a network of normalised float NCHW images; `load` gives a trained one wrapped with
its input contract (`models.classifier.Classifier`), which takes the uint8 NHWC images a phone has.
Importing this package imports no torch.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Literal, get_args

from pipeline.errors import CheckpointError, ConfigError
from pipeline.settings import StudentArch

if TYPE_CHECKING:
    from torch import nn

    from models.classifier import Classifier
    from pipeline.records import Checkpoint

StemStride = Literal["auto", 1, 2]
SMALL_IMAGE = 64
"""Pixels up to which `stem_stride="auto"` means 1."""
STUDENTS: tuple[str, ...] = get_args(StudentArch)


def stride_of_stem(stem_stride: StemStride, image_size: int) -> int:
    """The stride that `stem_stride` means for images of that size."""
    if stem_stride == "auto":
        return 1 if image_size <= SMALL_IMAGE else 2
    return stem_stride


def build(
    arch: str,
    *,
    classes: int,
    channels: int,
    image_size: int,
    width: float = 1.0,
    stem_stride: StemStride = "auto",
    dropout: float = 0.0,
) -> nn.Module:
    """An untrained network: float32 [batch, channels, size, size] -> logits [batch, classes].

    `arch` is one of `STUDENTS`, a CIFAR-style `resnet<depth>_cifar`, or the name of a torchvision
    or timm classifier (``torchvision/<name>`` or ``timm/<name>`` where both have it).
    `stem_stride` and `dropout` apply to the students, `width` also to the CIFAR-style ResNets.

    Raises `ConfigError` for an unknown name, a width that the network cannot have, or images that
    it cannot take, `NotInstalledError` where timm is needed.
    """
    from models import mobilenet, resnet

    if arch in STUDENTS:
        stride = stride_of_stem(stem_stride, image_size)
        return mobilenet.build(
            arch,
            classes=classes,
            channels=channels,
            width=width,
            stem_stride=stride,
            dropout=dropout,
        )
    if resnet.is_cifar(arch):
        return resnet.cifar(arch, classes=classes, channels=channels, width=width)
    network = resnet.library(arch, classes=classes, channels=channels, image_size=image_size)
    if network is not None:
        if width != 1.0:
            raise ConfigError(
                f"`{arch}` has no width multiplier, and its width is set to {width:g}",
                remedy="Leave teach.width at 1, or choose a resnet<6n+2>_cifar.",
            )
        return network
    near = difflib.get_close_matches(arch, [*STUDENTS, *resnet.known()], n=1)
    hint = f"Did you mean `{near[0]}`? " if near else ""
    raise ConfigError(
        f"no network is called `{arch}`",
        remedy=f"{hint}Students: {', '.join(STUDENTS)}; teachers: resnet<6n+2>_cifar, "
        "or any torchvision or timm classifier.",
    )


def load(checkpoint: Checkpoint) -> Classifier:
    """The trained network of `checkpoint` in evaluation mode, with its input contract.

    Raises `CheckpointError` where the weights file is unreadable or does not fit.
    """
    import torch

    from models.classifier import Classifier

    stride = checkpoint.stem_stride
    network = build(
        checkpoint.arch,
        classes=len(checkpoint.labels),
        channels=checkpoint.input.channels,
        image_size=checkpoint.input.size,
        width=checkpoint.width,
        stem_stride=stride if stride in (1, 2) else "auto",
    )
    try:
        state = torch.load(checkpoint.weights_path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the weights {checkpoint.weights_path} do not fit {checkpoint.arch}: {error}",
            remedy="Delete that folder and run again.",
        ) from error
    return Classifier(network, checkpoint.input).eval()
