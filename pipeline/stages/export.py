"""Exporting: an artifact for each file that the chosen formats offer, or the reason for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, field_validator, model_validator
from rich.markup import escape

import exporters
from exporters import CHOOSING_KEYS, QUANTIZED, FormatSettings, Sources, Variant
from pipeline.context import Context
from pipeline.contract import LICENCE_UNKNOWN, Facts
from pipeline.errors import ConfigError, ExportError, NotNeededError, UnavailableError
from pipeline.machine import versions
from pipeline.progress import console, track
from pipeline.quantized import Quantized
from pipeline.records import Artifact, Checkpoint
from pipeline.settings import Settings, read_table
from pipeline.store import file_sha256, size_of
from pipeline.workshop import Workshop

FIRST = "onnx"
"""Made before all others: some of them start from its files."""
OFF = "quantize.enabled is false"


class Export(Settings):
    """The table [export]; each format's own keys are in the table [export.<format>]."""

    model_config = ConfigDict(extra="allow")

    formats: tuple[str, ...] = (
        *("onnx", "ort", "coreml", "litert", "executorch", "tensorrt", "tensorrt_rtx"),
    )
    """Names of the modules in exporters/; onnx is always among them."""

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        known = exporters.names()
        for name in formats:
            if name not in known:
                raise ValueError(f"no format is called `{name}`; there are: {', '.join(known)}")
        if len(set(formats)) < len(formats):
            raise ValueError("names a format twice")
        if FIRST not in formats:
            raise ValueError(f"`{FIRST}` must be among the formats: others are made from its files")
        return formats

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        extra = self.model_extra or {}
        for name, table in extra.items():
            extra[name] = _format_settings(name, table)
        return self

    def settings_of(self, name: str) -> FormatSettings:
        """The keys of [export.<name>], or their defaults."""
        return (self.model_extra or {}).get(name) or exporters.load(name).Settings()

    def run(
        self,
        context: Context,
        student: Checkpoint,
        quantized: Quantized | None,
        licence: str = LICENCE_UNKNOWN,
        unquantized: str = OFF,
    ) -> list[Artifact]:
        """Every file of every format, in a fixed order.

        `licence` is that of the images the student was trained on, `unquantized` why there is no
        int8 where there is none.
        """
        files: dict[str, Artifact] = {}
        sources = Sources(
            student=student,
            facts=Facts.of(student, licence),
            quantized=quantized,
            files=files,
        )
        wanted = [
            (name, variant)
            for name in sorted(self.formats, key=lambda name: name != FIRST)
            for variant in exporters.load(name).variants(self.settings_of(name))
        ]
        artifacts: list[Artifact] = []
        with Workshop(context.threads) as workshop:
            for name, variant in track(wanted, "export", len(wanted)):
                artifact = self._one(context, workshop, name, variant, sources, unquantized)
                artifacts.append(artifact)
                if artifact.file is not None:
                    files[artifact.title] = artifact
        return artifacts

    def _one(
        self,
        context: Context,
        workshop: Workshop,
        name: str,
        variant: Variant,
        sources: Sources,
        unquantized: str,
    ) -> Artifact:
        exporter, settings = exporters.load(name), self.settings_of(name)
        blank = Artifact(
            format=name,
            precision=variant.precision,
            variant=variant.variant,
            platforms=variant.platforms,
        )
        source = sources.of(variant)
        if source is None:
            why = unquantized if variant.source == QUANTIZED else "it was not made"
            return blank.model_copy(update={"skipped": f"needs {variant.source}, and {why}"})
        available = exporter.availability()
        if not available.ok:
            return blank.model_copy(update={"skipped": available.in_full})
        made_from = source if isinstance(source, Artifact) else settings
        output = getattr(made_from, "output", blank.output)
        blank = blank.model_copy(update={"output": output})
        facts = {
            "variant": variant._asdict(),
            "version": exporter.VERSION,
            "available": available.detail,
            "facts": sources.facts,
            **versions(*exporter.PACKAGES),
        }
        try:
            return context.store.get(
                Artifact,
                f"export-{name}",
                lambda folder: _make(workshop, blank, sources, variant, settings, folder),
                version=2,
                settings=settings.model_dump(exclude=set(CHOOSING_KEYS)),
                parents=[source, sources.student],
                facts=facts,
            )
        except (UnavailableError, ExportError) as error:
            plain = variant.precision != "fp16" and variant.variant is None
            if name == FIRST and plain and not isinstance(error, NotNeededError):
                raise
            # One format's refusal must not cost the others; nor must weights too large for fp16.
            if not isinstance(error, NotNeededError):
                console.print(f"[yellow]{escape(f'{blank.title}: {error.message}')}[/]")
            return blank.model_copy(update={"skipped": error.in_full})


def _format_settings(name: str, table: Any) -> FormatSettings:
    if name not in exporters.names():
        raise ConfigError(
            f"export.{name}: unknown key or format",
            remedy=f"Keys: formats; formats: {', '.join(exporters.names())}.",
        )
    return read_table(table, exporters.load(name).Settings, ("export", name))


def _make(
    workshop: Workshop,
    blank: Artifact,
    sources: Sources,
    variant: Variant,
    settings: FormatSettings,
    folder: Path,
) -> Artifact:
    made = workshop.export(blank.format, sources, variant, settings, folder)
    path = folder / made.file
    return blank.model_copy(
        update={
            "file": made.file,
            "extras": made.extras,
            "skipped": made.skipped,
            "notes": made.notes,
            "bytes": size_of(path),
            "sha256": file_sha256(path),
        }
    )
