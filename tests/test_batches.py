"""Batches: every image once, the same for any number of processes, from any step on."""

import numpy as np
import pytest
import torch

from pipeline.batches import Batches
from pipeline.context import Context
from pipeline.errors import DataError
from pipeline.images import open_split
from pipeline.settings import Augment
from pipeline.stages.data import Data
from pipeline.store import Store
from pipeline.team import Team
from tests.pictures import make_set

CPU = torch.device("cpu")
ALL = Augment(
    crop_padding=2, resized_crop=0.4, policy="rand_augment", erasing=0.5, mixup=1.0, cutmix=1.0
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    context = Context(store=Store(folder / "store"))
    return Data(source="folder", folder=make_set(folder / "set", train=40)).run(context)


@pytest.fixture(scope="module")
def images(dataset):
    return open_split(dataset, "train")


def batches(images, size=9, settings=None, **more):
    return Batches(images, size, CPU, settings=settings or Augment(flip=False), seed=0, **more)


def test_an_epoch_shows_each_image_once_with_its_label(images):
    found = list(batches(images).epoch(0))
    assert len(found) == len(batches(images)) == len(images) // 9
    rows = torch.cat([batch.rows for batch in found]).numpy()
    assert len(set(rows)) == len(rows) == 9 * len(found)
    for batch in found:
        np.testing.assert_array_equal(batch.images.numpy(), images[batch.rows.numpy()])
        np.testing.assert_array_equal(batch.labels.numpy(), images.labels[batch.rows.numpy()])


def test_epochs_differ_and_repeat(images):
    one, again, two = (
        torch.cat([batch.rows for batch in batches(images).epoch(number)]) for number in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, two)


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.rows, b.rows) and a.view == b.view


def test_any_step_can_be_continued_from(images):
    whole = list(batches(images, settings=ALL).epoch(3))
    rest = list(batches(images, settings=ALL).epoch(3, skip=2))
    assert len(rest) == len(whole) - 2
    assert all(same(a, b) for a, b in zip(rest, whole[2:], strict=True))


def test_processes_share_what_one_would_see(images):
    alone = list(batches(images, size=8, settings=ALL).epoch(1))
    shares = [
        list(batches(images, size=8, settings=ALL, team=Team(rank=rank, size=2)).epoch(1))
        for rank in (0, 1)
    ]
    for batch, *parts in zip(alone, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert torch.equal(part.images, batch.images[rank::2])
            assert torch.equal(part.share, batch.share[rank::2])
            assert torch.equal(part.others, batch.others[rank::2])


def test_an_image_of_a_view_is_the_same_in_order_and_shuffled(images):
    kept = torch.cat([batch.images for batch in batches(images, settings=ALL).view(1)])
    assert len(kept) == len(images)
    for batch in batches(images, settings=ALL, views=2).epoch(5):
        assert batch.view == 1
        assert torch.equal(batch.images, kept[batch.rows])


def test_the_leading_label_is_that_of_the_larger_share(images):
    batch = next(batches(images, settings=ALL).epoch(0))
    assert batch.others is not None and batch.share is not None
    for label, other, share, leading in zip(
        batch.labels, batch.others, batch.share, batch.leading, strict=True
    ):
        assert leading == (label if share >= 0.5 else other)


def test_a_file_that_is_gone_is_named(dataset, tmp_path):
    folder = make_set(tmp_path / "set", train=40)
    context = Context(store=Store(tmp_path / "store"))
    streamed = Data(source="folder", folder=folder, memory_limit_mb=0).run(context)
    for path in sorted((folder / "train").rglob("*.*")):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="unreadable image"):
        list(batches(open_split(streamed, "train")).epoch(0))
