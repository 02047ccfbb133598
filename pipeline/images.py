"""From an image file to the pixels a network sees, and from a stored split to batches.

The one place that decodes: data checks, training and measuring all see the same pixels of the
same file. Needs NumPy and Pillow only, so that measuring processes stay free of torch.
"""

import json
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import DataError
from pipeline.machine import cores
from pipeline.records import Dataset, Split

T = TypeVar("T")
R = TypeVar("R")
Pixels = NDArray[np.uint8]
Index = slice | NDArray[np.integer]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".heic", ".heif", ".avif", ".webp"),
        *(".png", ".gif", ".bmp", ".tif", ".tiff", ".tga", ".pbm", ".pgm", ".ppm"),
    }
)
"""Lower-case endings of files that count as images. Some of them (.heic, .avif) not every Pillow
reads: such a file is reported as unreadable, where ignoring it would quietly shrink a class."""

BATCH = 512
"""Images at a time, of small ones."""
LARGE_IMAGE = 64
"""Pixels from which there are fewer, so that they take no more memory."""
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})

# What Pillow raises on damaged files, found by cutting files short and flipping their bytes.
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(RuntimeError, AssertionError, MemoryError),
    *(struct.error, Image.DecompressionBombError),
)


class NaturalSize(NamedTuple):
    """What an image file's header says."""

    width: int
    height: int
    grey: bool
    """Whether the file stores grey values only; a palette counts as colour."""


Box = tuple[float, float, float, float]
"""Top, left, height and width as shares of the centre square of an upright image."""


def decode(
    path: Path,
    size: int,
    channels: Literal[1, 3],
    crop_fraction: float = 1.0,
    box: Box | None = None,
) -> Pixels:
    """The pixels [size, size, channels] of an image file, upright, cropped and resized.

    With a `box` that part of the centre square is taken, and `crop_fraction` does not count.
    Raises `DataError`, naming the file, when it is unreadable, truncated or absurdly large.
    """
    try:
        with Image.open(path) as image:
            # Lets libjpeg decode at a half, quarter or eighth; twice the pixels needed remain.
            side = math.ceil(2 * size / (min(box[2:]) if box else crop_fraction))
            image.draft(None, (side, side))
            image.load()
            upright = _upright(image)
            if box is not None:
                return _cut(_flat(upright, "L" if channels == 1 else "RGB"), size, box)
            return prepare(upright, size, channels, crop_fraction)
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def prepare(image: Image.Image, size: int, channels: int, crop_fraction: float = 1.0) -> Pixels:
    """The pixels [size, size, channels] of an upright image: its centre square, resized.

    An image that is exactly that already keeps its pixels.
    """
    image = _flat(image, "L" if channels == 1 else "RGB")
    if image.size != (size, size) or crop_fraction != 1:
        # `fit` crops before it enlarges, so that a very long image costs no more than a square.
        bleed = (1 - crop_fraction) / 2
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC, bleed=bleed)
    return np.array(image, dtype=np.uint8).reshape(size, size, channels)


def _cut(image: Image.Image, size: int, box: Box) -> Pixels:
    top, left, height, width = box
    side = min(image.size)
    x, y = (image.width - side) / 2 + left * side, (image.height - side) / 2 + top * side
    place = (x, y, min(x + width * side, image.width), min(y + height * side, image.height))
    cut = image.resize((size, size), Image.Resampling.BICUBIC, box=place)
    return np.array(cut, dtype=np.uint8).reshape(size, size, -1)


