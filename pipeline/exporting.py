"""Exporting a checkpoint alone: files, verification and bundle, without training anything.

The second half of `flow.run`, for a student that is there: one of a run, or anybody's weights. Of a
run's student the run's own images calibrate int8 and verify; otherwise they come from a folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from pydantic import ValidationError
from rich.markup import escape

from pipeline import assemble, bundle, config, verification
from pipeline.context import Context
from pipeline.contract import LICENCE_UNKNOWN
from pipeline.errors import ConfigError, DataError, ExportError
from pipeline.images import open_split
from pipeline.imported import SUFFIXES, Origin, find
from pipeline.machine import environment
from pipeline.progress import console
from pipeline.quantized import Quantized
from pipeline.records import Artifact, Checkpoint, Dataset, Measurement
from pipeline.settings import Augment, Settings, explain
from pipeline.stages import report as pages
from pipeline.stages.export import OFF, Export
from pipeline.stages.measure import Measure, Measured
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from pipeline.summary import STATE, Report
from pipeline.supplied import class_folders, given, noise, of_run

LIGHT = {"fine_tune": {"epochs": 0}, "sensitivity_images": 0, "cpu_images": 0}
"""Without fine-tuning, sensitivities and other CPUs, which take minutes."""


class Chosen(Settings):
    """What `--set` may change: the tables that a run has from here on."""

    quantize: Quantize = Quantize()
    """How int8 is made; unless a run or `--set` says otherwise, as `LIGHT` has it."""
    export: Export = Export()
    """Formats and their keys."""
    measure: Measure = Measure()
    """How latency is taken."""


class Request(NamedTuple):
    """What was asked for on the command line."""

    checkpoint: str
    formats: tuple[str, ...]
    """Names of formats; empty: those of the settings."""
    images: Path | None
    """A folder with one folder of images a class."""
    verify: int
    """Images to verify with; others calibrate int8."""
    origin: Origin
    name: str | None
    overrides: Sequence[str]
    command: str


def run(request: Request, store: Store, runs: Path) -> tuple[Path, Report | None]:
    """Export, verify, and fill runs/<name>: its folder, and its report where there are images.

    Without images the files are compared with the student on noise, and there is no int8.
    Raises `CheckpointError`, `ConfigError`, `DataError` or `VerificationError`.
    """
    folder = _folder(request, runs)
    with store.referred_by(folder):
        return folder, _run(request, context_of(store), runs, folder)


def _run(request: Request, context: Context, runs: Path, folder: Path) -> Report | None:
    since = time.perf_counter()
    named = class_folders(request.images) if request.images is not None else None
    student, past = find(request.checkpoint, request.origin, named, context, runs)
    chosen = _chosen(request, past)
    console.print(escape(student.line), highlight=False, soft_wrap=True)
    dataset = None
    if request.images is not None:
        dataset = given(request.images, student, request.verify, context)
    elif past is not None:
        dataset = of_run(past, context)
    quantized, why = None, "there are no images to calibrate with: name some with --images"
    if dataset is not None:
        quantized, why = _quantize(chosen.quantize, context, student, dataset)
    licence = dataset.licence if dataset else LICENCE_UNKNOWN
    artifacts = chosen.export.run(context, student, quantized, licence, why)
    shown = dataset or noise(student, context)
    measured = chosen.measure.run(context, [student], artifacts, shown)
    _say(measured.artifacts)
    verification.verify(
        *(context, chosen.export, measured.models[0], measured.artifacts, shown),
        labelled=dataset is not None,
    )
    console.print(f"In all {time.perf_counter() - since:.1f} s.")
    report = None
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if dataset is None:
            bundle.write_bare(artifacts, folder)
            pages.remove(folder)
        else:
            report = _report(folder.name, request.command, chosen, dataset, quantized, measured)
            bundle.write(report, dataset, measured.artifacts, folder)
            pages.write(report, folder)
    return report


def _folder(request: Request, runs: Path) -> Path:
    """Where it goes. Raises `ConfigError` where a run's results would be lost."""
    path = Path(request.checkpoint)
    stem = path.stem if path.suffix in SUFFIXES else path.name
    folder = runs / (request.name or f"{stem}-export")
    if (folder / STATE).exists():
        raise ConfigError(
            f"{folder} holds the results of a run", remedy="Choose another --name for this export."
        )
    return folder


def context_of(store: Store) -> Context:
    """What an export works with: the CPU, and one seed for whatever is drawn."""
    return Context(store=store, seed=0, device="cpu")


def _report(
    name: str,
    command: str,
    chosen: Chosen,
    dataset: Dataset,
    quantized: Quantized | None,
    measured: Measured,
) -> Report:
    """The report of a run that begins with its student."""
    found, test = measured.artifacts, open_split(dataset, "test")
    return assemble.build(
        run=name,
        seconds={
            "quantize": quantized.seconds if quantized else 0.0,
            "export": sum(artifact.seconds for artifact, _ in found),
            "measure": sum(each.seconds for _, each in found),
        },
        environment=environment(),
        dataset=dataset,
        models=measured.models,
        artifacts=bundle.placed(found),
        settings=chosen.model_dump(mode="json"),
        gain=None,
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        quantized=quantized,
        test_labels=test.labels,
        test_images=test,
    )


def _say(found: Sequence[tuple[Artifact, Measurement]]) -> None:
    """What each file took to make and to verify, and how near it is to the student."""
    total = 0.0
    for artifact, each in found:
        spent = artifact.seconds + each.seconds
        total += spent
        told = artifact.skipped or each.skipped or ""
        if each.parity is not None:
            parity = each.parity
            told = (
                f"{parity.top1_agreement:.2%} agree over {parity.n:,} images, largest difference "
                f"{parity.max_abs_diff:.2g}, mean {parity.mean_abs_diff:.2g}"
            )
        text = f"{artifact.title:26}[dim]{artifact.seconds:7.1f} s + {each.seconds:5.1f} s[/]  "
        console.print(text + escape(told), highlight=False, soft_wrap=True)
    console.print(f"Exported and verified: {total:.1f} s of work, done now or in an earlier run.")


def _quantize(
    settings: Quantize, context: Context, student: Checkpoint, dataset: Dataset
) -> tuple[Quantized | None, str]:
    """The quantized graphs, or None and why: a network that int8 is not known for still ships."""
    try:
        return settings.run(context, student, student, dataset, Augment()), OFF
    except (DataError, ExportError) as error:
        return None, error.message


def _chosen(request: Request, past: Report | None) -> Chosen:
    """The settings: a run's own where it is a run's student, with what was asked for over them."""
    values: dict[str, Any] = {"quantize": dict(LIGHT)}
    if past is not None:
        values = {key: past.settings[key] for key in Chosen.model_fields if key in past.settings}
        values["quantize"] = {**values.get("quantize", {}), **LIGHT}
    if request.formats:
        formats = dict.fromkeys(("onnx", *request.formats))  # others are made from its files
        values.setdefault("export", {})["formats"] = list(formats)
    for override in request.overrides:
        config.put(values, override)
    try:
        return Chosen.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, Chosen)) from error
