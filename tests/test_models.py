"""Networks by name: shapes, strides, widths, and what is said of a wrong name."""

import pytest
import torch
import torchvision

import models
from models import resnet
from models.resnet import cifar
from pipeline.errors import ConfigError


@pytest.mark.parametrize("arch", models.STUDENTS)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 96)])
def test_students_take_grey_and_colour_of_any_size(arch, channels, size):
    network = models.build(arch, classes=7, channels=channels, image_size=size).eval()
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)
    stem = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    assert stem.stride == ((1, 1) if size == 28 else (2, 2))


def test_stem_stride_can_be_chosen():
    network = models.build(
        "mobilenet_v2", classes=2, channels=3, image_size=32, stem_stride=2, width=0.5
    )
    stem = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    assert stem.stride == (2, 2) and stem.out_channels == 16


def test_batch_norm_momentum_of_students_suits_short_runs():
    network = models.build("mobilenet_v3_small", classes=2, channels=3, image_size=32)
    momenta = {m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_cifar_resnet20_is_the_paper_s():
    """He et al. 2016, table 6: 0.27 M parameters (identity shortcuts; ours have 1x1 ones)."""
    network = cifar("resnet20_cifar", classes=10, channels=3, width=1)
    shortcuts = sum(p.numel() for name, p in network.named_parameters() if "shortcut" in name)
    assert sum(p.numel() for p in network.parameters()) - shortcuts == 269_722


@pytest.mark.parametrize("arch", ["resnet18", "torchvision/shufflenet_v2_x0_5", "timm/resnet10t"])
def test_library_networks_get_classes_and_channels(arch):
    network = models.build(arch, classes=3, channels=1, image_size=64).eval()
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("googlenet", 64),
        ("inception_v3", 96),
        ("vit_b_32", 64),
        ("timm/vit_tiny_patch16_224", 64),
    ],
)
def test_library_networks_train_on_images_of_another_size(arch, size):
    network = models.build(arch, classes=3, channels=1, image_size=size)
    assert network.training
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 3)


def test_maxvit_is_made_for_the_size_of_the_images():
    assert models.build("maxvit_t", classes=3, channels=3, image_size=448)


@pytest.mark.parametrize("arch", ["vgg11", "vit_b_16", "maxvit_t", "timm/inception_v4"])
def test_images_that_a_library_network_cannot_take(arch):
    with pytest.raises(ConfigError, match=f"`{arch}` cannot take images of 28 px") as caught:
        models.build(arch, classes=3, channels=1, image_size=28)
    assert "data.size" in caught.value.remedy


def test_a_network_that_answers_no_logits(monkeypatch):
    def segmenter(*args, **settings):
        return torch.nn.Conv2d(3, settings["num_classes"], 1)

    monkeypatch.setattr(torchvision.models, "get_model", segmenter)
    with pytest.raises(ConfigError, match=r"its answer is \[2, 5, 32, 32\], not logits \[2, 5\]"):
        models.build("resnet18", classes=5, channels=3, image_size=32)


def test_trying_a_network_out_leaves_no_trace(monkeypatch):
    """Dropout and batch normalisation are in it; on the CPU the same, where "meta" cannot serve."""

    def build():
        torch.manual_seed(0)
        network = models.build("mnasnet0_5", classes=3, channels=3, image_size=64)
        return {**network.state_dict(), "chance": torch.get_rng_state()}

    def on_the_cpu(network, shape, device):
        if device == "meta":
            raise NotImplementedError
        return answer(network, shape, device)

    first, answer = build(), resnet._answer
    monkeypatch.setattr(resnet, "_answer", on_the_cpu)
    second = build()
    monkeypatch.setattr(resnet, "_try_out", lambda *args: None)
    for name, value in build().items():
        assert torch.equal(first[name], value) and torch.equal(second[name], value), name


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("mobilenet_v5", "Did you mean `mobilenet_v"),
        ("resnet21_cifar", "6n\\+2"),
        ("timm/nothing", "no network is called"),
        ("keras/resnet50", "no network is called"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(arch, words):
    with pytest.raises(ConfigError, match=words):
        models.build(arch, classes=2, channels=3, image_size=32)


@pytest.mark.parametrize("arch", ["mobilenet_v4_conv_small", "resnet18", "timm/resnet10t"])
def test_a_width_that_cannot_be_had(arch):
    with pytest.raises(ConfigError, match="no width multiplier") as caught:
        models.build(arch, classes=2, channels=3, image_size=32, width=0.5)
    assert "at 1" in caught.value.remedy
