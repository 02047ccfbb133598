"""Weights trained elsewhere: read with their wrappers, and refused with the reason."""

import pytest
import torch

from models.resnet import cifar
from pipeline.checkpoints import fit_weights, read_weights
from pipeline.errors import CheckpointError


def network(classes=4, width=1.0):
    return cifar("resnet8_cifar", classes=classes, channels=1, width=width)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{name}": value for name, value in s.items()}},
        lambda s: {f"_orig_mod.{name}": value for name, value in s.items()},
    ],
)
def test_plain_wrapped_and_prefixed(tmp_path, wrap):
    trained, fresh = network(), network()
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pt")
    fit_weights(fresh, read_weights(tmp_path / "w.pt"), tmp_path / "w.pt", "resnet8_cifar")
    assert same(trained.state_dict(), fresh.state_dict())


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch", reason="needs safetensors").save_file
    trained = network()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    assert same(trained.state_dict(), read_weights(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: network(classes=7), "was trained for 7 classes, the image set has 4"),
        (lambda: network(width=2.0), r"0.weight is \(32, 1, 3, 3\), wanted \(16, 1, 3, 3\)"),
        (lambda: torch.nn.Linear(3, 2), "is missing.*is not part of resnet8_cifar"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, other, words):
    path = tmp_path / "w.pt"
    torch.save(other().state_dict(), path)
    with pytest.raises(CheckpointError, match=words):
        fit_weights(network(), read_weights(path), path, "resnet8_cifar")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_unreadable_files(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3)])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_weights(tmp_path / "w.pt")


def test_a_whole_pickled_module_is_refused_not_executed(tmp_path):
    torch.save(network(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_weights(tmp_path / "w.pt")
