"""int8 against float and against ONNX Runtime's own `quantize_static`, in one run.

Accuracy is that of students of this project, trained and quantized by the pipeline's own stages on
the image sets of a settings file. Latency is that of the networks at 224 px, where phones use them;
their weights are random, which changes no operator.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.stats import Interval, paired_difference
from pipeline import config as configs
from pipeline import flow
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import ConfigError
from pipeline.images import Images, open_split
from pipeline.machine import cores
from pipeline.progress import console
from pipeline.quantized import Fused, Quantized
from pipeline.records import Checkpoint, CpuCheck, Dataset, InputSpec
from pipeline.settings import Settings, read_table
from pipeline.store import Store

if TYPE_CHECKING:
    import onnx

SIZE = 224
NETWORKS = (
    *("mobilenet_v2", "mobilenet_v4_conv_small", "mobilenet_v3_large", "mobilenet_v3_small"),
)
LEAST_RATIO = {
    "mobilenet_v2": 2.2,
    "mobilenet_v4_conv_small": 2.2,
    "mobilenet_v3_large": 1.5,
    "mobilenet_v3_small": 1.0,
}
"""Goal: how many times as fast as float."""
CLASSES = 1000
ROUNDS, PER_ROUND = 9, 20
"""Interleaved rounds, and timed inferences of each file in one."""
NOISE = InputSpec(size=SIZE, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


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
    fused: Fused
    stock_fused: Fused
    bytes: int
    stock_bytes: int
    float_bytes: int
    cpus: tuple[CpuCheck, ...]


class Timing(BaseModel):
    """One network's latency at 224 px on one thread: medians in milliseconds, and their ratios."""

    model_config = ConfigDict(frozen=True)

    network: str
    float_ms: float
    stock_ms: float
    int8_ms: float
    ratio: float
    """Median over the rounds of float / int8."""
    ratio_range: Interval
    """Least and most over the rounds."""
    stock_ratio: float
    """Float / stock."""
    fused: Fused
    stock_fused: Fused
    bytes: int
    float_bytes: int


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
    plan, folders = _parse(path), folders or {}
    names = [images.name for images in plan.images]
    if unknown := set(folders) - set(names):
        raise ConfigError(f"no images are called {', '.join(unknown)}", f"In {path}: {names}")
    found = []
    for images in plan.images:
        own = [*images.set, *more]
        if images.name in folders:
            own += ["data.source=folder", f"data.folder={folders[images.name]}"]
        for student in plan.student:
            config = configs.read(plan.config, [*own, *student.set])
            flow.check(config)
            found.append((images.name, config))
    return found


def _parse(path: Path) -> Plan:
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return read_table(values, Plan, (str(path),))


def run(entries: Sequence[tuple[str, Config]], store: Store) -> Found:
    """Time the networks; then train, quantize and test the students, or take what is there."""
    timings = []
    for network in NETWORKS:
        timing = time_network(network)
        console.print(f"{network}: {timing.float_ms:.2f} ms, int8 {timing.int8_ms:.2f} ms")
        timings.append(timing)
    rows = []
    for name, config in entries:
        row = test_student(name, config, store)
        console.print(f"{name}, {row.student}: {100 * row.loss:+.2f} points lost")
        rows.append(row)
    return Found(rows=tuple(rows), timings=tuple(timings))


def test_student(name: str, config: Config, store: Store) -> Row:
    """Train and quantize one student, and compare the files on the whole test split."""
    context = Context(store=store, seed=config.seed, device=config.device, threads=config.threads)
    dataset = config.data.run(context)
    teacher = config.teach.run(context, dataset)
    student = config.distill.run(context, config.student, teacher, dataset)
    augment = config.student.recipe.augment
    quantized = config.quantize.run(context, student, teacher, dataset, augment)
    if quantized is None:
        raise ConfigError("quantize.enabled is false", "Leave it on.")
    return _compared(name, context, student, dataset, quantized)


