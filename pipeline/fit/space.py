"""What is searched: family, width, stride of the stem and resolution of the student.

Its precision is searched too, but costs no trial: all files of a network are looked at together.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

import models
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.machine import package_version
from pipeline.records import Record
from pipeline.settings import Student, StudentArch

WIDTHS = (0.25, 0.35, 0.5, 0.65, 0.75, 1.0, 1.4)
"""Multipliers: about those of the papers of MobileNetV2 and V3, and smaller ones."""
ROWS = (1.0, 0.75, 0.5)
"""Resolutions, as shares of the image set's own, where that is large."""
STEP = 32
"""Pixels that large resolutions are multiples of: what the networks halve it by."""


class Network(Record):
    """A student, untrained."""

    arch: StudentArch
    width: float
    stem_stride: int
    size: int
    """Pixels."""

    @property
    def title(self) -> str:
        """In words."""
        width = f" ×{self.width:g}" if self.width != 1 else ""
        return f"{self.arch}{width}, stem {self.stem_stride}, {self.size} px"

    def student(self, config: Config) -> Student:
        """The table [student] of `config` with this network in it."""
        own = {"arch": self.arch, "width": self.width, "stem_stride": self.stem_stride}
        return Student.model_validate(config.student.model_dump() | own)


class Space(NamedTuple):
    """The parts that networks are put together from."""

    archs: tuple[StudentArch, ...]
    widths: tuple[float, ...]
    """The smallest first."""
    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    """Pixels, the most first."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def network(self, arch: StudentArch, width: float, stride: int, size: int) -> Network:
        """The network of these parts; the width of one that has no multiplier is 1."""
        return Network(
            arch=arch, width=width if has_widths(arch) else 1.0, stem_stride=stride, size=size
        )

    @property
    def networks(self) -> list[Network]:
        """All of them, each once."""
        parts = product(self.archs, self.widths, self.strides, self.sizes)
        return list(dict.fromkeys(self.network(*each) for each in parts))


def has_widths(arch: str) -> bool:
    """Whether the network has a width multiplier."""
    return not arch.startswith("mobilenet_v4")


def of(config: Config, size: int, sizes: Sequence[int] = ()) -> Space:
    """What may be searched for `config`, whose images have `size` pixels.

    With `sizes` those resolutions; by default large images are also tried smaller, and of small
    ones the stem's stride. Raises `ConfigError` where a setting belongs to one network alone.
    """
    if config.quantize.float_layers:
        raise ConfigError(
            "quantize.float_layers names layers of one network, and others are to be tried",
            "Leave it out: --set quantize.float_layers=[]",
        )
    archs, widths, notes = _networks(config)
    small = size <= models.SMALL_IMAGE
    if not sizes:
        shares = (1.0,) if small else ROWS
        scaled = [max(STEP, round(size * share / STEP) * STEP) for share in shares[1:]]
        sizes = [size, *(each for each in scaled if each < size)]
    return Space(
        archs=archs,
        widths=widths,
        strides=(1, 2) if small else (2,),
        sizes=tuple(sorted(set(sizes), reverse=True)),
        notes=tuple(notes),
    )


def _networks(config: Config) -> tuple[tuple[StudentArch, ...], tuple[float, ...], list[str]]:
    """Families and widths that can be built here and started as `config` says."""
    start = config.student.pretrained
    if start is not None and isinstance(start.weights, Path):
        own = config.student.arch, config.student.width
        note = f"student.pretrained is a file of {own[0]} ×{own[1]:g}: no other network is tried"
        return (own[0],), (own[1],), [note]
    archs: tuple[StudentArch, ...] = get_args(StudentArch)
    notes = []
    if package_version("timm") is None:
        archs = tuple(arch for arch in archs if has_widths(arch))
        notes.append("mobilenet_v4 is left out: it needs timm, which is not installed")
    if start is not None:
        notes.append("student.pretrained is a hub's, which has weights of width 1 alone")
        return archs, (1.0,), notes
    return archs, WIDTHS, notes
