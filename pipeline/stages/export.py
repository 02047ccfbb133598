"""Exporting: an artifact for each file that the chosen formats offer, or the reason for none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, field_validator, model_validator
from rich.markup import escape

import exporters
from exporters import Exporter, Variant
from pipeline.context import Context
from pipeline.errors import ConfigError, ExportError, UnavailableError
from pipeline.machine import versions
from pipeline.progress import console, track
from pipeline.quantized import Quantized
from pipeline.records import Artifact, Checkpoint, Result
from pipeline.settings import Settings, read_table
from pipeline.store import file_sha256, size_of

FIRST = "onnx"
"""Made before all others: some of them start from its files."""


class Export(Settings):
    """The table [export]; each format's own keys are in the table [export.<format>]."""

    model_config = ConfigDict(extra="allow")

    formats: tuple[str, ...] = ("onnx", "coreml", "tensorrt", "tensorrt_rtx")
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
            raise ValueError(f"`{FIRST}` must be among the formats: it is what is measured")
        return formats

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        extra = self.model_extra or {}
        for name, table in extra.items():
            extra[name] = _format_settings(name, table)
        return self

    def settings_of(self, name: str) -> Settings:
        """The keys of [export.<name>], or their defaults."""
        return (self.model_extra or {}).get(name) or exporters.load(name).Settings()

    def run(
        self, context: Context, student: Checkpoint, quantized: Quantized | None
    ) -> list[Artifact]:
        """Every file of every format, in a fixed order."""
        sources: dict[str, Result] = {"checkpoint": student}
        if quantized is not None:
            sources["quantized"] = quantized
        files = [
            (name, variant)
            for name in sorted(self.formats, key=lambda name: name != FIRST)
            for variant in exporters.load(name).variants(self.settings_of(name))
        ]
        artifacts: list[Artifact] = []
        for name, variant in track(files, "export", len(files)):
            artifact = self._one(context, name, variant, sources)
            artifacts.append(artifact)
            if artifact.file is not None:
                sources[artifact.title] = artifact
        return artifacts

    def _one(
        self,
        context: Context,
        name: str,
        variant: Variant,
        sources: Mapping[str, Result],
    ) -> Artifact:
        exporter, settings = exporters.load(name), self.settings_of(name)
        blank = Artifact(format=name, precision=variant.precision, variant=variant.variant)
        if variant.source not in sources:
            off = variant.source == "quantized"
            why = "quantize.enabled is false" if off else "it was not made"
            return blank.model_copy(update={"skipped": f"needs {variant.source}, and {why}"})
        available = exporter.availability()
        if not available.ok:
            why = f"{available.detail}. {available.remedy}".strip()
            return blank.model_copy(update={"skipped": why})
        source = sources[variant.source]
        facts = {
            "variant": variant._asdict(),
            "version": exporter.VERSION,
            "available": available.detail,
            **versions(*exporter.PACKAGES),
        }
        try:
            return context.store.get(
                Artifact,
                f"export-{name}",
                lambda folder: _make(exporter, blank, source, variant, settings, folder),
                version=1,
                settings=settings,
                parents=[source],
                facts=facts,
            )
        except (UnavailableError, ExportError) as error:
            if name == FIRST and variant.precision != "fp16":
                raise
            # One format's refusal must not cost the others; nor must weights too large for fp16.
            console.print(f"[yellow]{escape(f'{blank.title}: {error.message}')}[/]")
            return blank.model_copy(update={"skipped": f"{error.message}. {error.remedy}".strip()})


def _format_settings(name: str, table: Any) -> Settings:
    if name not in exporters.names():
        raise ConfigError(
            f"export.{name}: unknown key or format",
            remedy=f"Keys: formats; formats: {', '.join(exporters.names())}.",
        )
    return read_table(table, exporters.load(name).Settings, ("export", name))


def _make(
    exporter: Exporter,
    blank: Artifact,
    source: Result,
    variant: Variant,
    settings: Settings,
    folder: Path,
) -> Artifact:
    made = exporter.export(source, variant, settings, folder)
    path = folder / made.file
    return blank.model_copy(
        update={
            "file": made.file,
            "extras": made.extras,
            "skipped": made.skipped,
            "bytes": size_of(path),
            "sha256": file_sha256(path),
        }
    )
