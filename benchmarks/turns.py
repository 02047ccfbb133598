"""Two files against each other, and one file over minutes: what a single latency does not tell."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks import latency, stats
from benchmarks.profiles import Profile
from benchmarks.targets import Target
from pipeline.progress import bar

ROUND_SECONDS = 0.5
"""Of samples in each process of a comparison: many short processes tell more than few long ones,
for a process differs from the next by more than its samples tell (benchmarks/LOG.md)."""
WINDOW = 5.0
"""Seconds of a sustained run that one point of its curve covers."""


class Comparison(BaseModel):
    """Two files, timed in turn."""

    model_config = ConfigDict(frozen=True)

    a: str
    b: str
    a_ms: tuple[float, ...]
    """Median of each process."""
    b_ms: tuple[float, ...]
    ratio: float
    """Geometric mean over the rounds of B's median over A's."""
    ratio_ci95: stats.Interval


def compare(a: Target, b: Target, profile: Profile, rounds: int) -> Comparison:
    """Time `a` and `b` in turn (A B A B ...), each time in a fresh process.

    What drifts, a clock or a neighbour, is in both files of a round; the rounds' ratios have a
    bootstrap interval.
    """
    seconds = min(ROUND_SECONDS, profile.min_seconds)
    short = profile.model_copy(update={"min_seconds": seconds, "max_seconds": seconds})
    medians: tuple[list[float], list[float]] = ([], [])
    with bar(f"{a.title} against {b.title}", 2 * rounds) as shown:
        for _ in range(rounds):
            for target, found in zip((a, b), medians, strict=True):
                path = target.path.resolve()
                timing = latency.measure(target.runtime, path, target.images, short)
                found.append(float(np.median(timing.samples_ns)) / 1e6)
                shown.advance()
    ratio, interval = stats.ratio(*medians)
    return Comparison(
        a=a.title,
        b=b.title,
        a_ms=tuple(medians[0]),
        b_ms=tuple(medians[1]),
        ratio=ratio,
        ratio_ci95=interval,
    )


class Curve(BaseModel):
    """One file over minutes."""

    model_config = ConfigDict(frozen=True)

    title: str
    window_s: float
    p50_ms: tuple[float, ...]
    """Of each window, in order; a last, shorter one is left out."""
    peak_rss_bytes: int


def sustain(target: Target, profile: Profile, minutes: float) -> Curve:
    """Run `target` without a pause for so many minutes, as a camera app does."""
    seconds = 60 * minutes
    whole = profile.model_copy(
        update={"min_seconds": seconds, "max_seconds": seconds, "processes": 1}
    )
    path, limit = target.path.resolve(), seconds + latency.TIMEOUT
    timing = latency.measure(target.runtime, path, target.images, whole, timeout=limit)
    window = min(WINDOW, seconds / 4)
    return Curve(
        title=target.title,
        window_s=window,
        p50_ms=tuple(windows(np.asarray(timing.samples_ns), window)),
        peak_rss_bytes=timing.peak_rss_bytes,
    )


def windows(samples_ns: NDArray[np.int64], seconds: float) -> list[float]:
    """Median milliseconds of the samples of each whole window of so many seconds of inference."""
    ends = np.cumsum(samples_ns)
    number = (ends / (seconds * 1e9)).astype(np.int64)
    whole = int(ends[-1] // (seconds * 1e9)) if len(ends) else 0
    return [float(np.median(samples_ns[number == i])) / 1e6 for i in range(whole)]


def ranking(curves: Sequence[Curve], at: int) -> list[str]:
    """Titles, the fastest first, by the window at index `at`."""
    return [curve.title for curve in sorted(curves, key=lambda curve: curve.p50_ms[at])]
