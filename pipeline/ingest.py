"""Reading every image of a set once: to check it, count its levels, hash it and store it.

All in one pass in groups, because reading is what takes long and the set may be larger than the
memory.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DataError
from pipeline.images import NaturalSize, Pixels, decode, in_order, natural_size, prepare
from pipeline.machine import cores
from pipeline.progress import bar
from pipeline.records import Split
from pipeline.sources import Part
from pipeline.store import file_sha256

GROUP = 32
"""Images that one thread reads before it hands them on."""


class Form(NamedTuple):
    """What every image is brought to."""

    size: int
    channels: Literal[1, 3]
    crop_fraction: float
    stored: bool
    """Whether the pixels are kept; else the files' paths."""


class Taken(NamedTuple):
    """What is known of a split after its images were read."""

    split: Split
    digest: str
    """Over the labels and the pixels (or, when streamed, the files' contents)."""
    levels: NDArray[np.int64]
    """How often each of 256 values occurs, [channels, 256]."""
    unreadable: tuple[DataError, ...]


class _Group(NamedTuple):
    images: int
    pixels: Pixels
    """Undefined where an image is unreadable: nothing is kept then."""
    contents: bytes
    levels: NDArray[np.int64]
    unreadable: tuple[DataError, ...]


def take_in(part: Part, name: str, form: Form, folder: Path) -> Taken:
    """Read the images of the split `name` and leave its files in `folder`."""
    images = f"{name}.npy" if form.stored else None
    files = None if form.stored else f"{name}-files.txt"
    split = Split(n=len(part.labels), labels=f"{name}-labels.npy", images=images, files=files)
    np.save(folder / split.labels, part.labels)
    total = hashlib.sha256(part.labels.astype("<i8").tobytes())
    levels = np.zeros((form.channels, 256), np.int64)
    unreadable: list[DataError] = []
    with (folder / (images or files or "")).open("wb") as file:
        if form.stored:
            # Not a memory map: writing to one on a full disk kills the process.
            shape = (split.n, form.size, form.size, form.channels)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        else:
            file.writelines(json.dumps(str(path)).encode() + b"\n" for path in part.images)
        for group in _groups(part, f"Reading {name} images", form):
            if form.stored:
                file.write(group.pixels.tobytes())
            total.update(group.contents)
            levels += group.levels
            unreadable.extend(group.unreadable)
    return Taken(split, total.hexdigest(), levels, tuple(unreadable))


def _groups(part: Part, what: str, form: Form) -> Iterator[_Group]:
    images = part.images
    groups = [images[start : start + GROUP] for start in range(0, len(images), GROUP)]
    with bar(what, len(images)) as shown:
        for group in in_order(partial(_read_group, form=form), groups, cores()):
            yield group
            shown.advance(group.images)


def _read_group(images: Pixels | Sequence[Path], form: Form) -> _Group:
    pixels = np.empty((len(images), form.size, form.size, form.channels), np.uint8)
    unreadable = []
    for place, image in enumerate(images):
        try:
            pixels[place] = _read_one(image, form)
        except DataError as error:
            unreadable.append(error)
    if form.stored or unreadable:
        contents = pixels.tobytes()
    else:
        contents = b"".join(file_sha256(path).encode() for path in images)
    levels = [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(pixels, -1, 0)]
    return _Group(len(images), pixels, contents, np.stack(levels), tuple(unreadable))


def _read_one(image: Pixels | Path, form: Form) -> Pixels:
    if isinstance(image, Path):
        return decode(image, form.size, form.channels, form.crop_fraction)
    # Pillow has no image with one channel as a third axis.
    flat = image[..., 0] if image.shape[-1] == 1 else image
    return prepare(Image.fromarray(flat), form.size, form.channels, form.crop_fraction)


def survey(files: Sequence[Path]) -> list[NaturalSize]:
    """The natural sizes of all files with a readable header; `take_in` reports the others."""
    groups = [files[start : start + GROUP] for start in range(0, len(files), GROUP)]
    found: list[NaturalSize] = []
    with bar("Looking at image sizes", len(files)) as shown:
        for group in in_order(_sizes, groups, cores()):
            found.extend(group)
            shown.advance(GROUP)
    return found


def _sizes(files: Sequence[Path]) -> list[NaturalSize]:
    found = []
    for path in files:
        with suppress(DataError):
            found.append(natural_size(path))
    return found


def mean_and_std(levels: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, of values in 0..1, from how often each level occurs."""
    values = np.arange(256) / 255
    shares = levels / levels.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())
