"""Images to verify an export with: a run's own, a folder of the user's, or noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.context import Context
from pipeline.errors import DataError
from pipeline.images import IMAGE_SUFFIXES, spread
from pipeline.ingest import Form, Taken, take_in
from pipeline.records import Checkpoint, Dataset
from pipeline.sources import Part, fingerprint, listed, stat_file, walk
from pipeline.store import Store
from pipeline.summary import Report

LEAST = 2
"""Images that can be told apart into some to calibrate with and some to verify with."""
MOST = 2048
"""Of the others than those that verify: more would only be waited for."""
NOISE = 64
"""Pictures of noise that files are compared on where there are no images."""


def class_folders(images: Path) -> tuple[str, ...]:
    """The names of the folders that hold images, in the order of a run's classes.

    Raises `DataError` where `images` is no folder of class folders.
    """
    files = _files(images)
    names = {path.parent.name for path in files}
    loose = [path.name for path in files if path.parent == images.absolute()]
    if loose or len(names) < 2:
        wrong = f"{listed(loose)} in no class folder" if loose else f"{len(names)} class folders"
        raise DataError(
            f"--images: {images} has {wrong}", "Lay them out as <folder>/<class>/<image>."
        )
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numbers else None))


def _files(images: Path) -> list[Path]:
    if not images.is_dir():
        raise DataError(f"--images: {images} is no folder", "Name a folder of class folders.")
    base = images.absolute()
    names = [file.name for file in walk(base)]
    return [base / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]


def of_run(report: Report, context: Context) -> Dataset:
    """The images of a run. Raises `DataError` where the store has them not."""
    for home in sorted((context.store.root / "data").glob("*")):
        found = Store.load(Dataset, home)
        if found is not None and found.digest == report.dataset.digest:
            context.store.refer(found)
            return found
    raise DataError(
        f"the images of run '{report.run}' are not in the store {context.store.root}",
        "Name images with --images, or run it again.",
    )


def given(images: Path, student: Checkpoint, verify: int, context: Context) -> Dataset:
    """The images below `images`: `verify` of them as the test split, the others to calibrate.

    Raises `DataError` where there are too few, or classes that the student has not.
    """
    part = _labelled(images, student)
    n = len(part.labels)
    chosen = np.zeros(n, bool)
    chosen[spread(min(verify, n // 2), n)] = True
    others = np.zeros(n, bool)
    left = np.flatnonzero(~chosen)
    others[left[spread(MOST, len(left))]] = True
    parts = {"train": part.pick(others), "test": part.pick(chosen)}
    form = Form(student.input.size, student.input.channels, 1.0, stored=True)

    def work(folder: Path) -> Dataset:
        taken = {name: take_in(each, name, form, folder) for name, each in parts.items()}
        broken = [error for each in taken.values() for error in each.unreadable]
        if broken:
            raise broken[0]
        return _record("images given to verify with", student, taken)

    facts = {"files": fingerprint([stat_file(str(path), str(path)) for path in part.images])}
    settings = {"verify": verify, "form": form._asdict()}
    return context.store.get(
        Dataset, "images", work, version=1, settings=settings, parents=[student], facts=facts
    )


def _labelled(images: Path, student: Checkpoint) -> Part:
    files = _files(images)
    if len(files) < LEAST:
        raise DataError(
            f"--images: {len(files)} images in {images}", "Lay them out as <folder>/<class>/..."
        )
    place = {label: number for number, label in enumerate(student.labels)}
    strange = sorted({path.parent.name for path in files} - set(place))
    if strange:
        raise DataError(
            f"--images: the student has no class called {listed(strange)}",
            f"Its classes are {listed(student.labels)}; name the folders so, or give --labels.",
        )
    return Part(files, np.array([place[path.parent.name] for path in files], np.int64))


def _record(source: str, student: Checkpoint, taken: Mapping[str, Taken]) -> Dataset:
    train, test = taken["train"], taken["test"]
    return Dataset(
        source=source,
        labels=student.labels,
        input=student.input,
        train=train.split,
        val=train.split,
        test=test.split,
        digest=hashlib.sha256(f"{train.digest} {test.digest}".encode()).hexdigest(),
    )


def noise(student: Checkpoint, context: Context) -> Dataset:
    """Pictures of nothing, from coarse to fine: enough to compare a file with the student."""
    spec = student.input

    def work(folder: Path) -> Dataset:
        rng = np.random.default_rng(0)
        shape = (NOISE, spec.size, spec.size, spec.channels)
        pixels = np.empty(shape, np.uint8)
        for row in range(NOISE):
            cells = 2 ** (1 + row % 6)
            coarse = rng.integers(0, 256, (cells, cells, spec.channels))
            grid = np.arange(spec.size) * cells // spec.size
            pixels[row] = coarse[grid][:, grid]
        part = Part(pixels, np.zeros(NOISE, np.int64))
        form = Form(spec.size, spec.channels, 1.0, stored=True)
        taken = {name: take_in(part, name, form, folder) for name in ("train", "test")}
        return _record("noise", student, taken)

    return context.store.get(
        Dataset, "images", work, version=1, settings={"noise": NOISE}, parents=[student]
    )
