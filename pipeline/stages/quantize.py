"""int8: the graph that loses least, is the same on every CPU, and what each layer costs.

Weights are per-channel int8. Two graphs are made: `int8`, with zero points, for CPU runtimes, and
`int8-symmetric`, without and with float biases, which TensorRT reads. Everything is chosen on the
validation split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from pipeline.context import Context
from pipeline.errors import DataError
from pipeline.machine import cores, versions
from pipeline.progress import console, track
from pipeline.quantization.settings import FineTune
from pipeline.quantized import Calibration, Quantized, Rescue, Sensitivity, Trial
from pipeline.records import Checkpoint, CpuCheck, Dataset, Scheme
from pipeline.settings import Augment, Settings

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from pipeline.quantization.calibration import Histogram
    from pipeline.quantization.graph import Front
    from pipeline.quantization.judge import Score
    from pipeline.quantization.place import Placed, Ranges

LEAST_IMAGES = 10
"""From fewer, ranges are chance."""
METHODS = ("minmax", "percentile", "entropy", "mse")
TUNED = "fine-tuned"


class Quantize(Settings):
    """The table [quantize]."""

    enabled: bool = True
    """Without it there are no int8 files."""
    calibration_images: int = Field(default=512, ge=LEAST_IMAGES)
    """Training images, without augmentation, from which the ranges of activations are taken."""
    calibration: Literal["best", "minmax", "percentile", "entropy", "mse"] = "best"
    """How; `best` tries all four and keeps the one with the best top-1 on the validation split."""
    fine_tune: FineTune = FineTune()
    """Quantization-aware distillation: the rounded weights learn on."""
    scheme: Literal["auto", "u8s8", "u8s8-reduced", "s8s8", "u8u8"] = "auto"
    """Types of activations and weights for CPUs; "reduced" weights have 7 bits. `auto` is u8s8, or
    where that is not the same on every CPU the fastest here that is."""
    cpu_images: int | Literal["all"] = 1000
    """Images on which other CPUs must answer as this one does, where they can be emulated (see
    `python -m pipeline doctor`); 0 does without."""
    sensitivity_images: int = Field(default=256, ge=0)
    """Validation images on which each layer is tried in float by itself; 0 does without."""
    max_drop: float | None = Field(default=None, ge=0)
    """Points of top-1 that int8 may lose on the validation split. Where it loses more, the layers
    that cost least in float and help stay float."""
    float_layers: tuple[str, ...] = ()
    """Layers that stay float in any case, by their names in the report."""

    def run(
        self,
        context: Context,
        student: Checkpoint,
        teacher: Checkpoint,
        dataset: Dataset,
        augment: Augment,
    ) -> Quantized | None:
        """The quantized graphs; None where the stage is switched off.

        Fine-tuning sees images as `augment` changes them. Raises `DataError` where calibration
        images are too few or all alike, `CheckpointError` for weights that are no numbers,
        `ExportError` for operators that int8 is not known for.
        """
        if not self.enabled:
            return None

        def work(folder: Path) -> Quantized:
            return _Work(self, context, student, teacher, dataset, augment).run(folder)

        from pipeline.quantization import cpus

        facts = {"seed": context.seed, "cpus": cpus.there() if self.cpu_images else {}}
        facts |= versions("torch", "onnx", "onnxscript", "onnxruntime")
        return context.store.get(
            Quantized,
            "quantize",
            work,
            version=2,
            settings={"quantize": self, "augment": augment},
            parents=[student, teacher, dataset],
            facts=facts,
        )


class _Made(NamedTuple):
    """A graph that was tried, and what it was made of."""

    name: str
    method: str
    ready: onnx.ModelProto
    ranges: Ranges
    score: Score


class _Work:
    """One student's quantization."""

    def __init__(
        self,
        settings: Quantize,
        context: Context,
        student: Checkpoint,
        teacher: Checkpoint,
        dataset: Dataset,
        augment: Augment,
    ) -> None:
        from pipeline.images import open_split

        self._settings, self._context, self._augment = settings, context, augment
        self._student, self._teacher, self._dataset = student, teacher, dataset
        self._val, self._threads = open_split(dataset, "val"), context.threads or cores()

    def run(self, folder: Path) -> Quantized:
        import onnx

        from pipeline.quantization import fused, graph, judge

        path = folder / "ready.onnx"
        self._front: Front = graph.prepare(self._student, path)
        ready = onnx.load(path)
        path.unlink()
        histograms = self._observe(ready)
        self._judge = judge.Judge(ready, self._val, self._threads)
        best, trials = self._calibrated(ready, histograms)
        best, trials = self._tuned(best, trials)
        losses = self._sensitivity(best)
        rescued = self._rescued(best, losses)
        float_layers = rescued.float_layers if rescued else ()
        scheme, checks = self._scheme(best, float_layers)
        placed = self._place(best, scheme, float_layers)
        onnx.save(placed.model, folder / "int8.onnx")
        plain = self._ranges(histograms, best.method, symmetric=True)
        symmetric = best._replace(ranges=plain)
        onnx.save(
            self._place(symmetric, "symmetric", float_layers).model, folder / "int8-symmetric.onnx"
        )
        size, channels = self._dataset.input.size, self._dataset.input.channels
        return Quantized(
            scheme=scheme,
            calibration=Calibration(method=best.method, images=len(self._rows)),
            float_val_top1=self._judge.float_top1,
            trials=tuple(
                trial.model_copy(update={"kept": trial.name == best.name}) for trial in trials
            ),
            fused=fused.examine(
                folder / "int8.onnx", (size, size, channels), float_layers=float_layers
            ),
            sensitivity=losses,
            rescue=rescued,
            checks=checks,
            notes=placed.notes,
        )

    # ---- ranges ----

    def _observe(self, ready: onnx.ModelProto) -> dict[str, Histogram]:
        from pipeline.quantization import calibration, graph

        names = graph.activations(ready)
        return calibration.observe(ready, self._calibration_batches(), names, self._threads)

    def _calibration_batches(self) -> Iterator[np.ndarray]:
        """The calibration images, a few at a time; refuses those that tell nothing."""
        from pipeline.images import open_split
        from pipeline.quantization.calibration import batch_of

        train, rows = open_split(self._dataset, "train"), self._rows
        first, alike = train[rows[:1]], True
        for start in range(0, len(rows), batch_of(train.size)):
            batch = train[rows[start : start + batch_of(train.size)]]
            alike = alike and bool((batch == first).all())
            yield batch
        if alike:
            raise DataError(
                f"all {len(rows)} images to calibrate int8 with are the same picture",
                remedy="Check the image set, or set quantize.enabled to false.",
            )

    @cached_property
    def _rows(self) -> np.ndarray:
        """Which training images calibrate."""
        import numpy as np

        there = self._dataset.train.n
        if there < LEAST_IMAGES:
            raise DataError(
                f"only {there} training images to calibrate int8 with, fewer than {LEAST_IMAGES}",
                remedy="Add images, or set quantize.enabled to false.",
            )
        order = np.random.default_rng(self._context.seed).permutation(there)
        return np.sort(order[: self._settings.calibration_images])

    def _ranges(
        self, histograms: dict[str, Histogram], method: str, *, symmetric: bool = False
    ) -> Ranges:
        from pipeline.quantization.calibration import ranges

        return {name: ranges(h, method, symmetric=symmetric) for name, h in histograms.items()}

    # ---- graphs ----

    def _place(
        self, best: _Made, scheme: Scheme | Literal["symmetric"], float_layers: Sequence[str] = ()
    ) -> Placed:
        from pipeline.quantization.place import place

        layers = {*self._settings.float_layers, *float_layers}
        return place(best.ready, self._front, best.ranges, scheme, layers)

    @property
    def _first_scheme(self) -> Scheme:
        wanted = self._settings.scheme
        return "u8s8" if wanted == "auto" else wanted

    def _made(self, name: str, method: str, ready: onnx.ModelProto, ranges: Ranges) -> _Made:
        from pipeline.quantization.place import place

        layers = self._settings.float_layers
        placed = place(ready, self._front, ranges, self._first_scheme, layers)
        return _Made(name, method, ready, ranges, self._judge(placed.model))

    def _calibrated(
        self, ready: onnx.ModelProto, histograms: dict[str, Histogram]
    ) -> tuple[_Made, list[Trial]]:
        """The best of the calibration methods."""
        wanted = self._settings.calibration
        methods = METHODS if wanted == "best" else (wanted,)
        found = []
        for method in track(methods, "calibrate", len(methods)):
            ranges = self._ranges(histograms, method)
            found.append(self._made(method, method, ready, ranges))
        return max(found, key=lambda each: each.score), [_trial(each) for each in found]

    def _tuned(self, best: _Made, trials: list[Trial]) -> tuple[_Made, list[Trial]]:
        """The graph after quantization-aware distillation, where that is better."""
        settings = self._settings.fine_tune
        if not settings.epochs:
            return best, trials
        from pipeline.quantization import finetune, graph

        job = finetune.Tuning(
            role="quantized",
            arch=self._student.arch,
            width=self._student.width,
            recipe=settings.recipe(self._augment),
            placed=self._place(best, "u8s8").model,
            ready=best.ready,
            front=self._front,
        )
        guide = self._teacher if settings.guide == "teacher" else self._student
        made = finetune.tune(self._context, settings, job, guide, self._student, self._dataset)
        tuned = graph.with_constants(best.ready, finetune.tuned_weights(job, made))
        after = self._made(TUNED, best.method, tuned, best.ranges)
        return max(best, after, key=lambda each: each.score), [*trials, _trial(after)]

    # ---- layers ----

    def _mixed(self, best: _Made, layers: Sequence[str]) -> onnx.ModelProto:
        return self._place(best, self._first_scheme, layers).model

    def _sensitivity(self, best: _Made) -> Sensitivity | None:
        from pipeline.quantization import graph, judge, rescue

        n = self._settings.sensitivity_images
        if not n:
            return None
        some = judge.Judge(best.ready, self._val, self._threads, n)
        macs = graph.layer_macs(best.ready)
        return rescue.sensitivity(partial(self._mixed, best), some, macs)

    def _rescued(self, best: _Made, losses: Sensitivity | None) -> Rescue | None:
        """What `max_drop` asks for, where int8 loses more than that."""
        from pipeline.quantization import graph, rescue

        limit, drop = self._settings.max_drop, 100 * (self._judge.float_top1 - best.score.top1)
        if limit is None or drop <= limit:
            return None
        mixed = partial(self._mixed, best)
        if losses is None:
            losses = rescue.sensitivity(mixed, self._judge, graph.layer_macs(best.ready))
        found = rescue.search(mixed, self._judge, losses, limit)
        if found.drop > limit:
            console.print(
                f"[yellow]quantize.max_drop = {limit:g}: even with all layers in float the graph "
                f"loses {found.drop:.2f} points, by the rounding of activations[/]"
            )
        return found

    # ---- other CPUs ----

    def _scheme(
        self, best: _Made, float_layers: Sequence[str]
    ) -> tuple[Scheme, tuple[CpuCheck, ...]]:
        """The scheme that is the same on every CPU, and the checks that showed it."""
        from pipeline.quantization import cpus

        first, n = self._first_scheme, self._settings.cpu_images
        if n == 0 or self._settings.scheme != "auto":
            return first, ()
        rows = slice(0, None if n == "all" else n)
        images, labels = self._val[rows], self._val.labels[rows]

        def placed(scheme: Scheme) -> onnx.ModelProto:
            return self._place(best, scheme, float_layers).model

        return cpus.choose(placed, first, self._judge, images, labels)


def _trial(best: _Made) -> Trial:
    return Trial(name=best.name, val_top1=best.score.top1, agreement=best.score.agreement)