def _compared(
    name: str, context: Context, student: Checkpoint, dataset: Dataset, quantized: Quantized
) -> Row:
    import onnx

    from pipeline.quantization import cpus, fused, judge

    test, threads = open_split(dataset, "test"), context.threads or cores()
    shape = (dataset.input.size, dataset.input.size, dataset.input.channels)
    with tempfile.TemporaryDirectory() as folder:
        plain, stock = Path(folder, "float.onnx"), Path(folder, "stock.onnx")
        _write_float(student, plain)
        train = open_split(dataset, "train")
        write_stock(plain, stock, train[slice(0, 512)])
        judging = judge.Judge(onnx.load(plain), test, threads)
        int8 = quantized.folder / quantized.int8
        logits = {p: judging.answers(onnx.load(p)) for p in (plain, stock, int8)}
        named = {path: found.argmax(1) for path, found in logits.items()}
        right = {path: found == test.labels for path, found in named.items()}
        pair = paired_difference(right[plain], right[int8])
        first = slice(0, 1000)
        checks = cpus.compare(int8, test[first], test.labels[first], logits[int8][first], threads)
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
            how=next(trial.name for trial in quantized.trials if trial.kept),
            fused=quantized.fused,
            stock_fused=fused.examine(stock, shape),
            bytes=int8.stat().st_size,
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


def time_network(arch: str) -> Timing:
    """Float, stock int8 and ours, in turn, in this process, on one thread."""
    from pipeline.quantization import fused

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        plain, stock, ours = (place / f"{name}.onnx" for name in ("float", "stock", "int8"))
        checkpoint = _untrained(arch, place)
        images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
        _write_float(checkpoint, plain)
        write_stock(plain, stock, images)
        _write_ours(checkpoint, ours, images)
        rounds = _rounds([plain, stock, ours], images[:1])
        shape = (SIZE, SIZE, 3)
        ratios = [slow / fast for slow, _, fast in rounds]
        medians = [statistics.median(each) for each in zip(*rounds, strict=True)]
        return Timing(
            network=arch,
            float_ms=medians[0],
            stock_ms=medians[1],
            int8_ms=medians[2],
            ratio=statistics.median(ratios),
            ratio_range=(min(ratios), max(ratios)),
            stock_ratio=statistics.median(each[0] / each[1] for each in rounds),
            fused=fused.examine(ours, shape),
            stock_fused=fused.examine(stock, shape),
            bytes=ours.stat().st_size,
            float_bytes=plain.stat().st_size,
        )


def _rounds(paths: Sequence[Path], image: NDArray[np.uint8]) -> list[list[float]]:
    """Median milliseconds of each file in each round; in a round each is timed by itself."""
    from runtime import onnx_runtime

    sessions, found = [onnx_runtime.open(path, 1) for path in paths], []
    for _ in range(ROUNDS):
        medians = []
        for session in sessions:
            session.run(image)
            samples = []
            for _ in range(PER_ROUND):
                before = time.perf_counter_ns()
                session.run(image)
                samples.append(time.perf_counter_ns() - before)
            medians.append(statistics.median(samples) / 1e6)
        found.append(medians)
    return found


def _untrained(arch: str, folder: Path) -> Checkpoint:
    import torch

    import models

    torch.manual_seed(0)
    network = models.build(arch, classes=CLASSES, channels=3, image_size=SIZE)
    torch.save(network.state_dict(), folder / "weights.pt")
    return Checkpoint(
        folder=folder,
        role="student",
        arch=arch,
        labels=tuple(map(str, range(CLASSES))),
        input=NOISE,
        params=sum(p.numel() for p in network.parameters()),
        macs=0,
        device="cpu",
    )


def _write_float(checkpoint: Checkpoint, path: Path) -> None:
    from exporters.onnx import quiet, write_float_graph

    with quiet():
        write_float_graph(checkpoint, path)


def _write_ours(checkpoint: Checkpoint, path: Path, images: NDArray[np.uint8]) -> None:
    import onnx

    from pipeline.quantization import calibration, graph, place

    front = graph.prepare(checkpoint, path)
    ready: onnx.ModelProto = onnx.load(path)
    found = calibration.observe(ready, [images], graph.activations(ready), threads=1)
    ranges = {name: calibration.ranges(each, "minmax") for name, each in found.items()}
    onnx.save(place.place(ready, front, ranges).model, path)


def write_stock(plain: Path, target: Path, images: NDArray[np.uint8]) -> None:
    """What ONNX Runtime's documentation says: pre-process, then `quantize_static`.

    uint8 activations by minimum and maximum, per-channel int8 weights: its best for CPUs.
    """
    from runtime.onnx_runtime import quiet_import

    quiet_import()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from exporters.onnx import INPUT, quiet

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([images[i : i + 32] for i in range(0, len(images), 32)])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:  # type: ignore[override]
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with quiet():
        ready = target.with_suffix(".ready.onnx")
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            target,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
