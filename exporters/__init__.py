"""The formats: one file each, found by its name; importing this package imports none of them.

To add a format, write ``exporters/<format>.py`` with what `Exporter` asks for. The settings file,
the export stage, `doctor` and the contract tests pick it up by themselves.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from pipeline import settings as shared
from pipeline.records import Precision, Result
from runtime import Availability


class Variant(NamedTuple):
    """One file that a format offers, and what it is made from."""

    precision: Precision
    variant: str | None = None
    source: str = "checkpoint"
    """"checkpoint" (the student), "quantized" (its Q/DQ graphs), or the title of an ONNX artifact,
    such as "onnx int8 (symmetric)"."""


class Exported(NamedTuple):
    """What `export` left in its folder."""

    file: str
    """Name of the file or directory that is shipped."""
    extras: tuple[str, ...] = ()
    """Names of other files that belong to it."""
    skipped: str | None = None
    """What is still missing of it and why, in words; None where it is complete."""


class Exporter(Protocol):
    """What an exporter module exposes. It imports heavy packages inside its functions only."""

    VERSION: int
    """Raised when the code changes what is written: part of the store's key."""
    PACKAGES: Sequence[str]
    """Distributions whose versions decide the bytes: part of the store's key."""
    EXTRA: str | None
    """The extra that brings them; None where they are plain dependencies."""
    EXECUTED: str
    """Why no runtime of this project executes the file here; empty where one does."""
    Settings: type[shared.Settings]
    """The keys of the table [export.<format>]."""

    def availability(self) -> Availability:
        """Whether files of this format can be made here. Quick; imports nothing heavy."""
        ...

    def variants(self, settings: shared.Settings) -> Sequence[Variant]:
        """The files that `settings` ask for."""
        ...

    def export(
        self, source: Result, variant: Variant, settings: shared.Settings, folder: Path
    ) -> Exported:
        """Write one file into `folder`.

        `source` is a `Checkpoint`, a `Quantized` or an ONNX `Artifact`, as `variant.source` says.
        Raises `UnavailableError` where this machine cannot, `ExportError` where the format cannot.
        """
        ...


def names() -> list[str]:
    """Names of all formats, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Exporter:
    """The exporter module of that name."""
    return cast(Exporter, importlib.import_module(f"exporters.{name}"))
