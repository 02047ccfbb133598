"""Teachers: ResNets for small images, and every classifier of torchvision and timm by name."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.errors import ConfigError, NotInstalledError, PipelineError, require

CIFAR = re.compile(r"resnet(\d+)_cifar")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, h, w] -> [batch, outputs, h / stride, w / stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def is_cifar(arch: str) -> bool:
    """Whether `arch` names a ResNet of this file."""
    return CIFAR.fullmatch(arch) is not None


def cifar(arch: str, *, classes: int, channels: int, width: float) -> nn.Sequential:
    """The ResNet for small images of He et al. 2016, section 4.2, with 1x1 shortcuts (option B).

    Depth 6n+2 (resnet8, resnet20, resnet56 ...): a 3x3 stem and three groups of n blocks of
    16, 32 and 64 channels times `width`. Raises `ConfigError` for another depth.
    """
    match = CIFAR.fullmatch(arch)
    depth = int(match.group(1)) if match else 0
    if depth < 8 or depth % 6 != 2:
        raise ConfigError(
            f"`{arch}`: the depth of a CIFAR-style ResNet is 6n+2",
            remedy="Use resnet8_cifar, resnet14_cifar, resnet20_cifar, resnet56_cifar, ...",
        )
    inputs = stem = max(1, round(16 * width))
    layers: list[nn.Module] = [
        nn.Conv2d(channels, stem, 3, 1, 1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(inplace=True),
    ]
    for group in range(3):
        for block in range((depth - 2) // 6):
            outputs = stem * 2**group
            layers.append(BasicBlock(inputs, outputs, stride=2 if group and not block else 1))
            inputs = outputs
    head = nn.Linear(inputs, classes)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def known() -> list[str]:
    """Names to suggest when a name is mistyped."""
    own = [f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56, 110)]
    return own + torchvision.models.list_models(module=torchvision.models)


def library(arch: str, *, classes: int, channels: int, image_size: int) -> nn.Module | None:
    """A torchvision or timm classifier by name, untrained; None where neither knows it.

    A first convolution that wants RGB is given as many channels as the images have, and a network
    that is made for one image size is made for `image_size`. Raises `NotInstalledError` for a
    ``timm/`` name without timm, `ConfigError` for a network that cannot be fitted to such images.
    """
    try:
        network = _made(arch, classes, channels, image_size)
        if network is not None:
            _try_out(network, (2, channels, image_size, image_size), classes)
    except PipelineError:
        raise
    except Exception as error:  # whatever a library's network objects with
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"`{arch}` cannot take images of {image_size} px with {channels} channels: "
            f"{type(error).__name__}: {reason}",
            remedy="Set data.size to a size it can take (224 suits most), or choose a network for "
            "small images, such as resnet20_cifar.",
        ) from error
    return network


def _made(arch: str, classes: int, channels: int, image_size: int) -> nn.Module | None:
    maker, _, name = arch.rpartition("/")
    if maker not in ("", "torchvision", "timm"):
        return None
    if maker != "timm" and name in torchvision.models.list_models(module=torchvision.models):
        more = _torchvision_settings(name, image_size)
        network = torchvision.models.get_model(name, weights=None, num_classes=classes, **more)
        _fit_channels(network, channels)
        return network
    try:
        timm = require("timm", "timm")
    except NotInstalledError:
        if maker == "timm":
            raise
        return None
    if maker == "torchvision" or not timm.is_model(name):
        return None
    more = _timm_settings(timm.get_pretrained_cfg(name), image_size)
    create: Callable[..., nn.Module] = timm.create_model
    return create(name, pretrained=False, num_classes=classes, in_chans=channels, **more)


def _torchvision_settings(name: str, image_size: int) -> dict[str, Any]:
    if name in ("googlenet", "inception_v3"):
        # In training their further heads would make the answer a tuple.
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if name.startswith("maxvit") else {}


def _timm_settings(made_for: Any, image_size: int) -> dict[str, int]:
    # Not every network of one size has the argument: it is given only where it changes something.
    if made_for and made_for.fixed_input_size and made_for.input_size[-1] != image_size:
        return {"img_size": image_size}
    return {}


def _try_out(network: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Raise unless `network` answers a training batch of that shape with logits."""
    try:
        answer = _answer(network, shape, "meta")
    except Exception:  # perhaps only because it asks for values, which "meta" tensors have not
        answer = _answer(network, shape, "cpu")
    if not isinstance(answer, Tensor) or answer.shape != (shape[0], classes):
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise TypeError(f"its answer is {found}, not logits {[shape[0], classes]}")


@torch.no_grad()
def _answer(network: nn.Module, shape: tuple[int, ...], device: str) -> object:
    """What `network` makes of zeros, on stand-ins of its parameters and running statistics."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    stand_ins = {name: tensor.detach().to(device, copy=True) for name, tensor in tensors}
    with torch.random.fork_rng(devices=[]):
        return functional_call(network, stand_ins, (torch.zeros(shape, device=device),))


def _fit_channels(network: nn.Module, channels: int) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels == channels:
                return
            if module.groups != 1:
                raise ConfigError(
                    f"cannot give the first convolution {channels} input channels",
                    remedy=f"Set data.channels to {module.in_channels}, or choose another network.",
                )
            parent = network.get_submodule(name.rpartition(".")[0])
            replace_convolution(parent, name.rpartition(".")[2], in_channels=channels)
            return


def replace_convolution(
    parent: nn.Module, name: str, *, in_channels: int | None = None, stride: int | None = None
) -> None:
    """Put a fresh convolution like `parent.<name>`, but for what is given, in its place."""
    old = getattr(parent, name)
    assert isinstance(old, nn.Conv2d)
    new = nn.Conv2d(
        in_channels or old.in_channels,
        old.out_channels,
        kernel_size=(old.kernel_size[0], old.kernel_size[1]),
        stride=stride or (old.stride[0], old.stride[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    setattr(parent, name, new)
