"""Measuring: every file on the whole test set, and its latency in a fresh process.

The test split is touched here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator
from scipy.special import softmax

import runtime
from benchmarks import latency, operators, profiles, stats
from pipeline.context import Context
from pipeline.errors import ExportError, UnavailableError
from pipeline.images import Images, batch_size, open_split, spread
from pipeline.machine import cores, cpu_name, versions
from pipeline.progress import bar, still, track
from pipeline.quantization import cpus
from pipeline.records import (
    Accuracy,
    Artifact,
    Checkpoint,
    CpuCheck,
    Dataset,
    Latency,
    Measurement,
    Parity,
    Result,
)
from pipeline.settings import Settings

Logits = NDArray[np.float32]
Models: TypeAlias = list[tuple[Checkpoint, Measurement]]
LEAST = 1e-6
"""Probabilities below it, some of which float16 makes 0, count as it."""
TIMED_IMAGES = 64
"""Test images that the timed inferences go round in."""
EAGER = "pytorch"
FOR_CPUS = "onnx int8"
"""The file that has to be the same on every CPU."""
PROFILED = "onnx_runtime"
"""The runtime that also tells where the time goes."""


class Measured(NamedTuple):
    """Everything that was measured, beside what it was measured of."""

    models: Models
    artifacts: list[tuple[Artifact, Measurement]]
    others: dict[int, Models]
    """By seed, what was trained beside the shipped student: accuracies alone."""

    @property
    def lines(self) -> list[str]:
        """One line a model and a file."""
        models = [f"{checkpoint.role}: {found.line}" for checkpoint, found in self.models]
        files = [f"{artifact.title}: {found.line}" for artifact, found in self.artifacts]
        others = [
            f"seed {seed}, {checkpoint.role}: {found.line}"
            for seed, models in self.others.items()
            for checkpoint, found in models
        ]
        return [*models, *files, *others]


class Measure(Settings):
    """The table [measure]."""

    profile: str = "phone-1t"
    """How latency is taken: a table of benchmarks/profiles.toml."""

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        profiles.read(name)
        return name

    def run(
        self,
        context: Context,
        checkpoints: Sequence[Checkpoint],
        artifacts: Sequence[Artifact],
        dataset: Dataset,
        others: Mapping[int, Sequence[Checkpoint]] | None = None,
        cpu_images: int | Literal["all"] = 0,
    ) -> Measured:
        """Measure every model and every file; the student must be among the `checkpoints`.

        Of the `others`, by seed, only the accuracy: they are not shipped. The int8 ONNX file also
        answers to `cpu_images` test images on other CPUs, where they can be emulated.
        """
        more = [(seed, each) for seed, trained in (others or {}).items() for each in trained]
        measured = Measured([], [], {})
        with bar("measure", len(checkpoints) + len(artifacts) + len(more)) as shown:
            for checkpoint in checkpoints:
                found = self._model(context, checkpoint, dataset)
                measured.models.append((checkpoint, found))
                shown.advance()
            student = next(m for each, m in measured.models if each.role == "student")
            for artifact in artifacts:
                found = self._artifact(context, artifact, student, dataset, cpu_images)
                measured.artifacts.append((artifact, found))
                shown.advance()
            for seed, checkpoint in more:
                found = accuracy_alone(context, checkpoint, dataset)
                measured.others.setdefault(seed, []).append((checkpoint, found))
                shown.advance()
        return measured

    def _model(self, context: Context, checkpoint: Checkpoint, dataset: Dataset) -> Measurement:
        """Accuracy of a checkpoint, on the training device, and its latency in PyTorch eager."""

        def work(folder: Path) -> Measurement:
            logits, name = _eager_logits(context, checkpoint, dataset)
            test = open_split(dataset, "test")
            return Measurement(
                accuracy=_accuracy(logits, test, name, folder),
                **self._timing(context, EAGER, checkpoint.folder, test, folder),
            )

        return self._get(context, work, [checkpoint, dataset])

    def _artifact(
        self,
        context: Context,
        artifact: Artifact,
        student: Measurement,
        dataset: Dataset,
        cpu_images: int | Literal["all"],
    ) -> Measurement:
        """Accuracy, parity with the `student`'s answers and latency of an exported file.

        Where nothing here can execute it, the measurement says why.
        """
        if artifact.file is None:
            return Measurement(skipped=artifact.skipped)
        name = runtime.for_file(artifact.format, artifact.file)
        if name is None:
            return Measurement(skipped=f"no runtime of this project executes {artifact.format}")
        executes = runtime.load(name)
        available = executes.availability()
        if not available.ok:
            return Measurement(skipped=available.in_full)
        own = artifact.format in executes.FORMATS  # else its speed says nothing of the format
        elsewhere = cpu_images if artifact.title == FOR_CPUS else 0

        def work(folder: Path) -> Measurement:
            test = open_split(dataset, "test")
            session = executes.open(artifact.path, context.threads or cores())
            logits = _answered(session, test, artifact.title)
            timed = own and executes.TIMED
            return Measurement(
                accuracy=_accuracy(logits, test, session.name, folder),
                parity=_parity(logits, answers(student), artifact.output),
                cpus=_on_cpus(artifact, test, logits, elsewhere, context),
                skipped=executes.CAVEAT or None,
                **(self._timing(context, name, artifact.path, test, folder) if timed else {}),
            )

        facts: dict[str, Any] = {"runtime": available.detail, "code": executes.VERSION}
        facts |= {"cpus": [elsewhere, cpus.there()]} if elsewhere else {}
        try:
            return self._get(context, work, [artifact, dataset, student], facts)
        except (UnavailableError, ExportError) as error:
            if artifact.format == "onnx":
                raise
            # One file that does not run here (an engine for another GPU, say) costs no other's row.
            return Measurement(skipped=f"cannot be run here: {error.in_full}")

    def _get(
        self,
        context: Context,
        work: Callable[[Path], Measurement],
        parents: Sequence[Result],
        more: Mapping[str, Any] | None = None,
    ) -> Measurement:
        facts = {
            **(more or {}),
            "host": cpu_name(),
            "profile": profiles.read(self.profile).model_dump(),
            **versions("onnxruntime", "torch"),
        }
        return context.store.get(
            Measurement,
            "measure",
            work,
            version=5,
            settings=self,
            parents=parents,
            facts=facts,
        )

    def _timing(
        self, context: Context, name: str, path: Path, test: Images, folder: Path
    ) -> dict[str, Any]:
        profile, images = profiles.read(self.profile), test[slice(0, TIMED_IMAGES)]
        # One timing at a time among the runs of a store, and no bar redrawn meanwhile.
        with context.store.alone("timing"), still():
            found = latency.measure(name, path.resolve(), images, profile)
            spent = operators.measure(path, images, profile) if name == PROFILED else None
            taken = self._latency(found, profile, folder, name)
        return {
            "latency": taken,
            "load_ms": found.load_ms,
            "peak_rss_bytes": found.peak_rss_bytes,
            "operators_ms": spent and spent.types,
        }

    def _latency(
        self, found: latency.Timing, profile: profiles.Profile, folder: Path, name: str
    ) -> Latency:
        samples = np.array(found.samples_ns, np.int64)
        np.save(folder / "latency.npy", samples)
        p50, p90, p99 = stats.percentiles(samples)
        half = p50 * found.half_width
        small = p50 < latency.SMALL_MS and name == PROFILED
        return Latency(
            profile=self.profile,
            threads=profile.threads or cores(),
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            p50_ci95=(p50 - half, p50 + half) if np.isfinite(half) else None,
            noisy=found.noisy(profile),
            overhead_ms=latency.overhead_ms(profile) if small else None,
            n=len(samples),
            warmup=profile.warmup,
            first_ms=found.first_ms,
            host=found.host,
            batch=profile.batch,
            processes=profile.processes,
            in_force=found.in_force,
            raw="latency.npy",
        )


def accuracy_alone(context: Context, checkpoint: Checkpoint, dataset: Dataset) -> Measurement:
    """Accuracy of a checkpoint on the training device, and nothing else."""

    def work(folder: Path) -> Measurement:
        logits, name = _eager_logits(context, checkpoint, dataset)
        test = open_split(dataset, "test")
        return Measurement(accuracy=_accuracy(logits, test, name, folder))

    return context.store.get(
        Measurement,
        "measure",
        work,
        version=1,
        settings={"only": "accuracy"},
        parents=[checkpoint, dataset],
        facts={"host": cpu_name(), **versions("torch")},
    )


def answers(measurement: Measurement) -> Logits:
    """The logits [n, classes] that a measurement kept."""
    assert measurement.accuracy is not None
    return np.load(measurement.folder / measurement.accuracy.predictions)


def _eager_logits(context: Context, checkpoint: Checkpoint, dataset: Dataset) -> tuple[Logits, str]:
    import torch

    import models
    from pipeline import devices, evaluation

    device = devices.prepare(context)
    model = models.load(checkpoint).to(device).to(memory_format=torch.channels_last)
    logits = evaluation.predict(model, open_split(dataset, "test"), device)
    return logits, f"pytorch {torch.__version__} on {devices.where(device)}"


def _answered(session: runtime.Session, test: Images, title: str) -> Logits:
    """What an opened file answers to all of `test`; a bar under `title` shows how far it is."""
    size = batch_size(test.size)
    slices = [slice(start, start + size) for start in range(0, len(test), size)]
    batches = track(test.ahead(slices), title, len(slices))
    return np.concatenate([session.run(batch) for batch in batches])


def _accuracy(logits: Logits, test: Images, name: str, folder: Path) -> Accuracy:
    np.save(folder / "predictions.npy", logits)
    right = int((logits.argmax(1) == test.labels).sum())
    return Accuracy(
        top1=right / len(test),
        top1_ci95=stats.wilson(right, len(test)),
        n=len(test),
        evaluated_with=name,
        predictions="predictions.npy",
    )


def _on_cpus(
    artifact: Artifact,
    test: Images,
    logits: Logits,
    n: int | Literal["all"],
    context: Context,
) -> tuple[CpuCheck, ...]:
    """What the file answers elsewhere to `n` of the test images, to which it gave `logits`."""
    if n == 0:
        return ()
    rows = spread(None if n == "all" else n, len(test))
    threads = context.threads or cores()
    return cpus.compare(artifact.path, test[rows], test.labels[rows], logits[rows], threads)


def relative_difference(given: Logits, logits: Logits, output: str) -> float:
    """Mean difference of logits in their standard deviation: probabilities hide it where they are
    nearly 0, so of those the logarithms are compared, which are logits but for each image's sum."""
    if output == "probabilities":
        given = np.log(np.maximum(given, LEAST))
        logits = np.log(np.maximum(softmax(logits, axis=1), LEAST))
        given, logits = (each - each.mean(1, keepdims=True) for each in (given, logits))
    return float(np.abs(given - logits).mean() / max(float(logits.std()), LEAST))


def _parity(given: Logits, logits: Logits, output: str) -> Parity:
    """How far the answers `given` are from those of the student, whose `logits` these are."""
    reference = logits if output == "logits" else softmax(logits, axis=1)
    apart = np.abs(given - reference)
    return Parity(
        max_abs_diff=float(apart.max()),
        mean_abs_diff=float(apart.mean()),
        relative=relative_difference(given, logits, output),
        top1_agreement=float((given.argmax(1) == reference.argmax(1)).mean()),
        n=len(given),
    )
