"""Where images come from: one file a source, found by its name.

A source module exposes ``find(where)``, which makes sure that the raw files are there, stats them
without reading them, and returns a `Source`. It does not split, scale, check pixels or store
anything: the data stage does that alike for all. To add a source, write ``sources/<name>.py`` and
add its name to `pipeline.stages.data.Data.source`.
"""

import hashlib
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

SHOWN = 10
"""Names in an error message."""


class Where(NamedTuple):
    """Where to look, and whether to fetch what is not there."""

    folder: Path | None
    download: bool


@dataclass(frozen=True)
class Part:
    """Some images with their labels, as the source has them."""

    images: NDArray[np.uint8] | Sequence[Path]
    """An array [n, height, width, channels], or the files."""
    labels: NDArray[np.int64]
    """Indices into `Raw.labels`, [n]."""

    def pick(self, rows: NDArray[np.bool_]) -> "Part":
        """The images where the mask `rows` is true, in order."""
        if isinstance(self.images, np.ndarray):
            return Part(self.images[rows], self.labels[rows])
        return Part([self.images[i] for i in np.flatnonzero(rows).tolist()], self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a source has; parts that it lacks are cut from `train` later."""

    labels: tuple[str, ...]
    train: Part
    test: Part | None = None
    val: Part | None = None

    def parts(self) -> dict[str, Part]:
        """The parts that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source whose files are there, not yet read."""

    title: str
    """For people."""
    licence: str
    fingerprint: str
    """Changes when the raw files change."""
    read: Callable[[], Raw]


class File(NamedTuple):
    """A raw file as the file system lists it."""

    name: str
    """Relative to its root, with forward slashes."""
    size: int
    """In bytes; -1 for a link that leads nowhere."""
    mtime_ns: int


def names() -> list[str]:
    """Names of all sources, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str, where: Where) -> Source:
    """Ask the source of that name for its files."""
    return importlib.import_module(f"pipeline.sources.{name}").find(where)


def walk(root: Path) -> Iterator[File]:
    """All files below `root` but hidden ones; links are followed, unless they lead in a circle.

    Raises `DataError` where a folder cannot be listed.
    """
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unlistable):
        folders[:] = sorted(x for x in folders if x[0] != "." and not _circular(folder, x))
        prefix = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        for name in sorted(files):
            if name[0] != ".":
                yield stat_file(f"{folder}/{name}", prefix.removeprefix("./") + name)


def stat_file(path: str, name: str) -> File:
    """What the file system says of `path`, under the name `name`."""
    try:
        facts = os.stat(path)  # noqa: PTH116  (a Path for each of a million files costs seconds)
    except OSError:
        return File(name, -1, -1)
    return File(name, facts.st_size, facts.st_mtime_ns)


def _circular(folder: str, name: str) -> bool:
    link, here = Path(folder, name), Path(folder)
    if not link.is_symlink():
        return False
    target = link.resolve()
    # Above `here` by the names it was reached by, or by where it lies.
    return target in (x.resolve() for x in (here, *here.parents)) or here.resolve().is_relative_to(
        target
    )


def _unlistable(error: OSError) -> None:
    raise DataError(
        f"cannot list the folder {error.filename}: {error.strerror}",
        "Make it readable for you, or move it elsewhere.",
    ) from error


def fingerprint(files: Iterable[File], *more: str) -> str:
    """A hash of what is known of `files` without opening them, and of `more`."""
    total = hashlib.sha256(repr(more).encode())
    for file in files:
        total.update(
            f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode(errors="surrogateescape")
        )
    return total.hexdigest()


def listed(names: Iterable[object], separator: str = ", ") -> str:
    """The first few names, and how many more there are: for messages."""
    every = [str(name) for name in names]
    if len(every) > SHOWN:
        every[SHOWN:] = [f"and {len(every) - SHOWN:,} more"]
    return separator.join(every)
