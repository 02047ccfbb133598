"""int8 against float and against ONNX Runtime's own `quantize_static`, in one run.

Accuracy is that of students of this project, trained and quantized by the pipeline's own stages on
the image sets of a settings file. Latency is that of the networks at 224 px, where phones use them;
their weights are random, which changes no operator.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.experiments.int8_latency import NETWORKS, Timing, time_network
from benchmarks.experiments.stock import write_float, write_stock
from benchmarks.stats import Interval, paired_difference
from pipeline import config as configs
from pipeline import flow
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import ConfigError
from pipeline.images import Images, open_split, spread
from pipeline.machine import cores
from pipeline.progress import console
from pipeline.quantized import Fused, Quantized
from pipeline.records import Checkpoint, CpuCheck, Dataset, Scheme
from pipeline.settings import Settings, read_table
from pipeline.store import Store


class ImageSet(Settings):
    """A table [[images]]."""

    name: str = Field(min_length=1)
    set: tuple[str, ...] = ()
    """What it changes, as in the command line's --set."""


class Student(Settings):
    """A table [[student]]."""

    set: tuple[str, ...] = ()


class Plan(Settings):
    """The whole file."""

    config: Path
    """The settings that all start from."""
    set: tuple[str, ...] = ()
    """What is changed for all."""
    images: tuple[ImageSet, ...] = Field(min_length=1)
    student: tuple[Student, ...] = Field(min_length=1)


class Row(BaseModel):
    """What became of one student's accuracy. Accuracies and differences are fractions."""

    model_config = ConfigDict(frozen=True)

    images: str
    student: str
    n: int
    """Test images."""
    float_top1: float
    stock_top1: float
    int8_top1: float
    loss: float
    """Float minus int8."""
    loss_ci95: Interval
    agreement: float
    """Share of test images on which int8 names the same class as float."""
    simulation: float
    """Share on which the simulation in torch names the same class as ONNX Runtime."""
    how: str
    """What was kept."""
    scheme: Scheme
    fused: Fused
    stock_fused: Fused
    bytes: int
    stock_bytes: int
    float_bytes: int
    cpus: tuple[CpuCheck, ...]


class Found(BaseModel):
    """Everything."""

    model_config = ConfigDict(frozen=True)

    rows: tuple[Row, ...]
    timings: tuple[Timing, ...]
    provenance: dict[str, str] = {}


def read(
    path: Path, more: Sequence[str] = (), folders: Mapping[str, Path] | None = None
) -> list[tuple[str, Config]]:
    """Name of the images and settings of each student, checked.

    `folders` are image sets by name that lie in a folder (``train/<class>/*``, ``test/<class>/*``).
    Raises `ConfigError` for whatever does not fit, before anything is trained.
    """
    plan, folders = read_table(configs.parse(path), Plan, (str(path),)), folders or {}
    names = [images.name for images in plan.images]
    if unknown := set(folders) - set(names):
        raise ConfigError(f"no images are called {', '.join(unknown)}", f"In {path}: {names}")
    found = []
    for images in plan.images:
        own = [*plan.set, *images.set, *more]
        if images.name in folders:
            own += ["data.source=folder", f"data.folder={folders[images.name]}"]
        for student in plan.student:
            config = configs.read(plan.config, [*own, *student.set])
            flow.check(config)
            found.append((images.name, config))
    return found


def run(entries: Sequence[tuple[str, Config]], store: Store) -> Found:
    """Train, quantize and test the students, or take what is there; then time the networks.

    They are timed in the scheme that most students ended with.
    """
    rows = []
    for name, config in entries:
        row = judge_student(name, config, store)
        console.print(f"{name}, {row.student}: {100 * row.loss:+.2f} points lost, {row.scheme}")
        rows.append(row)
    scheme = Counter(row.scheme for row in rows).most_common(1)[0][0]
    timings = []
    for network in NETWORKS:
        timing = time_network(network, scheme)
        console.print(f"{network}: {timing.float_ms:.2f} ms, int8 {timing.int8_ms:.2f} ms")
        timings.append(timing)
    return Found(rows=tuple(rows), timings=tuple(timings))


def judge_student(name: str, config: Config, store: Store) -> Row:
    """Train and quantize one student, and compare the files on the whole test split."""
    context = Context(store=store, seed=config.seed, device=config.device, threads=config.threads)
    dataset = config.data.run(context)
    teacher = config.teach.run(context, dataset)
    student = config.distill.run(context, config.student, teacher, dataset)
    augment = config.student.recipe.augment
    quantized = config.quantize.run(context, student, teacher, dataset, augment)
    if quantized is None:
        raise ConfigError("quantize.enabled is false", "Leave it on.")
    return _compared(name, context, student, dataset, quantized, config.quantize.cpu_images)


def _compared(
    name: str,
    context: Context,
    student: Checkpoint,
    dataset: Dataset,
    quantized: Quantized,
    cpu_images: int | Literal["all"],
) -> Row:
    import onnx

    from exporters.onnx import compact
    from pipeline.quantization import cpus, fused, judge

    test, threads = open_split(dataset, "test"), context.threads or cores()
    shape = (dataset.input.size, dataset.input.size, dataset.input.channels)
    with tempfile.TemporaryDirectory() as folder:
        plain, stock = Path(folder, "float.onnx"), Path(folder, "stock.onnx")
        write_float(student, plain)
        train = open_split(dataset, "train")
        write_stock(plain, stock, train[spread(quantized.calibration.images, len(train))])
        judging = judge.Judge(onnx.load(plain), test, threads)
        int8 = quantized.folder / quantized.int8
        logits = {p: judging.answers(onnx.load(p)) for p in (stock, int8)}
        logits[plain] = judging.logits
        named = {path: found.argmax(1) for path, found in logits.items()}
        right = {path: found == test.labels for path, found in named.items()}
        pair = paired_difference(right[plain], right[int8])
        some = spread(None if cpu_images == "all" else cpu_images, len(test))
        checks = cpus.compare(int8, test[some], test.labels[some], logits[int8][some], threads)
        return Row(
            images=name,
            student=f"{student.arch} ×{student.width:g}",
            n=len(test),
            float_top1=float(right[plain].mean()),
            stock_top1=float(right[stock].mean()),
            int8_top1=float(right[int8].mean()),
            loss=-pair.difference,
            loss_ci95=(-pair.ci95[1], -pair.ci95[0]),
            agreement=float((named[plain] == named[int8]).mean()),
            simulation=simulated_agreement(quantized, dataset, test, named[int8]),
            scheme=quantized.scheme,
            how=next(trial.name for trial in quantized.trials if trial.kept),
            fused=quantized.fused,
            stock_fused=fused.examine(stock, shape),
            bytes=compact(onnx.load(int8)).ByteSize(),
            stock_bytes=stock.stat().st_size,
            float_bytes=plain.stat().st_size,
            cpus=checks,
        )


def simulated_agreement(
    quantized: Quantized, dataset: Dataset, images: Images, named: NDArray[np.int64]
) -> float:
    """Share of `images` that the simulation in torch gives the class in `named` [n]."""
    import onnx
    import torch

    from models.classifier import Classifier
    from pipeline import evaluation
    from pipeline.quantization import simulate

    placed = onnx.load(quantized.folder / quantized.int8)
    ready = onnx.load(quantized.folder / quantized.weights)
    network = simulate.Simulated(placed, ready, quantized.scheme)
    spec = simulate.normalisation(placed, dataset.input)
    logits = evaluation.predict(Classifier(network, spec), images, torch.device("cpu"))
    return float((logits.argmax(1) == named).mean())
