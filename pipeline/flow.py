"""The whole pipeline, read top to bottom: `_run` is the order of the stages."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from benchmarks import profiles
from benchmarks.stats import PairedDifference, paired_difference
from pipeline import assemble, bundle, pretrained, summary, verification
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import CannotRunHereError, StoreError, require
from pipeline.images import open_split
from pipeline.machine import cuda_devices, environment, package_version
from pipeline.metrics import Logs, title
from pipeline.progress import console, say
from pipeline.quantized import Quantized
from pipeline.records import Dataset
from pipeline.stages import report
from pipeline.stages.measure import Measured, answers
from pipeline.store import Store, digest, writing
from pipeline.summary import BUNDLE, STATE, Report

OFF = "switched off"


def run(config: Config, store: Store, runs: Path, command: str) -> Path | None:
    """Do whatever of `config` is not in the `store` yet; return the run's folder below `runs`.

    `command` is what was typed; the report repeats it. Of several processes all train, and the
    others than the leader return None after that.
    """
    check(config)
    with store.referred_by(runs / config.name):
        return _run(config, store, runs, command)


def _run(config: Config, store: Store, runs: Path, command: str) -> Path | None:
    """Stage by stage."""
    context = Context(
        store=store,
        seed=config.seed,
        device=config.device,
        threads=config.threads,
        checkpoint_seconds=config.checkpoint_seconds,
        logs=Logs(runs / config.name, config.tensorboard),
    )
    say = _Speaker(store)
    dataset = config.data.run(context)
    say("data", dataset.line)
    teacher = config.teach.run(context, dataset)
    say("teach", teacher.line)
    trained = {}
    for seed in config.student_seeds:
        seeded, which = replace(context, seed=seed), f"seed {seed}: " if config.seeds else ""
        baseline = config.baseline.run(seeded, config.student, dataset)
        say("baseline", which + (baseline.line if baseline else OFF))
        student = config.distill.run(seeded, config.student, teacher, dataset)
        say("distill", which + student.line)
        trained[seed] = [baseline, student] if baseline else [student]
    if not store.disband():
        return None

    # What follows is done once, with the student of the first seed.
    shipped = trained.pop(config.student_seeds[0])
    augment = config.student.recipe.augment
    quantized = config.quantize.run(context, shipped[-1], teacher, dataset, augment)
    say("quantize", quantized.line if quantized else OFF)
    artifacts = config.export.run(context, shipped[-1], quantized, dataset.licence)
    say("export", *(artifact.line for artifact in artifacts))
    measured = config.measure.run(
        context, [teacher, *shipped], artifacts, dataset, trained, config.quantize.cpu_images
    )
    say("measure", *measured.lines)
    verification.verify(context, config.export, measured.models[-1], measured.artifacts, dataset)
    return _publish(config, dataset, quantized, measured, runs, command, say.worked)


def check(config: Config) -> None:
    """Find out in milliseconds what would otherwise end the run after hours.

    Raises `CheckpointError`, `ConfigError`, `CannotRunHereError` or `NotInstalledError`.
    """
    config.teach.check()
    config.distill.check(config.student)
    pretrained.check(
        config.student.pretrained, "student.pretrained", config.student.arch, config.student.width
    )
    profiles.read(config.measure.profile).check(config.measure.profile)
    if config.tensorboard:
        require("tensorboard", "tensorboard")
    if config.device == "cuda" and not cuda_devices():
        raise CannotRunHereError(
            'device = "cuda", and there is no NVIDIA driver or GPU on this machine',
            remedy='Use device = "auto" or "cpu".',
        )
    if config.student.arch.startswith("mobilenet_v4") and package_version("timm") is None:
        require("timm", "timm")


class _Speaker:
    """One line of result a stage, with the time it took or the word that it was there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = len(store.outcomes)
        self._since = time.perf_counter()
        self.worked = False
        """Whether any stage did anything."""

    def __call__(self, stage: str, *lines: str) -> None:
        outcomes = self._store.outcomes[self._seen :]
        self._seen = len(self._store.outcomes)
        reused = bool(outcomes) and all(outcome.reused for outcome in outcomes)
        self.worked = self.worked or any(not outcome.reused for outcome in outcomes)
        spent = time.perf_counter() - self._since
        self._since = time.perf_counter()
        took = "there already" if reused else f"{spent:.1f} s"
        for i, line in enumerate(lines):
            head, note = ("", "") if i else (stage, took)
            say(head, note, line)


