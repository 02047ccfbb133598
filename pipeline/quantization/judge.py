"""What an int8 graph answers to validation images, against the float student and the labels."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.images import Images, spread
from runtime import onnx_runtime

Logits = NDArray[np.float32]
BATCH = 128
NOISELESS = 200.0
"""Decibels that are beyond float32."""
MIN_SAMPLES, SECONDS = 50, 1
"""Timed inferences of each graph, and time for each."""


class Score(NamedTuple):
    """How good a graph is; better ones compare as greater."""

    top1: float
    """Share of the images that it names rightly."""
    agreement: float
    """Share on which it names the same class as the float student."""
    snr_db: float
    """Variance of the float student's logits to the mean square of their difference, in decibels;
    `NOISELESS` where there is none."""


class Judge:
    """Scores graphs on `n` images of a split, evenly spaced, or on all."""

    def __init__(
        self, float_graph: onnx.ModelProto, images: Images, threads: int, n: int | None = None
    ) -> None:
        self._rows = spread(n, len(images))
        self.n = len(self._rows)
        self._images, self.threads = images, threads
        self._labels = images.labels[self._rows]
        self.logits = self.answers(float_graph)
        """The float student's."""
        self.alone: Callable[[], AbstractContextManager[object]] = nullcontext
        """Held while something is timed."""
        self.float_top1 = float((self.logits.argmax(1) == self._labels).mean())

    def answers(self, graph: onnx.ModelProto) -> Logits:
        """Logits [n, classes] by ONNX Runtime on this CPU."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "graph.onnx")
            onnx.save(graph, path)
            session = onnx_runtime.open(path, self.threads)
            parts = [self._rows[i : i + BATCH] for i in range(0, self.n, BATCH)]
            return np.concatenate([session.run(x) for x in self._images.ahead(parts)])

    def __call__(self, graph: onnx.ModelProto) -> Score:
        """The score of `graph`."""
        found = self.answers(graph)
        named = found.argmax(1)
        noise = np.square(found - self.logits, dtype=np.float64).mean()
        signal = np.var(self.logits, dtype=np.float64)
        snr_db = float(10 * np.log10(signal / noise)) if noise and signal else NOISELESS
        return Score(
            top1=float((named == self._labels).mean()),
            agreement=float((named == self.logits.argmax(1)).mean()),
            snr_db=snr_db,
        )

    def interleaved_ms(self, graphs: Sequence[onnx.ModelProto]) -> list[float]:
        """Median milliseconds of one image on one thread, by graph, taken in turn (A B A B ...).

        In this process: good for ratios among them; a latency to report is measured apart.
        """
        image = self._images[slice(0, 1)]
        with self.alone(), tempfile.TemporaryDirectory() as folder:
            sessions = []
            for number, graph in enumerate(graphs):
                path = Path(folder, f"{number}.onnx")
                onnx.save(graph, path)
                sessions.append(onnx_runtime.open(path, 1))
            times: list[list[int]] = [[] for _ in sessions]
            until = time.perf_counter_ns() + SECONDS * 10**9 * len(sessions)
            while len(times[0]) < MIN_SAMPLES or time.perf_counter_ns() < until:
                for session, samples in zip(sessions, times, strict=True):
                    session.run(image)  # brings its weights back into the caches
                    before = time.perf_counter_ns()
                    session.run(image)
                    samples.append(time.perf_counter_ns() - before)
        return [statistics.median(samples) / 1e6 for samples in times]
