"""The whole pipeline, read top to bottom: `run` is the order of the stages."""

import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from rich.markup import escape

from benchmarks.stats import PairedDifference, paired_difference
from pipeline import assemble
from pipeline.config import Config
from pipeline.context import Context
from pipeline.images import open_split
from pipeline.machine import environment
from pipeline.progress import console
from pipeline.records import Artifact, Dataset, Quantized
from pipeline.stages import report
from pipeline.stages.measure import Measured, answers
from pipeline.store import Store, digest, writing

OFF = "switched off"


def run(config: Config, store: Store, runs: Path, command: str) -> Path:
    """Do whatever of `config` is not in the `store` yet; return the run's folder below `runs`.

    `command` is what was typed; the report repeats it.
    """
    context = Context(store=store, seed=config.seed, device=config.device, threads=config.threads)
    say = _Speaker(store)
    dataset = config.data.run(context)
    say("data", dataset.line)
    teacher = config.teach.run(context, dataset)
    say("teach", teacher.line)
    baseline = config.baseline.run(context, config.student, dataset)
    say("baseline", baseline.line if baseline else OFF)
    student = config.distill.run(context, config.student, teacher, dataset)
    say("distill", student.line)
    quantized = config.quantize.run(context, student, dataset)
    say("quantize", quantized.line if quantized else OFF)
    artifacts = config.export.run(context, student, quantized)
    say("export", *(artifact.line for artifact in artifacts))
    models = [teacher, baseline, student] if baseline else [teacher, student]
    measured = config.measure.run(context, models, artifacts, dataset)
    say("measure", *measured.lines)
    return _publish(config, dataset, quantized, measured, runs, command, say.worked)


class _Speaker:
    """One line of result a stage, with the time it took or the word that it was there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = 0
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
            text = f"[bold]{head:9}[/][dim]{note:>13}[/]  {escape(line)}"
            console.print(text, highlight=False, soft_wrap=True)


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
    state = digest([config, dataset, quantized, measured.models, measured.artifacts])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            stamp = folder / ".state"
            if not worked and stamp.exists() and stamp.read_text() == state:
                console.print("Nothing to do: every result was there already.")
                return folder
            places = _bundle([artifact for artifact, _ in measured.artifacts], folder)
            files = [(a, found, places.get(a.title)) for a, found in measured.artifacts]
            labels = open_split(dataset, "test").labels
            summed = assemble.build(
                run=config.name,
                seconds=_seconds(dataset, quantized, measured),
                environment=environment(),
                dataset=dataset,
                models=measured.models,
                artifacts=files,
                settings=config.model_dump(mode="json"),
                gain=_gain(measured, labels),
                command=command,
                date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                quantized=quantized,
                test_labels=labels,
            )
            report.write(summed, folder)
            stamp.write_text(state)
    return folder


def _bundle(artifacts: Sequence[Artifact], folder: Path) -> dict[str, str]:
    """Copy the files into bundle/<format>/<precision>; return each one's place by title."""
    fresh, bundle, old = folder / ".bundle.new", folder / "bundle", folder / ".bundle.old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    places = {}
    for artifact in artifacts:
        if artifact.file is None:
            continue
        home = Path(artifact.format, "-".join(filter(None, (artifact.precision, artifact.variant))))
        (fresh / home).mkdir(parents=True)
        for name in (artifact.file, *artifact.extras):
            source = artifact.folder / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, fresh / home / name)
        places[artifact.title] = (home / artifact.file).as_posix()
    fresh.mkdir(parents=True, exist_ok=True)
    if bundle.exists():
        bundle.rename(old)
    fresh.rename(bundle)
    shutil.rmtree(old, ignore_errors=True)
    return places


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
    spent = {"data": dataset.seconds}
    spent |= {stage_of[checkpoint.role]: checkpoint.seconds for checkpoint, _ in measured.models}
    spent["quantize"] = quantized.seconds if quantized else 0.0
    spent["export"] = sum(artifact.seconds for artifact, _ in measured.artifacts)
    spent["measure"] = sum(m.seconds for _, m in (*measured.models, *measured.artifacts))
    return spent
