"""The few statistics that the reports rest on, each with its source.

An accuracy is a proportion of counted images, so its interval is one of a proportion; two models
scored on the same images are paired, and the pairing is what makes a small gain visible.
Proportions and differences are fractions (0.01 is one percentage point); times go in as
nanoseconds and come out as milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from operator import index
from statistics import NormalDist
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from scipy.stats import t as student_t

Interval = tuple[float, float]
Z95 = NormalDist().inv_cdf(0.975)
"""Half-width of a 95 % interval in standard errors."""
BELIEVED = 0.05
"""A p below it is taken for certain."""
RESAMPLES = 10_000
"""Of a bootstrap."""


@dataclass(frozen=True)
class PairedDifference:
    """How much better B is than A in top-1, over the same images."""

    difference: float
    """Top-1 of B minus top-1 of A, in -1..1."""
    ci95: Interval
    """95 % interval of the difference."""
    mcnemar_p: float
    """Exact two-sided McNemar p: the chance of discordant images split this unevenly, or more, if
    A and B were equally good."""
    n: int
    """Images."""
    only_a: int | None = None
    """Images that A alone got right; None in reports of before this was kept."""
    only_b: int | None = None
    """Images that B alone got right; None in reports of before this was kept."""


def wilson(successes: SupportsIndex, n: SupportsIndex) -> Interval:
    """95 % interval of the proportion `successes` / `n` (Wilson 1927, the score interval).

    Raises ValueError when `n` is 0 or `successes` is not in 0..n.
    """
    k, count = index(successes), index(n)
    if count < 1:
        raise ValueError("a proportion of no images has no interval")
    interval = binomtest(k, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike) -> PairedDifference:
    """Top-1 of B minus top-1 of A, where both say per image (same order) whether it was right.

    The interval is Wald's after adding one to both discordant counts (Bonett & Price 2012, J.
    Educ. Behav. Stat. 37:479; among those recommended by Fagerland, Lydersen & Laake 2014, Stat.
    Med. 33:2850): closed form, and still of positive width where A and B never disagree. The p
    is McNemar's (1947), exact: a binomial test on the images that only one of them got right.

    Raises ValueError when the two differ in length or are empty.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"not the same images: shapes {a.shape} and {b.shape}")
    if a.size == 0:
        raise ValueError("no images to compare on")
    only_a, only_b = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
    n = int(a.size)
    up, down = (only_b + 1) / (n + 2), (only_a + 1) / (n + 2)
    centre, half = up - down, Z95 * sqrt((up + down - (up - down) ** 2) / (n + 2))
    discordant = only_a + only_b
    return PairedDifference(
        difference=(only_b - only_a) / n,
        ci95=(max(-1.0, centre - half), min(1.0, centre + half)),
        mcnemar_p=float(binomtest(only_b, discordant).pvalue) if discordant else 1.0,
        n=n,
        only_a=only_a,
        only_b=only_b,
    )


