"""Data: any image set becomes one checked `Dataset` with three splits and its input contract.

Image size, channels and normalisation are fixed here, once. All that can be wrong with a set is
said here too, before hours of training: every image is read, whole.
"""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import PIL
from pydantic import Field, model_validator

from pipeline import sources
from pipeline.context import Context
from pipeline.errors import DataError
from pipeline.images import NaturalSize
from pipeline.ingest import Form, Taken, mean_and_std, survey, take_in
from pipeline.progress import console
from pipeline.records import Dataset, InputSpec
from pipeline.settings import Settings
from pipeline.sources import Part, Raw, Source, Where, listed
from pipeline.splits import stratified

LARGEST, SMALLEST = 224, 8
"""Bounds of a size nobody asked for: ImageNet's usual, and what a network can halve thrice."""
FLATTEST = 1 / 255
"""Smallest std, one grey level: a channel without contrast must not be divided by zero."""

Parts = dict[str, Part]


class Data(Settings):
    """The table [data]: which images, in what form, and how they are split."""

    source: Literal["fashion_mnist", "digits", "cifar10", "cifar100", "folder"] = "fashion_mnist"
    """A public set, or `folder` for your own images: one folder a class."""
    folder: Path | None = None
    """Where the files are, relative to the current folder; needed by `folder`, whose classes are
    numbered by their names (as numbers if all are). Public sets are looked for here, else below
    data/."""
    size: int | None = Field(default=None, ge=SMALLEST, le=1024)
    """Height and width in pixels. By default the set's own; for a folder the shorter side that all
    images share, else its median, but at least 8 and at most 224."""
    channels: Literal[1, 3] | None = None
    """1 is grey, 3 is RGB. By default 1 if every file stores grey values, else 3."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images set aside to watch training and choose settings by; stratified.
    Unused where a folder has val/ beside test/."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of all images set aside for the final test, stratified; used only where the source has
    no test split of its own."""
    seed: int = Field(default=0, ge=0)
    """Decides the splits and the subsets; nothing else."""
    limit_train: int | None = Field(default=None, ge=1)
    """Use only so many training images, validation included; a stratified subset, for trials."""
    limit_test: int | None = Field(default=None, ge=1)
    """Use only so many test images; a stratified subset, for trials."""
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the centre square's side that is kept; 0.875 is usual for ImageNet."""
    mean: tuple[float, ...] | None = None
    """Normalisation by channel, of values in 0..1; by default the training split's own. Give those
    that a teacher's checkpoint was trained with. Goes together with `std`."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Normalisation by channel, of values in 0..1; by default the training split's own."""
    memory_limit_mb: int = Field(default=4096, ge=0)
    """MiB of pixels up to which a set is stored decoded; larger ones are decoded batch by batch."""
    download: bool = True
    """Whether a public set that is not on this machine may be fetched."""
    licence: str | None = None
    """Terms of the images, for the report; by default what is known of the source."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.source == "folder" and self.folder is None:
            raise ValueError('source = "folder" needs `folder`: set it to where the images are')
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` go together: set both or neither")
        if wrong := self._misfit(self.channels):
            raise ValueError(f"{wrong}: give `mean` and `std` one number a channel, or neither")
        return self

    def _misfit(self, channels: int | None) -> str:
        """What is wrong with the number of `mean` and `std`; "" if nothing."""
        if self.mean is None or self.std is None:
            return ""
        means, stds = len(self.mean), len(self.std)
        if means == stds and (means in (1, 3) if channels is None else means == channels):
            return ""
        wanted = "1 or 3" if channels is None else channels
        return f"{means} means and {stds} stds for {wanted} channels"

    def run(self, context: Context) -> Dataset:
        """Check, split and store the images.

        Raises `DataError` for whatever is wrong with them, naming the files.
        """
        # In turn: it may fetch the set, which one process must do.
        source = context.team.in_turn(
            lambda: sources.find(self.source, Where(self.folder, self.download))
        )
        return context.store.get(
            Dataset,
            "data",
            lambda folder: self._work(source, folder),
            version=1,
            settings=self,
            facts={"files": source.fingerprint, "pillow": PIL.__version__},
        )

    def _work(self, source: Source, folder: Path) -> Dataset:
        raw = source.read()
        _check_counts(raw, source.title)
        parts = self._cut(raw)
        form = self._form(parts)
        taken = {name: take_in(part, name, form, folder) for name, part in parts.items()}
        _check_readable(taken)
        spec = self._contract(form, taken["train"])
        return Dataset(
            source=source.title,
            labels=raw.labels,
            input=spec,
            crop_fraction=self.crop_fraction,
            train=taken["train"].split,
            val=taken["val"].split,
            test=taken["test"].split,
            digest=_digest(raw.labels, spec, self.crop_fraction, taken),
            licence=self.licence or source.licence,
        )

    def _cut(self, raw: Raw) -> Parts:
        """The three splits. Each cut has its own stream of chance, so that none moves another."""
        train, val, test = raw.train, raw.val, raw.test
        keep = 1 if val else 2
        if test is None:
            total = round(self.test_fraction * len(train.labels))
            rows = stratified(train.labels, total, (self.seed, 0), spare=keep)
            train, test = train.pick(~rows), train.pick(rows)
        train = _limited(train, self.limit_train, (self.seed, 1), keep, "limit_train")
        test = _limited(test, self.limit_test, (self.seed, 2), 1, "limit_test")
        if val is None:
            total = round(self.validation_fraction * len(train.labels))
            rows = stratified(train.labels, total, (self.seed, 3), spare=1)
            train, val = train.pick(~rows), train.pick(rows)
        return {"train": train, "val": val, "test": test}

    def _form(self, parts: Parts) -> Form:
        images = [part.images for part in parts.values()]
        size, channels = self.size, self.channels
        if size is None or channels is None:
            own_size, own_channels = _own_form(parts, announce=size is None)
            size, channels = size or own_size, channels or own_channels
        if wrong := self._misfit(channels):
            raise DataError(wrong, "Give data.mean and data.std one number a channel, or neither.")
        count = sum(len(each) for each in images)
        wanted = count * size * size * channels / 2**20
        fits = wanted <= self.memory_limit_mb
        if not fits and isinstance(images[0], np.ndarray):
            raise DataError(
                f"{count:,} images of {size}x{size}x{channels} take {wanted:,.0f} MiB, "
                f"more than memory_limit_mb = {self.memory_limit_mb:,}",
                "Lower `size`, set limit_train and limit_test, or raise memory_limit_mb.",
            )
        return Form(size, channels, self.crop_fraction, stored=fits)

    def _contract(self, form: Form, train: Taken) -> InputSpec:
        mean, std = mean_and_std(train.levels)
        if max(std) == 0:
            raise DataError("all training images are one flat colour", "Are these the right files?")
        if self.mean is not None and self.std is not None:
            mean, std = self.mean, self.std
        std = tuple(max(each, FLATTEST) for each in std)
        return InputSpec(size=form.size, channels=form.channels, mean=mean, std=std)


def _own_form(parts: Parts, announce: bool) -> tuple[int, Literal[1, 3]]:
    """Size and channels as the images have them; `announce` says so where images differ."""
    first = parts["train"].images
    if isinstance(first, np.ndarray):
        _, height, width, channels = first.shape
        return min(height, width), 1 if channels == 1 else 3
    files = [path for part in parts.values() for path in part.images]
    # Without a readable header there is nothing to choose from; reading says which and why.
    found = survey(files) or [NaturalSize(SMALLEST, SMALLEST, grey=True)]
    sides = [min(each.width, each.height) for each in found]
    median = statistics.median_low(sides)
    size = min(max(median, SMALLEST), LARGEST)
    if announce and (min(sides) != max(sides) or size != median):
        console.print(
            f"data: images are brought to {size}x{size}; their shorter sides are "
            f"{min(sides)} to {max(sides)} px, median {median} (`size` decides otherwise)",
            highlight=False,
        )
    return size, 1 if all(each.grey for each in found) else 3


def _limited(part: Part, limit: int | None, seed: tuple[int, int], least: int, key: str) -> Part:
    if limit is None or limit >= len(part.labels):
        return part
    classes = len(np.unique(part.labels))
    if limit < least * classes:
        what = f"{key} = {limit} is too few for {classes} classes"
        raise DataError(what, f"Set it to {least * classes} or more.")
    return part.pick(stratified(part.labels, limit, seed, least=least))


def _check_counts(raw: Raw, title: str) -> None:
    """Every class needs images in every part, and enough of them for the cuts to come."""
    if len(raw.labels) < 2:
        what = f"only one class, {listed(raw.labels)}, in {title}"
        raise DataError(what, "A classifier needs at least two: one folder each.")
    cuts = [cut for cut, part in (("validation", raw.val), ("test", raw.test)) if part is None]
    for name, part in raw.parts().items():
        needed = 1 + len(cuts) if name == "train" else 1
        counts = np.bincount(part.labels, minlength=len(raw.labels))
        few = [f"{raw.labels[i]} ({counts[i]})" for i in np.flatnonzero(counts < needed)]
        if not few:
            continue
        reason = f": {' and '.join(cuts)} images are cut from them" if needed > 1 else ""
        raise DataError(
            f"too few {name} images in {title}; each class needs at least {needed}{reason}. "
            f"Short of that: {listed(few)}",
            "Add images to these classes or leave the classes out.",
        )


def _check_readable(taken: dict[str, Taken]) -> None:
    broken = [error for each in taken.values() for error in each.unreadable]
    if not broken:
        return
    total = sum(each.split.n for each in taken.values())
    lines = listed((error.message for error in broken), "\n  ")
    raise DataError(
        f"{len(broken):,} of {total:,} images cannot be used:\n  {lines}", broken[0].remedy
    )


def _digest(
    labels: tuple[str, ...],
    spec: InputSpec,
    crop_fraction: float,
    taken: dict[str, Taken],
) -> str:
    facts: dict[str, object] = {
        "labels": labels,
        "input": spec.model_dump(mode="json"),
        "crop_fraction": crop_fraction,
        "splits": {name: each.digest for name, each in taken.items()},
    }
    if any(each.split.files for each in taken.values()):
        # The splits' digests are of files then, and another decoder makes other pixels of them.
        facts["pillow"] = PIL.__version__
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
