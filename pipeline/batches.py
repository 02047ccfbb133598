"""Shuffled batches of a split: an index into a tensor where it fits, decoded ahead where not."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.images import Images

GPU_SHARE = 0.25
"""Share of the GPU's memory that resident images may take."""


class Batches:
    """One epoch an iteration: (uint8 [b, size, size, channels], int64 [b]) on the device.

    The last, incomplete batch of an epoch is left out, so that every step sees as many images.
    """

    def __init__(
        self, images: Images, batch_size: int, device: torch.device, generator: torch.Generator
    ) -> None:
        self._images, self._size, self._device = images, batch_size, device
        self._generator = generator
        self._labels = torch.from_numpy(images.labels).to(device)
        self._resident: Tensor | None = None
        if images.resident:
            pixels = torch.from_numpy(np.ascontiguousarray(images[slice(None)]))
            self._resident = pixels.to(device) if _fits(pixels, device) else pixels

    def __len__(self) -> int:
        return len(self._images) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images), generator=self._generator)
        chunks = order[: len(self) * self._size].split(self._size)
        for chunk, pixels in zip(chunks, self._pixels(chunks), strict=True):
            labels = self._labels[chunk.to(self._device)]
            yield pixels.to(self._device, non_blocking=True), labels

    def _pixels(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        resident = self._resident
        if resident is not None:
            return (resident[chunk.to(resident.device)] for chunk in chunks)
        return map(torch.from_numpy, self._images.ahead(chunk.numpy() for chunk in chunks))


def _fits(pixels: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return pixels.nbytes < GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
