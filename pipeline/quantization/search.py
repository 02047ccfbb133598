"""The search for the int8 graph to ship: its ranges, scheme, weights and float layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.markup import escape

from pipeline.context import Context
from pipeline.errors import DataError, DivergedError
from pipeline.images import open_split, spread
from pipeline.machine import cores
from pipeline.progress import console, track
from pipeline.quantization import calibration, cpus, graph, histogram, judge, rescue
from pipeline.quantization.place import Placed, Ranges, place
from pipeline.quantization.settings import LEAST_IMAGES, Options
from pipeline.quantized import Rescue, Sensitivity, Trial
from pipeline.records import Checkpoint, CpuCheck, Dataset, Scheme
from pipeline.settings import Augment

TUNED = "fine-tuned"


class Subject(NamedTuple):
    """What is quantized, and with what help."""

    context: Context
    student: Checkpoint
    teacher: Checkpoint
    dataset: Dataset
    augment: Augment
    """What fine-tuning does to training images."""


class Made(NamedTuple):
    """A graph that was tried: what it was made of, and how good it is."""

    name: str
    method: str
    scheme: Scheme
    ready: onnx.ModelProto
    ranges: Ranges
    score: judge.Score

    @property
    def trial(self) -> Trial:
        """What the report says of it."""
        return Trial(name=self.name, val_top1=self.score.top1, agreement=self.score.agreement)


Trials = list[Trial]
Checks = tuple[CpuCheck, ...]


class Search:
    """The search for one student's graph."""

    def __init__(self, settings: Options, subject: Subject) -> None:
        """Looks at the calibration images, and at the float student's answers."""
        self._settings, self._subject = settings, subject
        self._threads = subject.context.threads or cores()
        prepared = graph.prepare(subject.student)
        self._ready, self._front = prepared.ready, prepared.front
        graph.check_layers(self._ready, settings.float_layers)
        self._names = graph.activations(self._ready)
        self._histograms = histogram.observe(
            self._ready, self._calibration_batches(), self._names, self._threads
        )
        self._float, self._val = prepared.plain, open_split(subject.dataset, "val")
        self._judge = judge.Judge(self._float, self._val, self._threads)
        self._judge.alone = partial(subject.context.store.alone, "timing")
        self.notes: list[str] = []
        """What had to be left out, in words."""

    @property
    def calibration_images(self) -> NDArray[np.uint8]:
        """All of them, uint8 [n, size, size, channels]."""
        return open_split(self._subject.dataset, "train")[self._rows]

    @property
    def float_top1(self) -> float:
        """Of the float student on the validation split."""
        return self._judge.float_top1

    # ---- ranges ----

    def _calibration_batches(self) -> Iterator[NDArray[np.uint8]]:
        """The calibration images, a few at a time; refuses those that tell nothing."""
        train, rows = open_split(self._subject.dataset, "train"), self._rows
        first, alike = train[rows[:1]], True
        step = histogram.batch_of(self._ready, self._names)
        for start in range(0, len(rows), step):
            batch = train[rows[start : start + step]]
            alike = alike and bool((batch == first).all())
            yield batch
        if alike:
            raise DataError(
                f"all {len(rows)} images to calibrate int8 with are the same picture",
                remedy="Check the image set, or set quantize.enabled to false.",
            )

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """Which training images calibrate."""
        there = self._subject.dataset.train.n
        if there < LEAST_IMAGES:
            raise DataError(
                f"only {there} training images to calibrate int8 with, fewer than {LEAST_IMAGES}",
                remedy="Add images, or set quantize.enabled to false.",
            )
        order = np.random.default_rng(self._subject.context.seed).permutation(there)
        return np.sort(order[: self._settings.calibration_images])

    def _ranges(self, method: str, *, symmetric: bool = False) -> Ranges:
        return {
            name: calibration.ranges(each, method, symmetric=symmetric)
            for name, each in self._histograms.items()
        }

    # ---- graphs ----

    def place(self, made: Made, float_layers: Sequence[str] | None = None) -> Placed:
        """The Q/DQ graph of `made`, with `float_layers` or those of the settings."""
        layers = self._settings.float_layers if float_layers is None else float_layers
        return place(made.ready, self._front, made.ranges, made.scheme, layers)

    def symmetric(self, made: Made, float_layers: Sequence[str]) -> Placed:
        """The Q/DQ graph of the weights of `made` without zero points."""
        ranges = self._ranges(made.method, symmetric=True)
        return place(made.ready, self._front, ranges, "symmetric", float_layers)

    def _make(
        self, name: str, method: str, scheme: Scheme, ready: onnx.ModelProto, ranges: Ranges
    ) -> Made:
        placed = place(ready, self._front, ranges, scheme, self._settings.float_layers)
        return Made(name, method, scheme, ready, ranges, self._judge(placed.model))

    def _calibrated(self, scheme: Scheme) -> tuple[Made, Trials]:
        """The best of the calibration methods."""
        wanted = self._settings.calibration
        methods = calibration.METHODS if wanted == "best" else (wanted,)
        found = [
            self._make(method, method, scheme, self._ready, self._ranges(method))
            for method in track(methods, "calibrate", len(methods))
        ]
        return max(found, key=lambda each: each.score), [each.trial for each in found]

    def _tuned(self, best: Made) -> Made | None:
        """`best` after quantization-aware distillation; None where there is none."""
        from pipeline.quantization import finetune

        settings, subject = self._settings.fine_tune, self._subject
        if not settings.epochs:
            return None
        job = finetune.Tuning(
            role="quantized",
            arch=subject.student.arch,
            width=subject.student.width,
            stem_stride=2 if subject.student.stem_stride == 2 else 1,
            recipe=settings.recipe(subject.augment),
            placed=self.place(best).model,
            scheme=best.scheme,
            ready=best.ready,
        )
        guide = subject.teacher if settings.guide == "teacher" else subject.student
        try:
            tuned = finetune.tune(
                subject.context, settings, job, guide, subject.student, subject.dataset
            )
        except DivergedError as error:
            note = f"fine-tuning was left out: {error.message}; set {job.table}.learning_rate lower"
            console.print(f"[yellow]{escape(note)}[/]")
            self.notes.append(note)
            return None
        ready = graph.with_constants(best.ready, finetune.tuned_weights(job, tuned))
        return self._make(TUNED, best.method, best.scheme, ready, best.ranges)

    # ---- other CPUs ----

    def agreeing(self) -> tuple[Made, Trials, Checks]:
        """The best graph of a scheme that is the same on every CPU; all trials of it; all checks.

        The scheme is chosen before the weights learn to live with it. What they have become is
        looked at again.
        """
        first: Scheme = "u8s8" if self._settings.scheme == "auto" else self._settings.scheme
        best, trials = self._calibrated(first)
        scheme, checks = self._choose(best)
        if scheme != first:
            best, trials = self._calibrated(scheme)
        tuned = self._tuned(best)
        if tuned is None:
            return best, trials, checks
        if tuned.score >= best.score:
            scheme, more = self._choose(tuned)
            checks += more
            if scheme != tuned.scheme:
                tuned = self._make(TUNED, tuned.method, scheme, tuned.ready, tuned.ranges)
        trials.append(tuned.trial)
        return max(best, tuned, key=lambda each: each.score), trials, checks

    def _choose(self, made: Made) -> tuple[Scheme, Checks]:
        """The scheme that is the same on every CPU, and the checks that showed it."""
        n = self._settings.cpu_images
        if n == 0 or self._settings.scheme != "auto":
            return made.scheme, ()
        rows = spread(None if n == "all" else n, len(self._val))
        images, labels = self._val[rows], self._val.labels[rows]

        def placed(scheme: Scheme) -> onnx.ModelProto:
            return self.place(made._replace(scheme=scheme)).model

        return cpus.choose(placed, made.scheme, self._judge, images, labels)

    # ---- layers ----

    def _mixed(self, made: Made, layers: Sequence[str]) -> onnx.ModelProto:
        return self.place(made, (*self._settings.float_layers, *layers)).model

    def sensitivity(self, made: Made) -> Sensitivity | None:
        """What each layer loses, on some validation images."""
        n = self._settings.sensitivity_images
        return self._losses(made, n) if n else None

    def _losses(self, made: Made, n: int | None) -> Sensitivity:
        some = judge.Judge(self._float, self._val, self._threads, n)
        rounded = {
            name: macs
            for name, macs in graph.layer_macs(self._ready).items()
            if name not in self._settings.float_layers
        }
        return rescue.sensitivity(partial(self._mixed, made), some, rounded)

    def rescued(self, made: Made, losses: Sensitivity | None) -> Rescue | None:
        """What `max_drop` asks for, where int8 loses more than that."""
        limit, drop = self._settings.max_drop, round(100 * (self.float_top1 - made.score.top1), 9)
        if limit is None or drop <= limit:
            return None
        losses = losses or self._losses(made, None)
        found = rescue.search(partial(self._mixed, made), self._judge, losses, limit)
        if found.drop > limit:
            note = (
                f"quantize.max_drop = {limit:g}: even with all layers in float the graph loses "
                f"{found.drop:.2f} points, by the rounding of activations"
            )
            console.print(f"[yellow]{escape(note)}[/]")
        return found
