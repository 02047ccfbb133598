"""The networks behind the names in `phones.csv`, and their counts in `networks.csv`.

`python -m benchmarks.published.networks` builds each untrained, exports it and counts it anew (two
minutes).
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.published.fitting import TABLE
from benchmarks.published.workload import Workload, of

if TYPE_CHECKING:
    from torch import nn

NETWORKS = {
    "densenet121": "torchvision densenet121",
    "efficientnet_b0": "torchvision efficientnet_b0",
    "googlenet": "torchvision googlenet",
    "inception_v3": "torchvision inception_v3, 224 px as AI Hub has it",
    "mnasnet05": "torchvision mnasnet0_5",
    "mobilenet_v2": "torchvision mobilenet_v2",
    "mobilenet_v3_large": "torchvision mobilenet_v3_large",
    "mobilenet_v3_small": "torchvision mobilenet_v3_small",
    "regnet": "torchvision regnet_x_3_2gf: 15.3 million parameters, as AI Hub says",
    "resnet101": "torchvision resnet101",
    "resnet18": "torchvision resnet18",
    "resnet50": "torchvision resnet50",
    "resnext101": "torchvision resnext101_32x8d",
    "resnext50": "torchvision resnext50_32x4d",
    "shufflenet_v2": "torchvision shufflenet_v2_x0_5: 1.37 million parameters, as AI Hub says",
    "squeezenet1_1": "torchvision squeezenet1_1",
    "wideresnet50": "torchvision wide_resnet50_2",
    "ncnn squeezenet": "torchvision squeezenet1_1, 227 px",
    "ncnn mobilenet": "timm mobilenetv1_100",
    "ncnn mobilenet_v2": "torchvision mobilenet_v2 with a first 1x1 expansion of 32, as in Caffe",
    "ncnn mobilenet_v3": "torchvision mobilenet_v3_large",
    "ncnn shufflenet": "ShuffleNet v1, 3 groups, width 1, built here",
    "ncnn shufflenet_v2": "torchvision shufflenet_v2_x1_0",
    "ncnn proxylessnasnet": "ProxylessNAS for phones, built here",
    "ncnn efficientnet_b0": "torchvision efficientnet_b0",
    "ncnn efficientnetv2_b0": "timm tf_efficientnetv2_b0, 224 px",
    "ncnn googlenet": "torchvision googlenet with the 5x5 convolutions of the paper",
    "ncnn resnet18": "torchvision resnet18",
    "ncnn resnet50": "torchvision resnet50 with strides in the 1x1 convolutions, as in Caffe",
}
"""Name in `networks.csv` (for ncnn's, which are not others', with its name) and the network
taken for it, 224 px unless said otherwise. ncnn's were compared with its benchmark/*.param."""
PROXYLESS = (
    *((32, 48, 5, 2, 32), (32, 96, 3, 1, 32), (32, 96, 7, 2, 40), (40, 120, 3, 1, 40)),
    *((40, 120, 5, 1, 40), (40, 120, 5, 1, 40), (40, 240, 7, 2, 80), (80, 240, 5, 1, 80)),
    *((80, 240, 5, 1, 80), (80, 240, 5, 1, 80), (80, 480, 5, 1, 96), (96, 288, 5, 1, 96)),
    *((96, 288, 5, 1, 96), (96, 288, 5, 1, 96), (96, 576, 7, 2, 192), (192, 1152, 7, 1, 192)),
    *((192, 576, 7, 1, 192), (192, 576, 7, 1, 192), (192, 1152, 7, 1, 320)),
)
"""Blocks as ncnn's proxylessnasnet.param has them: channels in, expanded, kernel, stride, out."""


def count(name: str) -> Workload:
    """Build the network of that name untrained, export it and count it."""
    import torch

    from exporters.onnx import quiet

    size = 227 if "227 px" in NETWORKS[name] else 224
    network = _build(name).eval()
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        image = torch.zeros(1, 3, size, size)
        torch.onnx.export(network, (image,), path, dynamo=True, opset_version=18, verbose=False)
        return of(path)