def _publish(
    config: Config,
    dataset: Dataset,
    quantized: Quantized | None,
    measured: Measured,
    runs: Path,
    command: str,
    worked: bool,
) -> Path:
    """Fill runs/<name>: the shipped files and the three pages. Nothing where both are current."""
    folder = runs / config.name
    state = digest([config, dataset, quantized, bundle.VERSION, report.VERSION, *measured])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not worked and _is_current(folder, state):
                console.print("Nothing to do: every result was there already.")
                return folder
            found = _summary(config, dataset, quantized, measured, command)
            found = found.with_phones(folder)
            bundle.write(found, dataset, measured.artifacts, folder)
            _show_curves(measured, config, Logs(folder, config.tensorboard))
            report.write(found, folder)
            (folder / STATE).write_text(state)
    return folder


def _is_current(folder: Path, state: str) -> bool:
    """Whether pages and bundle are those of `state`, and whole."""
    stamp = folder / STATE
    if not stamp.exists() or stamp.read_text() != state:
        return False
    try:
        summary.read(folder)
        if bundle.check(folder / BUNDLE):
            return False
    except StoreError:
        return False
    return all((folder / page).exists() for page in report.PAGES)


def _summary(
    config: Config,
    dataset: Dataset,
    quantized: Quantized | None,
    measured: Measured,
    command: str,
) -> Report:
    test = open_split(dataset, "test")
    return assemble.build(
        run=config.name,
        seconds=_seconds(dataset, quantized, measured),
        environment=environment(),
        dataset=dataset,
        models=measured.models,
        artifacts=bundle.placed(measured.artifacts),
        settings=config.model_dump(mode="json"),
        gain=_gain(measured, test.labels),
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        quantized=quantized,
        test_labels=test.labels,
        test_images=test,
        seeds=measured.others and {config.student_seeds[0]: measured.models, **measured.others},
    )


def _show_curves(measured: Measured, config: Config, logs: Logs) -> None:
    """Put the curves of every training beside the report, those of earlier runs too."""
    first = config.student_seeds[0]
    for seed, models in {first: measured.models, **measured.others}.items():
        for checkpoint, _ in models:
            of = config.seed if checkpoint.role == "teacher" else seed
            logs.show(title(checkpoint.role, of), checkpoint.history)


def _gain(measured: Measured, labels: NDArray[np.int64]) -> PairedDifference | None:
    """Student minus baseline, over the same test images."""
    right = {
        checkpoint.role: answers(found).argmax(1) == labels for checkpoint, found in measured.models
    }
    if "baseline" not in right:
        return None
    return paired_difference(right["baseline"], right["student"])


def _seconds(dataset: Dataset, quantized: Quantized | None, measured: Measured) -> dict[str, float]:
    """Time of the work by stage, when it was done: now or in an earlier run."""
    stage_of = {"teacher": "teach", "baseline": "baseline", "student": "distill"}
    others = [found for models in measured.others.values() for found in models]
    spent = {"data": dataset.seconds}
    for checkpoint, _ in (*measured.models, *others):
        stage = stage_of[checkpoint.role]
        spent[stage] = spent.get(stage, 0.0) + checkpoint.seconds
    spent["quantize"] = quantized.seconds if quantized else 0.0
    spent["export"] = sum(artifact.seconds for artifact, _ in measured.artifacts)
    parts = (*measured.models, *measured.artifacts, *others)
    spent["measure"] = sum(found.seconds for _, found in parts)
    return spent