def paired_bootstrap(only_a: int, only_b: int, n: int) -> Interval | None:
    """95 % interval of top-1 of B minus top-1 of A: resampled images, each with both answers.

    The percentile interval (Efron & Tibshirani 1993, chapter 13) of `RESAMPLES` draws with a fixed
    seed. Of a resampled set of images only three counts matter: how many A alone, B alone, or both
    or neither got right. Drawing `n` of `n` images with replacement makes them multinomial with the
    shares observed, so they are drawn as such: the same distribution, whatever `n` is.

    None where all images are of one kind (A and B never disagree; there is one image): every
    resampled set is then the same, and an interval of no width would claim what nobody knows.
    `paired_difference` has one all the same.

    Raises ValueError where the counts are not those of `n` images, or there are none.
    """
    if n < 1 or min(only_a, only_b) < 0 or only_a + only_b > n:
        raise ValueError(f"{only_a} and {only_b} of {n} images cannot be")
    if n in (only_a, only_b, n - only_a - only_b):
        return None
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    drawn = np.random.default_rng(0).multinomial(n, shares, RESAMPLES)
    low, high = np.percentile(drawn[:, 1] - drawn[:, 0], (2.5, 97.5)) / n
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values`, in their order, adjusted for being several (Holm 1979, Scand. J. Stat. 6:65).

    Where those below `BELIEVED` are believed, the chance that any of them misleads is 5 % at most,
    however the tests depend on one another. Raises ValueError for what is not in 0..1.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"not all of them are probabilities: {list(p_values)}")
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def side(ci95: Interval) -> int:
    """The sign that an interval is sure of; 0 where it includes zero."""
    return int(ci95[0] > 0) - int(ci95[1] < 0)


def unpaired_interval(top1_a: float, n_a: int, top1_b: float, n_b: int) -> Interval:
    """95 % interval of B minus A over different images (Newcombe 1998, Stat. Med. 17:873, no. 10).

    It squares and adds the distances to the two Wilson limits. Raises ValueError when a count is 0.
    """
    low_a, high_a = wilson(round(top1_a * n_a), n_a)
    low_b, high_b = wilson(round(top1_b * n_b), n_b)
    difference = top1_b - top1_a
    below = sqrt((top1_b - low_b) ** 2 + (high_a - top1_a) ** 2)
    above = sqrt((high_b - top1_b) ** 2 + (top1_a - low_a) ** 2)
    return difference - below, difference + above


def mean_interval(values: ArrayLike) -> tuple[float, Interval]:
    """The mean of independent `values` and its 95 % interval (Student 1908, Biometrika 6:1).

    For a figure that every seed gave anew: few values of unknown spread, hence t with one degree
    of freedom less than there are values. Where all are equal, the interval has no width.

    Raises ValueError for fewer than two values: one alone says nothing about the spread.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size < 2:
        raise ValueError(f"an interval of a mean takes at least two values, not {sample.size}")
    mean, spread = float(sample.mean()), float(sample.std(ddof=1))
    half = float(student_t.ppf(0.975, sample.size - 1)) * spread / sqrt(sample.size)
    return mean, (mean - half, mean + half)


def ratio(a: ArrayLike, b: ArrayLike) -> tuple[float, Interval]:
    """Geometric mean of `b` / `a` over rounds that timed both, and its 95 % interval.

    The interval is the percentile bootstrap (Efron & Tibshirani 1993, chapter 13) of the mean log
    ratio over the rounds, with a fixed seed, stretched about that mean: what is drawn from n rounds
    spreads sqrt((n - 1) / n) as wide as the rounds do, and they give the spread itself no better
    than Student's t says (Hesterberg 2015, Am. Stat. 69:371, on why plain percentiles are too
    narrow for few values). In simulations of 5 and of 15 normal rounds it covers 95 %, plain
    percentiles 85 and 92 %. Where all rounds agree, it has no width.

    Raises ValueError for fewer than two rounds, different numbers of them, or times that are not
    positive.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size < 2:
        raise ValueError(f"not the same two rounds or more: {first.shape} and {second.shape}")
    if (first <= 0).any() or (second <= 0).any():
        raise ValueError("a time that is not positive has no ratio")
    logs = np.log(second / first)
    n, mean = logs.size, logs.mean()
    drawn = np.random.default_rng(0).choice(logs, (RESAMPLES, n)).mean(axis=1)
    stretch = sqrt(n / (n - 1)) * student_t.ppf(0.975, n - 1) / Z95
    low, high = np.exp(mean + stretch * (np.percentile(drawn, (2.5, 97.5)) - mean))
    return float(np.exp(mean)), (float(low), float(high))


def percentiles(samples_ns: ArrayLike) -> tuple[float, float, float]:
    """The 50th, 90th and 99th percentile in milliseconds of durations in nanoseconds.

    Linear between order statistics (type 7 of Hyndman & Fan 1996). Nothing is clipped: tails are
    part of what a user waits for. Raises ValueError when there are no samples.
    """
    samples = np.asarray(samples_ns, dtype=np.float64)
    if samples.size == 0:
        raise ValueError("no samples")
    p50, p90, p99 = np.percentile(samples, (50, 90, 99)) / 1e6
    return float(p50), float(p90), float(p99)
