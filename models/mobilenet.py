"""Students: MobileNets of torchvision and timm, with a stem that fits small images."""

import torchvision
from torch import nn

from models.resnet import replace_convolution
from pipeline.errors import ConfigError, require

BATCH_NORM_MOMENTUM = 0.1
"""torchvision's MobileNetV3 has 0.01: in a short run its running statistics lag far behind."""


def build(
    arch: str, *, classes: int, channels: int, width: float, stem_stride: int, dropout: float
) -> nn.Module:
    """An untrained student: float32 [batch, channels, h, w] -> logits [batch, classes].

    MobileNetV2: Sandler et al. 2018; V3: Howard et al. 2019; V4 (conv): Qin et al. 2024.
    Raises `ConfigError` where the network has no width multiplier, `NotInstalledError` where
    timm is missing.
    """
    if arch.startswith("mobilenet_v4"):
        network = _v4(arch, width, num_classes=classes, in_chans=channels, drop_rate=dropout)
        replace_convolution(network, "conv_stem", stride=stem_stride)
    else:
        maker = torchvision.models.get_model
        network = maker(arch, weights=None, num_classes=classes, width_mult=width, dropout=dropout)
        stem = network.get_submodule("features.0")
        replace_convolution(stem, "0", in_channels=channels, stride=stem_stride)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    return network


def _v4(arch: str, width: float, **settings: float) -> nn.Module:
    if width != 1.0:
        raise ConfigError(
            f"{arch} has no width multiplier, and student.width is {width}",
            remedy="Leave student.width at 1, or choose mobilenet_v2 or mobilenet_v3.",
        )
    timm = require("timm", "timm")
    return timm.create_model(arch.replace("_v4", "v4"), pretrained=False, **settings)
