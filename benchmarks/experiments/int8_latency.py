"""Latency of float, of ONNX Runtime's own int8 and of ours, at the size that phones use."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.experiments.stock import write_float, write_stock
from benchmarks.latency import in_fresh_process
from benchmarks.stats import Interval
from pipeline.quantized import Fused
from pipeline.records import Checkpoint, InputSpec, Scheme

SIZE = 224
WORKER = "benchmarks.experiments.int8_latency"
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


class Timing(BaseModel):
    """One network's latency at 224 px on one thread: medians in milliseconds, and their ratios."""

    model_config = ConfigDict(frozen=True)

    network: str
    scheme: Scheme
    """Of ours."""
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


def time_network(arch: str, scheme: Scheme) -> Timing:
    """Float, stock int8 and ours, in turn, in a fresh process, on one thread."""
    from pipeline.quantization import fused

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        plain, stock, ours = (place / f"{name}.onnx" for name in ("float", "stock", "int8"))
        checkpoint = _untrained(arch, place)
        images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
        write_float(checkpoint, plain)
        write_stock(plain, stock, images)
        _write_ours(checkpoint, ours, images, scheme)
        words = [str(path) for path in (plain, stock, ours)]
        words += ["--shape", ",".join(map(str, images[:1].shape))]
        told = in_fresh_process(WORKER, words, images[:1], f"timing {arch}")
        rounds: list[list[float]] = json.loads(told)
        shape = (SIZE, SIZE, 3)
        ratios = [slow / fast for slow, _, fast in rounds]
        medians = [statistics.median(each) for each in zip(*rounds, strict=True)]
        return Timing(
            network=arch,
            scheme=scheme,
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


def _write_ours(
    checkpoint: Checkpoint, path: Path, images: NDArray[np.uint8], scheme: Scheme
) -> None:
    import onnx

    from exporters.onnx import compact
    from pipeline.quantization import calibration, graph, histogram, place

    _, ready, front = graph.prepare(checkpoint)
    found = histogram.observe(ready, [images], graph.activations(ready), threads=1)
    ranges = {name: calibration.ranges(each, "minmax") for name, each in found.items()}
    onnx.save(compact(place.place(ready, front, ranges, scheme).model), path)


def main() -> None:
    """The fresh process: times the files on one image and prints `_rounds` as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))))
    options = parser.parse_args()
    image = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(options.shape)
    print(json.dumps(_rounds(options.paths, image)))


if __name__ == "__main__":
    main()
