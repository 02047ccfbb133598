"""The formats: one file each, found by its name; importing this package imports none of them.

To add a format, write ``exporters/<format>.py`` with what `Exporter` asks for. The settings file,
the export stage, `doctor` and the contract tests pick it up by themselves.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, cast

from pydantic import Field

from pipeline import settings as shared
from pipeline.contract import Facts
from pipeline.quantized import Quantized
from pipeline.records import Artifact, Checkpoint, Platform, Precision, Result
from pipeline.tolerances import TOLERANCES, Tolerance
from runtime import Availability

CHECKPOINT, QUANTIZED = "checkpoint", "quantized"


class FormatSettings(shared.Settings):
    """What every table [export.<format>] has: how far its files may be from the student."""

    max_difference: float | None = Field(default=None, gt=0)
    """Mean absolute difference of a logit from the float student's, in standard deviations of the
    student's logits, beyond which the run fails; by default the precision decides
    (pipeline/tolerances.py)."""
    max_drop: float | None = Field(default=None, ge=0)
    """Points of top-1 beyond which a loss that is certain (95 %, paired) fails the run; by default
    the precision decides."""

    def tolerance(self, precision: Precision) -> Tolerance:
        """What is allowed to a file of that precision."""
        usual = TOLERANCES[precision]
        return Tolerance(
            usual.difference if self.max_difference is None else self.max_difference,
            usual.drop if self.max_drop is None else self.max_drop,
        )


CHOOSING_KEYS = frozenset({*FormatSettings.model_fields, "precisions", "mobile", "raw"})
"""Keys that decide which files are made and accepted, but no byte of one: no part of its key."""
Output = Literal["logits", "probabilities"]


class Variant(NamedTuple):
    """One file that a format offers, and what it is made from."""

    precision: Precision
    variant: str | None = None
    source: str = CHECKPOINT
    """"checkpoint" (the student), "quantized" (its Q/DQ graphs and calibration images), or the
    title of another artifact, such as "onnx int8 (symmetric)"."""
    platforms: tuple[Platform, ...] = ()
    """Where the file is for: the folders of the bundle that it is put into."""


class Exported(NamedTuple):
    """What `export` left in its folder."""

    file: str
    """Name of the file or directory that is shipped."""
    extras: tuple[str, ...] = ()
    """Names of other files that belong to it."""
    skipped: str | None = None
    """What is still missing of it and why, in words; None where it is complete."""
    notes: tuple[str, ...] = ()
    """What somebody who ships it should know, in sentences."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Everything that files are made from. It can be pickled: some are made in other processes."""

    student: Checkpoint
    facts: Facts
    """What every file says of itself."""
    quantized: Quantized | None = None
    files: Mapping[str, Artifact] = field(default_factory=dict)
    """The files made so far, by their titles."""

    def of(self, variant: Variant) -> Result | None:
        """What `variant` is made from; None where there is none."""
        if variant.source == CHECKPOINT:
            return self.student
        if variant.source == QUANTIZED:
            return self.quantized
        return self.files.get(variant.source)

    def file(self, variant: Variant) -> Artifact:
        """The file that `variant` is made from. Raises TypeError where it is made from no file."""
        if variant.source not in self.files:
            raise TypeError(f"`{variant.source}` is not among the files: {list(self.files)}")
        return self.files[variant.source]

    def graphs(self) -> Quantized:
        """The quantized graphs. Raises TypeError where there are none."""
        if self.quantized is None:
            raise TypeError("int8 is made from a Quantized, and there is none")
        return self.quantized


class Exporter(Protocol):
    """What an exporter module exposes. It imports heavy packages inside its functions only."""

    VERSION: int
    """Raised when the code changes what is written: part of the store's key."""
    PACKAGES: Sequence[str]
    """Distributions whose versions decide the bytes: part of the store's key."""
    EXTRA: str | None
    """The extra that brings them; None where they are plain dependencies."""
    ISOLATED: bool
    """Whether files are made in a process of its own, because foreign code there may crash."""
    Settings: type[FormatSettings]
    """The keys of the table [export.<format>]."""

    def availability(self) -> Availability:
        """Whether files of this format can be made here. Quick; imports nothing heavy."""
        ...

    def variants(self, settings: FormatSettings) -> Sequence[Variant]:
        """The files that `settings` ask for."""
        ...

    def export(
        self, sources: Sources, variant: Variant, settings: FormatSettings, folder: Path
    ) -> Exported:
        """Write one file into `folder`, from what `variant.source` names.

        Raises `UnavailableError` where this machine cannot, `ExportError` where the format cannot
        (the message names the operator and, where it is known, the layer), `NotNeededError` where
        another file of the format does as well.
        """
        ...


def names() -> list[str]:
    """Names of all formats, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Exporter:
    """The exporter module of that name."""
    return cast(Exporter, importlib.import_module(f"exporters.{name}"))
