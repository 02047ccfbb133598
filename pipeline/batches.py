"""Batches of augmented images: an index into a tensor where it fits, decoded by workers where not.

Which images make up a batch, and what is done to them, follows from the seed, the number of the
epoch and the image alone. So a training can be continued at any step, several processes see what
one would have seen, and what a teacher said of a view stays true.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pipeline.augment import View, augment, draw, mix
from pipeline.errors import DataError
from pipeline.images import Images, Pixels
from pipeline.machine import cores
from pipeline.moving import moved
from pipeline.settings import Augment
from pipeline.team import Team

GPU_SHARE = 0.25
"""Share of the GPU's memory that resident images may take."""
MOST_WORKERS = 16
"""Decoding processes beside one training process."""
ORDER = 0x0DE5
"""Sets the numbers that shuffle apart from those that augment."""


@dataclass(frozen=True)
class Batch:
    """Augmented images of the training split and what is known of them."""

    images: Tensor
    """uint8 [b, size, size, channels], on the device."""
    labels: Tensor
    """int64 [b], on the device."""
    rows: Tensor
    """int64 [b]: which images of the split these are, on the CPU."""
    view: int
    """Number of the view of the split."""
    others: Tensor | None = None
    """int64 [b]: labels of the images that were mixed in; None where nothing is mixed."""
    share: Tensor | None = None
    """float32 [b]: weight of `labels`; `others` have the rest."""
    answers: Tensor | None = None
    """[b, classes] on the device: the teacher's logits, where they were kept."""

    @property
    def leading(self) -> Tensor:
        """int64 [b]: the label with the larger share of each image."""
        if self.others is None or self.share is None:
            return self.labels
        return torch.where(self.share >= 0.5, self.labels, self.others)


class Batches:
    """The training split, epoch by epoch.

    `size` is the number of images of a step over all processes of the `team`; each gets its share
    of them. The last, incomplete batch of an epoch is left out, so that every step sees as many.
    """

    def __init__(
        self,
        images: Images,
        size: int,
        device: torch.device,
        *,
        settings: Augment,
        seed: int,
        team: Team | None = None,
        views: int = 0,
    ) -> None:
        self.size = size
        self._images, self._settings, self._device = images, settings, device
        self._seed, self._team, self._views = seed, team or Team(), views
        self._labels = torch.from_numpy(images.labels).to(device)
        self._resident: Tensor | None = None
        if images.resident:
            pixels = torch.from_numpy(np.ascontiguousarray(images[slice(None)]))
            self._resident = pixels.to(device) if _fits(pixels, device) else pixels

    def __len__(self) -> int:
        return len(self._images) // self.size

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The shuffled batches of epoch `number` (from 0), without the first `skip` of them.

        With `views` their views repeat in a cycle of that length; else each epoch has its own.
        """
        generator = torch.Generator().manual_seed(seed_of(self._seed, number, ORDER))
        order = torch.randperm(len(self._images), generator=generator)
        chunks = order[: len(self) * self.size].split(self.size)
        return self._batches(chunks[skip:], number % self._views if self._views else number)

    def view(self, number: int) -> Iterator[Batch]:
        """All images in order, in view `number`; the last batch may be shorter."""
        return self._batches(torch.arange(len(self._images)).split(self.size), number)

    def _batches(self, chunks: Sequence[Tensor], number: int) -> Iterator[Batch]:
        mine = [chunk[self._team.rank :: self._team.size] for chunk in chunks]
        mine = [rows for rows in mine if len(rows)]
        view = draw(self._settings, len(self._images), self._images.size, self._seed, number)
        wanted, partner = mine, view.partner
        if partner is not None:  # each chunk, and then what is mixed into it
            wanted = [each for rows in mine for each in (rows, partner[rows])]
        pixels = self._pixels(wanted, view)
        for rows in mine:
            images, labels = next(pixels), self._labels[moved(rows, self._device)]
            if view.partner is None or view.share is None:
                yield Batch(images, labels, rows, number)
                continue
            images = mix(images, next(pixels), view.at(rows))
            others = self._labels[moved(view.partner[rows], self._device)]
            share = moved(view.share[rows], self._device)
            yield Batch(images, labels, rows, number, others, share)

    def _pixels(self, chunks: Sequence[Tensor], view: View) -> Iterator[Tensor]:
        """The augmented images of each chunk, on the device."""
        resident = self._resident
        if resident is not None:
            for rows in chunks:
                found = moved(resident[moved(rows, resident.device)], self._device)
                yield augment(found, view.at(rows))
            return
        pinned = self._device.type == "cuda"
        loaded = stream(self._images, chunks, view.box, self._team.local_size, pinned=pinned)
        for rows, found in zip(chunks, loaded, strict=True):
            pixels = found.to(self._device, non_blocking=found.is_pinned())
            yield augment(pixels, view.at(rows), cropped=True)


class _Chunks(TorchDataset[Pixels | DataError]):
    """What a worker process does: decode the images of one chunk."""

    def __init__(self, images: Images, chunks: Sequence[Tensor], boxes: Tensor | None) -> None:
        self._images, self._chunks, self._boxes = images, chunks, boxes

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: int) -> Pixels | DataError:
        rows = self._chunks[index]
        boxes = None if self._boxes is None else self._boxes[rows].numpy()
        try:
            return self._images.cut(rows.numpy(), boxes)
        except DataError as error:  # raised here it would arrive as a traceback
            return error


def stream(
    images: Images,
    chunks: Sequence[Tensor],
    boxes: Tensor | None,
    sharers: int = 1,
    *,
    pinned: bool = False,
) -> Iterator[Tensor]:
    """The decoded images uint8 [b, size, size, channels] of each chunk of rows, in order.

    Worker processes decode ahead. `boxes` float32 [n, 4] are the crops of all images of the split;
    `sharers` is the number of training processes that share this machine's cores; `pinned` puts
    them where a GPU can fetch them from. Raises `DataError` for a file that cannot be decoded any
    more.
    """
    workers = min(MOST_WORKERS, max(1, cores() // sharers), max(1, len(chunks)))
    for found in DataLoader(
        _Chunks(images, chunks, boxes), batch_size=None, num_workers=workers, pin_memory=pinned
    ):
        if isinstance(found, DataError):
            raise found
        yield found


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits for these numbers, unlike that of any others."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(seed >> np.uint64(1))


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return pixels.nbytes < GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