def write(path: Path = TABLE) -> None:
    """Count all networks and write the table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "network", *Workload.model_fields])
        for name, words in NETWORKS.items():
            writer.writerow([name, words, *count(name).model_dump().values()])


def _build(name: str) -> nn.Module:
    made: dict[str, Callable[[], nn.Module]] = {
        "ncnn shufflenet": _shufflenet,
        "ncnn proxylessnasnet": _proxyless,
        "ncnn mobilenet_v2": _caffe_mobilenet,
        "ncnn googlenet": _paper_googlenet,
        "ncnn resnet50": _caffe_resnet,
    }
    if name in made:
        return made[name]()
    library, arch = NETWORKS[name].replace(",", " ").replace(":", " ").split()[:2]
    return _library(library, arch)


def _library(library: str, arch: str) -> nn.Module:
    if library == "timm":
        import timm

        return timm.create_model(arch)
    import torchvision.models

    plain = {"aux_logits": False, "init_weights": False}
    return torchvision.models.get_model(
        arch, weights=None, **(plain if arch in ("googlenet", "inception_v3") else {})
    )


def _caffe_mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2()
    network.features.insert(1, _conv(32, 32))
    return network


def _paper_googlenet() -> nn.Module:
    from torch import nn
    from torchvision.models.googlenet import BasicConv2d, Inception

    network = _library("torchvision", "googlenet")
    for block in network.modules():
        if isinstance(block, Inception):
            narrow = block.branch3[1]
            assert isinstance(narrow, BasicConv2d)
            taken, given = narrow.conv.in_channels, narrow.conv.out_channels
            narrow.conv = nn.Conv2d(taken, given, 5, padding=2, bias=False)
    return network


def _caffe_resnet() -> nn.Module:
    from torchvision.models import resnet50
    from torchvision.models.resnet import Bottleneck

    network = resnet50()
    for block in network.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return network


def _conv(
    taken: int, given: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Module:
    from torch import nn

    conv = nn.Conv2d(taken, given, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(conv, nn.ReLU()) if relu else conv


def _proxyless() -> nn.Module:
    """Cai, Zhu & Han 2019 (arXiv:1812.00332)."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, taken: int, wide: int, kernel: int, stride: int, given: int) -> None:
            super().__init__()
            depthwise = _conv(wide, wide, kernel, stride, wide)
            end = _conv(wide, given, relu=False)
            self.body = nn.Sequential(_conv(taken, wide), depthwise, end)
            self.shortcut = stride == 1 and taken == given

        def forward(self, x):  # noqa: ANN001, ANN202
            return x + self.body(x) if self.shortcut else self.body(x)

    start = (_conv(3, 32, 3, 2), _conv(32, 32, 3, 1, 32), _conv(32, 32, relu=False))
    end = (_conv(320, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))
    return nn.Sequential(*start, *(Block(*each) for each in PROXYLESS), *end)


def _shufflenet() -> nn.Module:
    """Zhang, Zhou, Lin & Sun 2018 (arXiv:1707.01083), table 1, three groups."""
    import torch
    from torch import nn

    class Unit(nn.Module):
        def __init__(self, taken: int, given: int, stride: int) -> None:
            super().__init__()
            middle, self.first = given // 4, taken == 24
            self.start = _conv(taken, middle, groups=1 if self.first else 3)
            self.depthwise = _conv(middle, middle, 3, stride, middle, relu=False)
            self.end = _conv(middle, given - taken * (stride == 2), groups=3, relu=False)
            self.pool = nn.AvgPool2d(3, 2, ceil_mode=True) if stride == 2 else None

        def forward(self, x):  # noqa: ANN001, ANN202
            y = self.start(x)
            if not self.first:
                n, c, h, w = y.shape
                y = y.reshape(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
            y = self.end(self.depthwise(y))
            return torch.relu(x + y if self.pool is None else torch.cat([self.pool(x), y], 1))

    layers, taken = [_conv(3, 24, 3, 2), nn.MaxPool2d(3, 2, ceil_mode=True)], 24
    for repeats, given in ((4, 240), (8, 480), (4, 960)):
        for place in range(repeats):
            layers.append(Unit(taken, given, 1 if place else 2))
            taken = given
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(960, 1000))
    return nn.Sequential(*layers, *end)


if __name__ == "__main__":
    write()
