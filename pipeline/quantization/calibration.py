"""Activation ranges for static int8 quantization from histograms, by four methods.

Sources: Migacz, "8-bit inference with TensorRT", GTC 2017 (entropy); Wu et al., "Integer
quantization for deep learning inference", arXiv 2004.09602, 2020 (percentile, comparison).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.quantization.histogram import Histogram

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METHODS = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
"""Percent of the values that the percentile method keeps: one of those compared by Wu et al."""
KEPT = 0.99
"""Share of the values that the entropy method must keep; zeros do not count."""


def ranges(
    histogram: Histogram, method: str, *, levels: int = 256, symmetric: bool = False
) -> tuple[float, float]:
    """The range ``(low, high)``, low <= 0 <= high, to quantize the tensor with, by `method`.

    It is cut into ``levels - 1`` steps; with `symmetric`, where low is -high, into ``levels - 2``
    (int8 from -127 to 127). (0.0, 0.0) where all values are 0. Raises `ValueError` for a method
    that is none of `METHODS` and for a histogram without values.
    """
    if method not in METHODS:
        raise ValueError(f"{method!r} is none of {', '.join(METHODS)}")
    if not histogram.count:
        raise ValueError(f"no values of {histogram.name!r} were observed")
    cells = _cells(histogram, levels, symmetric)
    low, high = cells.low, cells.high
    if method != "minmax" and high > low:
        low, high = {"percentile": _percentile, "entropy": _entropy, "mse": _mse}[method](cells)
    low, high = low * histogram.width + 0.0, high * histogram.width + 0.0  # no -0.0
    return (0.0 - high, high) if symmetric else (low, high)


@dataclass(frozen=True)
class _Cells:
    """The used bins, in units of one; those of the absolute values for a symmetric range.

    `counts` [n], ascending, has `below` bins of negative values and leaves out exact `zeros`; `low`
    and `high` are the exact extremes, or 0; `levels` grid points lie from one to the other.
    """

    counts: Floats
    below: int
    zeros: int
    low: float
    high: float
    levels: int
    symmetric: bool


def _cells(histogram: Histogram, levels: int, symmetric: bool) -> _Cells:
    low = min(histogram.lowest, 0.0) / histogram.width
    high = max(histogram.highest, 0.0) / histogram.width
    below, above = -math.floor(low), math.floor(high) + 1
    counts = histogram.counts[: below + above].astype(np.float64)
    counts[below] -= histogram.zeros
    if symmetric:
        negative, positive = counts[:below][::-1], counts[below:]
        counts = np.zeros(max(below, above))
        counts[:below] += negative
        counts[:above] += positive
        low, high, below, levels = 0.0, max(-low, high), 0, levels // 2
    return _Cells(counts, below, histogram.zeros, low, high, levels, symmetric)


def _percentile(cells: _Cells) -> tuple[float, float]:
    """All but the ``100 - PERCENTILE`` percent farthest out: half of them at either end."""
    counts = cells.counts.copy()
    counts[cells.below] += cells.zeros
    cut = (1 - PERCENTILE / 100) * counts.sum() / (1 if cells.symmetric else 2)
    low = 0.0 if cells.symmetric else _bins_of(counts, cut) - cells.below
    high = len(counts) - cells.below - _bins_of(counts[::-1], cut)
    return min(max(low, cells.low), 0.0), max(min(high, cells.high), 0.0)


def _bins_of(counts: Floats, cut: float) -> float:
    """Bins from the start of `counts` that hold `cut` values, those of a bin spread evenly."""
    summed = counts.cumsum()
    last = int(np.searchsorted(summed, cut))
    return float(last + 1 - (summed[last] - cut) / counts[last])


def _mse(cells: _Cells) -> tuple[float, float]:
    """The least expected squared error over clipped ranges, for both ends at once.

    Inside it is ``step² / 12``, as of errors spread evenly over a step; outside it is the squared
    distance to the end. Exact zeros have none: zero is a grid point of every range.
    """
    lows, low_inside, low_errors = _ends(cells.counts[: cells.below][::-1], -cells.low)
    highs, high_inside, high_errors = _ends(cells.counts[cells.below :], cells.high)
    step = (lows[:, None] + highs) / (cells.levels - 1)
    rounding = (low_inside[:, None] + high_inside) * step**2 / 12
    error = rounding + low_errors[:, None] + high_errors
    low, high = np.unravel_index(error.argmin(), error.shape)
    return -float(lows[low]), float(highs[high])


def _ends(counts: Floats, most: float) -> tuple[Floats, Floats, Floats]:
    """Ends to try on one side of zero, with `counts` outwards and `most` the farthest value.

    Of each: where it is, the values inside, the sum of the squared distances of those outside. They
    lie one bin or 1 % of their distance from zero apart: the error is flat where it is least.
    """
    n = len(counts)
    tried = np.unique(np.geomspace(1, n, 770).round()).astype(int) if n else []
    ends = np.array([0, *tried], dtype=int)
    centres = np.arange(n) + 0.5
    moments = [_summed(counts * centres**k) for k in (0, 1, 2)]
    outside, first, second = (moment[-1] - moment[ends] for moment in moments)
    # Of values spread evenly over a bin, 1/12 is the variance.
    errors = second - 2 * ends * first + (ends**2 + 1 / 12) * outside
    return np.minimum(ends, most), moments[0][ends], errors


def _entropy(cells: _Cells) -> tuple[float, float]:
    """The least Kullback-Leibler divergence over clipped ranges, for both ends at once.

    Ends are tried behind bins that are not empty, every 32nd of them first (every 4th where there
    is but one side), then closer around the best. Two things differ from TensorRT. Exact zeros are
    left out: zero is a grid point of every range, and the spike that a ReLU makes there would be
    nearly all of the distribution, so that to clip the rest would cost next to nothing. And a range
    must keep `KEPT` of the other values, not some number of bins: with nearly all of them clipped
    into one bin, reference and candidate would agree again.
    """
    counts, zero = cells.counts, cells.below
    sums = _summed(counts)
    starts = np.append(np.flatnonzero(counts[:zero]), zero)
    ends = np.append(zero, zero + 1 + np.flatnonzero(counts[zero:]))
    spacing = 32 if len(starts) > 1 and len(ends) > 1 else 4
    firsts, lasts = np.arange(0, len(starts), spacing), np.arange(len(ends) - 1, -1, -spacing)
    while True:
        first, last = (each.ravel() for each in np.meshgrid(firsts, lasts))
        kept = sums[ends[last]] - sums[starts[first]] >= KEPT * sums[-1]
        first, last = first[kept], last[kept]
        best = _divergence(cells, starts[first], ends[last]).argmin()
        low, high = float(starts[first[best]] - zero), float(ends[last[best]] - zero)
        if spacing == 1:
            return max(low, cells.low), min(high, cells.high)
        finer = max(1, spacing // 4)
        near = np.arange(-spacing, spacing + 1, finer)
        firsts = np.unique(np.clip(first[best] + near, 0, len(starts) - 1))
        lasts = np.unique(np.clip(last[best] + near, 0, len(ends) - 1))
        spacing = finer


def _divergence(cells: _Cells, start: Ints, end: Ints) -> Floats:
    """Divergence of each range of the bins `start` to `end`; infinite where it is undefined.

    The reference P is the bins inside, those outside added to the outermost. The candidate Q is
    what `levels` equal cells tell of the bins inside: the values of each are spread evenly over
    those of its bins where P is not 0. With bins c, cells m of k such bins each, their sum M of all
    N values, KL(P, Q) is ``(sum(c log c) - sum(m log(m / k))) / N + log(M / N)``, but for the two
    outermost bins. A range shorter than `levels` bins has a cell for each.
    """
    counts, rows = cells.counts, np.arange(len(start))
    sums, filled, terms = map(_summed, (counts, counts > 0, _xlogx(counts)))
    length = (end - start)[:, None]
    used = np.minimum(cells.levels, length)
    # Bin j belongs to cell floor(j * used / length): these are the first bins of the cells.
    places = np.minimum(np.arange(cells.levels + 1), used)
    edges = start[:, None] - (-places * length) // used
    mass, bins = np.diff(sums[edges]), np.diff(filled[edges])
    result = terms[end] - terms[start]
    with np.errstate(divide="ignore", invalid="ignore"):
        for outside, outermost, cell in (
            (sums[start], counts[start], 0),
            (sums[-1] - sums[end], counts[end - 1], used[:, 0] - 1),
        ):
            # Where that bin was empty: at zero, an end even if no value is next to it.
            bins[rows, cell] += (outside > 0) & (outermost == 0)
            own = outside * np.log(mass[rows, cell] / bins[rows, cell])
            moved = _xlogx(outermost + outside) - _xlogx(outermost)
            result += np.where(outside > 0, moved - own, 0.0)
    result -= (mass * np.log(np.maximum(mass, 1) / np.maximum(bins, 1))).sum(1)
    return result / sums[-1] + np.log((sums[end] - sums[start]) / sums[-1])


def _summed(counts: NDArray[Any]) -> Floats:
    """[n + 1], the sums of the first 0 to n of `counts`."""
    return np.append(0.0, counts.cumsum())


def _xlogx(counts: Floats) -> Floats:
    """``x log x``, 0 at 0."""
    return counts * np.log(np.maximum(counts, 1))
