"""The public sets: found, fetched and read. The user's own folders are in test_data.py."""

import gzip
import pickle
import struct
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import sources
from pipeline.context import Context
from pipeline.errors import DataError
from pipeline.images import open_split
from pipeline.sources import fashion_mnist
from pipeline.stages.data import Data
from pipeline.store import Store


@pytest.fixture
def context(tmp_path):
    return Context(store=Store(tmp_path / ".store"))


def pixels(dataset, split: Any):
    return open_split(dataset, split)[:]


def sizes(dataset):
    return [dataset.train.n, dataset.val.n, dataset.test.n]


def test_every_source_can_be_set():
    assert sorted(typing.get_args(Data.model_fields["source"].annotation)) == sources.names()


def test_digits(context):
    dataset = Data(source="digits").run(context)
    assert dataset.labels == tuple("0123456789")
    assert (dataset.input.size, dataset.input.channels) == (8, 1)
    assert sizes(dataset) == [1294, 144, 359]
    train = pixels(dataset, "train")
    assert (train.min(), train.max()) == (0, 255)
    assert len(np.unique(train)) == 17
    assert Data(source="digits").run(context) == dataset
    assert context.store.outcomes[-1].reused
    larger = Data(source="digits", size=16, channels=3).run(context)
    assert pixels(larger, "test").shape[1:] == (16, 16, 3)


def write_idx(path: Path, values: np.ndarray, packed: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)


def write_fashion(folder: Path, packed: bool = True, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for split, n in (("train", 60), ("t10k", 20)):
        end = ".gz" if packed else ""
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte{end}", images, packed)
        labels = np.arange(n, dtype=np.uint8) % 10
        write_idx(folder / f"{split}-labels-idx1-ubyte{end}", labels, packed)
    return folder


def fashion(context, folder, **settings):
    return Data(source="fashion_mnist", folder=folder, **settings).run(context)


def test_fashion_mnist_packed_and_unpacked(tmp_path, context):
    write_fashion(tmp_path / "packed" / "deep")
    write_fashion(tmp_path / "plain", packed=False)
    packed, plain = (fashion(context, tmp_path / name) for name in ("packed", "plain"))
    assert packed.digest == plain.digest
    assert packed.licence == "MIT"
    assert packed.labels[0] == "T-shirt/top"
    assert sizes(packed) == [50, 10, 20]
    assert open_split(packed, "test").labels.tolist() == [i % 10 for i in range(20)]
    fashion(context, tmp_path / "packed")
    assert context.store.outcomes[-1].reused


def test_fashion_mnist_beside_mnist(tmp_path, context):
    write_fashion(tmp_path / "all" / "FashionMNIST" / "raw", seed=1)
    write_fashion(tmp_path / "all" / "A_MNIST" / "raw", seed=2)
    write_fashion(tmp_path / "alone", seed=1)
    assert fashion(context, tmp_path / "all").digest == fashion(context, tmp_path / "alone").digest


def test_fashion_mnist_missing(tmp_path, context, monkeypatch):
    with pytest.raises(DataError, match=r"no Fashion-MNIST in .*nowhere") as caught:
        fashion(context, tmp_path / "nowhere")
    assert "train-images-idx3-ubyte.gz" in caught.value.remedy
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "nowhere")
    with pytest.raises(DataError, match="download = false"):
        fashion(context, None, download=False)


def test_fashion_mnist_says_what_was_tried(tmp_path, context, monkeypatch):
    def offline(folder):
        raise RuntimeError("no\n network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setattr(fashion_mnist, "_from_torchvision", offline)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no apt-get and no dpkg here; torchvision: no network"):
        fashion(context, None)
    assert list(fashion_mnist.CACHE.iterdir()) == []


def test_fashion_mnist_fetched_into_the_cache(tmp_path, context, monkeypatch):
    def fetch(folder):
        write_fashion(folder / "usr" / "share")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setattr(fashion_mnist, "_from_debian", fetch)
    fashion(context, None)
    assert len(list(fashion_mnist.CACHE.iterdir())) == 4
    monkeypatch.setattr(fashion_mnist, "_from_debian", None)
    fashion(context, None)
    assert context.store.outcomes[-1].reused


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"hello"])
def test_fashion_mnist_damaged(tmp_path, context, damage):
    path = write_fashion(tmp_path / "set") / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"unreadable file: .*train-images"):
        fashion(context, tmp_path / "set")


def test_arrays_above_the_memory_limit(tmp_path, context):
    write_fashion(tmp_path / "set")
    with pytest.raises(DataError, match=r"80 images of 100x100x3 take 2 MiB, more than"):
        fashion(context, tmp_path / "set", size=100, channels=3, memory_limit_mb=1)


def test_cifar_missing(tmp_path, context):
    with pytest.raises(DataError, match="cifar-100-python is missing") as caught:
        Data(source="cifar100", folder=tmp_path, download=False).run(context)
    assert "folder" in caught.value.remedy


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """CIFAR-10's files with a handful of images; torchvision's checksums are set aside."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    names = {"label_names": list("abcdefghij")}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    planes = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
    batch = {"data": planes.reshape(40, -1), "labels": [i % 10 for i in range(40)]}
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch))
    return tmp_path, planes


def test_cifar(tiny_cifar, context):
    folder, planes = tiny_cifar
    dataset = Data(source="cifar10", folder=folder).run(context)
    assert (dataset.input.size, dataset.input.channels) == (32, 3)
    assert np.array_equal(pixels(dataset, "test"), planes.transpose(0, 2, 3, 1))
    (folder / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match="incomplete or damaged"):
        Data(source="cifar10", folder=folder).run(context)
