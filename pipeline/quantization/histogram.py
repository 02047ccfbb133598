"""The values of activations over many images, in memory that does not grow with their number.

ONNX Runtime's own percentile and entropy calibration keeps every value of every image (its issue
10503). Here a tensor has one histogram, whose bins double in width when values fall outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckpointError, ExportError

if TYPE_CHECKING:
    import onnx

Ints = NDArray[np.int64]

BINS = 2048
"""Bins of a histogram, as in TensorRT; about half of them or more lie between the extremes."""
ACTIVATION_BYTES = 256 * 1024**2
"""Bound on the observed values of one pass; see `batch_of`."""
FINEST = -160
"""Exponent of the first bin width: `BINS` such bins do not reach the smallest float32."""
PIECE = 1 << 16
"""Values binned at once: the intermediate arrays stay small, whatever the tensor's size."""


class Histogram:
    """Counts of the values of one tensor, in bins of equal width.

    Bin k holds the values v with ``(first + k) * width <= v < (first + k + 1) * width``. The width
    is the smallest power of two by which all values and zero fit into `BINS` bins: zero is an edge,
    doubling merges whole bins, and how the values were cut into batches makes no difference.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lowest, self.highest = math.inf, -math.inf
        """Exact minimum and maximum; infinite while there are no values."""
        self.count = self.zeros = 0
        """Values in all, and those that are exactly 0."""
        self.counts: Ints = np.zeros(BINS, np.int64)
        self.exponent, self.first = FINEST, 0

    @property
    def width(self) -> float:
        """Width of a bin, in the tensor's unit."""
        return 2.0**self.exponent

    def add(self, values: NDArray[np.float32]) -> None:
        """Count `values`, float32 of any shape.

        Raises `CheckpointError` naming the tensor, and counts none, where one is not finite.
        """
        if not values.size:
            return
        lowest, highest = float(values.min()), float(values.max())
        if not math.isfinite(lowest) or not math.isfinite(highest):  # min() of NaN is NaN
            raise CheckpointError(
                f"the network's values at {self.name!r} are not all finite numbers",
                remedy="The training diverged: lower its learning_rate, or set clip_norm.",
            )
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self._cover(min(self.lowest, 0.0), max(self.highest, 0.0))
        flat = np.ascontiguousarray(values).reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            # In float64, where float32 times any of these powers of two is exact.
            place = np.multiply(piece, 2.0**-self.exponent, dtype=np.float64)
            np.floor(place, out=place)
            place -= self.first
            self.counts += np.bincount(place.astype(np.intp), minlength=BINS)
            self.zeros += piece.size - int(np.count_nonzero(piece))
        self.count += flat.size

    def _cover(self, low: float, high: float) -> None:
        """Merge and shift the bins so that `low` <= 0 and `high` >= 0 have one."""
        exponent = _exponent(low, high)
        first = math.floor(low / 2.0**exponent)
        if (exponent, first) == (self.exponent, self.first):
            return
        used = np.flatnonzero(self.counts)
        # >> rounds down, negative numbers too; shifting by 64 or more leaves 0 or -1.
        moved = ((used + self.first) >> (exponent - self.exponent)) - first
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, moved, self.counts[used])
        self.counts, self.exponent, self.first = counts, exponent, first


def _exponent(low: float, high: float) -> int:
    """The smallest exponent of a bin width by which `low` to `high` fit into `BINS` bins."""
    exponent = FINEST
    if high > low:
        exponent = max(FINEST, math.frexp((high - low) / BINS)[1] - 2)
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= BINS:
        exponent += 1
    return exponent


def batch_of(model: onnx.ModelProto, tensors: Sequence[str]) -> int:
    """Images for one pass of `observe` over `tensors` of `model`, whose shapes are known.

    The float32 values observed in one pass then stay below `ACTIVATION_BYTES` (256 MiB), unless one
    image has more.
    """
    from pipeline.quantization.graph import shapes

    sizes = shapes(model)
    values = sum(math.prod(sizes[name][1:]) for name in tensors)
    return max(1, ACTIVATION_BYTES // (4 * max(values, 1)))


def observe(
    model: onnx.ModelProto | Path,
    images_batches: Iterable[NDArray[np.uint8]],
    tensors: Sequence[str],
    threads: int,
) -> dict[str, Histogram]:
    """Histograms of the float32 `tensors` of the float graph `model`, by name.

    Each of `images_batches`, uint8 [batch, height, width, channels], is one pass (see `batch_of`),
    and no more than its values are held. Raises `ExportError` where ONNX Runtime cannot give these
    tensors, `CheckpointError` where a value is not finite.
    """
    from exporters.onnx import INPUT

    session = _session(model, tensors, threads)
    histograms = {name: Histogram(name) for name in tensors}
    for images in images_batches:
        # Nothing may hold the values when the next pass begins: they lie in ONNX Runtime's arena,
        # which then is used again and grows no more after the second pass.
        passed = session.run(list(histograms), {INPUT: images})[::-1]
        for histogram in histograms.values():
            histogram.add(passed.pop())
    return histograms


def _session(model: onnx.ModelProto | Path, tensors: Sequence[str], threads: int) -> Any:
    """An ONNX Runtime session of `model` with `tensors` among its outputs."""
    import onnx

    from runtime.onnx_runtime import PROVIDER, quiet_import

    wanted = onnx.ModelProto()
    wanted.CopyFrom(onnx.load(model) if isinstance(model, Path) else model)
    outputs = wanted.graph.output
    for name in sorted(set(tensors) - {value.name for value in outputs}):
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    ort = quiet_import()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what is fatal is raised
    try:
        return ort.InferenceSession(wanted.SerializeToString(), options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime has an exception class a status code, no base
        raise ExportError(
            f"ONNX Runtime cannot give the values inside the float graph: {error}",
            remedy="Choose another student.arch, or set quantize.enabled to false.",
        ) from error
