"""Two files against each other, and one file over minutes: what a single latency does not tell."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks import latency, stats
from benchmarks.printing import announce
from benchmarks.profiles import Profile
from benchmarks.targets import Target

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
    samples_ns: dict[str, list[int]] = Field(default={}, exclude=True)
    """All of each process, by title and round; too many for a text."""


def compare(a: Target, b: Target, profile: Profile, rounds: int) -> Comparison:
    """Time `a` and `b` in turn (A B A B ...), each time in a fresh process.

    What drifts, a clock or a neighbour, is in both files of a round; the rounds' ratios have a
    bootstrap interval.
    """
    seconds = min(ROUND_SECONDS, profile.min_seconds)
    short = profile.model_copy(update={"min_seconds": seconds, "max_seconds": seconds})
    medians: tuple[list[float], list[float]] = ([], [])
    samples: dict[str, list[int]] = {}
    announce(f"{a.title} against {b.title}: {rounds} rounds")
    for number in range(1, rounds + 1):
        for target, found in zip((a, b), medians, strict=True):
            path = target.path.resolve()
            timing = latency.measure(target.runtime, path, target.images, short)
            found.append(float(np.median(timing.samples_ns)) / 1e6)
            samples[f"{target.title} round {number}"] = timing.samples_ns
    ratio, interval = stats.ratio(*medians)
    return Comparison(
        a=a.title,
        b=b.title,
        a_ms=tuple(medians[0]),
        b_ms=tuple(medians[1]),
        ratio=ratio,
        ratio_ci95=interval,
        samples_ns=samples,
    )


class Curve(BaseModel):
    """One file over minutes."""

    model_config = ConfigDict(frozen=True)

    title: str
    window_s: float
    p50_ms: tuple[float, ...] = Field(min_length=1)
    """Of each window, in order; a last, shorter one is left out, if it is not the only one."""
    peak_rss_bytes: int
    samples_ns: list[int] = Field(default=[], exclude=True)
    """All of them; too many for a text."""


def sustain(target: Target, profile: Profile, minutes: float) -> Curve:
    """Run `target` without a pause for so many minutes, as a camera app does."""
    announce(f"{target.title}: {minutes:g} min")
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
        samples_ns=timing.samples_ns,
    )


def windows(samples_ns: NDArray[np.int64], seconds: float) -> list[float]:
    """Median milliseconds of the samples of each whole window of so many seconds of inference.

    A window in which none ended is as slow as the one that went on all through it; samples that
    fill no window are one. Raises ValueError without samples.
    """
    if not len(samples_ns):
        raise ValueError("no samples")
    ends, long = np.cumsum(samples_ns), seconds * 1e9
    whole = int(ends[-1] // long)
    if whole == 0:
        return [float(np.median(samples_ns)) / 1e6]
    cuts = np.searchsorted(ends, long * np.arange(whole + 1))
    found = [samples_ns[first : max(last, first + 1)] for first, last in pairwise(cuts)]
    return [float(np.median(each)) / 1e6 for each in found]


def ranking(curves: Sequence[Curve], at: int) -> list[str]:
    """Titles, the fastest first, by the window at index `at`."""
    return [curve.title for curve in sorted(curves, key=lambda curve: curve.p50_ms[at])]
