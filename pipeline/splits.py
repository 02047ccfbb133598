"""Cuts through labels: seeded, and with every class in its proportion."""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def shares(counts: Counts, total: int, least: int = 1, spare: int = 0) -> Counts:
    """How many of each class make `total`, in proportion to `counts`.

    At least `least` of each, and at most all but `spare`; where these leave no choice, the sum is
    as near to `total` as they allow.
    """
    most = counts - spare
    if (most < least).any():
        raise ValueError(f"a class has fewer than {least + spare}")
    total = int(np.clip(total, least * len(counts), most.sum()))
    exact = counts * (total / counts.sum())
    taken = np.clip(np.floor(exact).astype(np.int64), least, most)
    # Largest remainders first, as in proportional elections.
    while taken.sum() < total:
        taken[np.argmax(np.where(taken < most, exact - taken, -np.inf))] += 1
    while taken.sum() > total:
        taken[np.argmin(np.where(taken > least, exact - taken, np.inf))] -= 1
    return taken


def stratified(
    labels: NDArray[np.int64], total: int, seed: tuple[int, ...], *, least: int = 1, spare: int = 0
) -> NDArray[np.bool_]:
    """A mask of `total` of the `labels`, chosen by chance within each class; see `shares`."""
    counts = np.bincount(labels)
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), np.bool_)
    rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    for row, share in zip(rows, shares(counts, total, least, spare), strict=True):
        chosen[generator.permutation(row)[:share]] = True
    return chosen