def natural_size(path: Path) -> NaturalSize:
    """Width and height as stored, before any EXIF rotation; reads the header only.

    Raises `DataError` when there is no readable header.
    """
    try:
        with Image.open(path) as image:
            return NaturalSize(image.width, image.height, image.mode in GREY_MODES)
    except _BROKEN as error:
        raise _unreadable(path, error) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF orientation says; damaged EXIF must not cost a good picture."""
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def _flat(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """As 8-bit `mode`, with whatever is transparent laid on white."""
    if image.mode == "F":
        raise ValueError("it has floating-point pixels, whose black and white are unknown")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its grey values do not fit into 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(mode)


def _unreadable(path: Path, error: Exception) -> DataError:
    # A name that is no UTF-8 could not even be printed.
    name = os.fsencode(path).decode("utf-8", "replace")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"image too large: {name}: {error}", "Replace it by a smaller copy.")
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "not an image that Pillow can read"
    else:
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
    return DataError(
        f"unreadable image: {name}: {reason}",
        "Repair or remove it; convert formats that Pillow cannot read (HEIC, say) to JPEG or PNG.",
    )


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`work` done on each of `items` by that many `threads`, its results in order.

    Unlike `Executor.map` it starts only one item more than there are threads, so that results
    that nobody has taken yet do not fill the memory.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batch_size(image_size: int) -> int:
    """Images at a time where nothing is learned, for images of that many pixels a side."""
    return max(16, min(BATCH, int(BATCH * (LARGE_IMAGE / image_size) ** 2)))


def spread(n: int | None, total: int) -> NDArray[np.int64]:
    """`n` rows of `total` (None: all), evenly spaced: image folders lie class after class."""
    n = total if n is None else min(n, total)
    return np.linspace(0, total - 1, n).round().astype(np.int64)


class Images:
    """One split of a stored image set, in order."""

    def __init__(self, dataset: Dataset, split: Split) -> None:
        self.labels: NDArray[np.int64] = np.load(dataset.folder / split.labels)
        self._spec = dataset.input
        self._crop = dataset.crop_fraction
        self._pixels: Pixels | None = None
        self._files: list[Path] = []
        if split.images is not None:
            # A plain array over the mapped file: pages are read when they are touched.
            mapped = np.load(dataset.folder / split.images, mmap_mode="r")
            self._pixels = mapped.view(np.ndarray)
        elif split.files is not None:
            lines = (dataset.folder / split.files).read_text(encoding="utf-8").splitlines()
            self._files = [Path(json.loads(line)) for line in lines]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self._spec.size

    @property
    def resident(self) -> bool:
        """Whether the pixels lie ready in one array; else each batch decodes its files."""
        return self._pixels is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Index) -> Pixels:
        """The images [n, size, size, channels] at `index`, as an array of their own."""
        if self._pixels is not None:
            chosen = self._pixels[index]
            return chosen.copy() if isinstance(index, slice) else chosen
        rows = np.arange(len(self))[index]
        batch = self._empty(len(rows))
        for place, image in enumerate(self._pool.map(self._decode, rows)):
            batch[place] = image
        return batch

    def cut(self, rows: NDArray[np.integer], boxes: NDArray[np.floating] | None) -> Pixels:
        """The images at `rows`, decoded one after the other: for a process among several.

        `boxes` [n, 4] says what part of each is wanted (see `Box`). Only for images in files.
        """
        batch = self._empty(len(rows))
        for place, row in enumerate(rows):
            box = None if boxes is None else boxes[place].tolist()
            batch[place] = self._decode(row, box)
        return batch

    def _empty(self, n: int) -> Pixels:
        return np.empty((n, self._spec.size, self._spec.size, self._spec.channels), np.uint8)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Made when it is first needed: a pool could not be handed to a worker process.
        return ThreadPoolExecutor(cores(), thread_name_prefix="decode")

    def _decode(self, row: int, box: Box | None = None) -> Pixels:
        return decode(self._files[row], self._spec.size, self._spec.channels, self._crop, box)

    def ahead(self, indices: Iterable[Index]) -> Iterator[Pixels]:
        """The images at each of `indices`; while one batch is used, the next is decoded."""
        if self.resident:
            return (self[index] for index in indices)
        return in_order(self.__getitem__, indices, threads=1)

    def batches(self, size: int) -> Iterator[tuple[Pixels, NDArray[np.int64]]]:
        """All images with their labels, in order, `size` at a time; the rest comes last."""
        slices = [slice(start, start + size) for start in range(0, len(self), size)]
        yield from zip(self.ahead(slices), (self.labels[part] for part in slices), strict=True)


def open_split(dataset: Dataset, split: Literal["train", "val", "test"]) -> Images:
    """The images of a split by its name."""
    return Images(dataset, getattr(dataset, split))
