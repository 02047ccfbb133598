"""What a classifier takes for what: its confusion matrix, and how far the classes it names hold.

Counts of images, from the classes named and the true ones. A thousand classes have a million
cells, nearly all empty: of so many only the largest are kept. Nothing here needs torch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from benchmarks.stats import BELIEVED, PairedDifference, holm, paired_difference
from pipeline.records import Record

DENSE = 50
"""Classes up to which the whole matrix is kept."""
KEPT = 100
"""Confusions that are kept of more classes, the most frequent ones."""


class Confused(NamedTuple):
    """Images of one class that were named as another."""

    truth: int
    """Index of the true class."""
    named: int
    n: int


class Confusions(Record):
    """What was named as what, in images."""

    model_config = ConfigDict(extra="ignore")

    wrong: int
    """Images named wrongly."""
    counts: tuple[tuple[int, ...], ...] | None = None
    """By true class, then by the class named; None where there are too many classes for it."""
    cells: tuple[Confused, ...] = ()
    """The most frequent confusions, most first; only where there is no whole matrix."""

    def most(self, n: int) -> tuple[Confused, ...]:
        """The `n` most frequent confusions, as far as they are known; most first."""
        return (self.cells if self.counts is None else _largest(np.array(self.counts)))[:n]


def count(
    named: NDArray[np.integer], labels: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """The confusion matrix [classes, classes]: rows are true classes, columns the ones named."""
    cells = np.bincount(labels * classes + named, minlength=classes * classes)
    return cells.reshape(classes, classes)


def of(matrix: NDArray[np.int64]) -> Confusions:
    """What a report keeps of a confusion matrix."""
    wrong = int(matrix.sum() - np.trace(matrix))
    if len(matrix) <= DENSE:
        return Confusions(wrong=wrong, counts=tuple(tuple(row) for row in matrix.tolist()))
    return Confusions(wrong=wrong, cells=_largest(matrix)[:KEPT])


def _largest(matrix: NDArray[np.int64]) -> tuple[Confused, ...]:
    """Cells off the diagonal that are not empty, most first, then in order of the classes."""
    truth, named = np.nonzero(matrix)
    found = [
        Confused(int(row), int(column), int(matrix[row, column]))
        for row, column in zip(truth, named, strict=True)
        if row != column
    ]
    return tuple(sorted(found, key=lambda cell: -cell.n))


def precisions(matrix: NDArray[np.int64]) -> tuple[float | None, ...]:
    """Of the images named as a class, the share that belongs to it; None where none was so named.

    Its counterpart, recall, is the class's top-1.
    """
    named = matrix.sum(axis=0)
    hits = np.diagonal(matrix)
    return tuple(
        float(hit / n) if n else None for hit, n in zip(hits.tolist(), named.tolist(), strict=True)
    )


def by_class(
    right_a: NDArray[np.bool_],
    right_b: NDArray[np.bool_],
    labels: NDArray[np.integer],
    classes: int,
) -> tuple[PairedDifference | None, ...]:
    """Top-1 of B minus that of A in each class, over the same images; None of a class without any.

    Raises ValueError where the two are not of the same images.
    """
    if not len(right_a) == len(right_b) == len(labels):
        raise ValueError(f"not the same images: {len(right_a)}, {len(right_b)}, {len(labels)}")
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    parts = np.split(order, ends[:-1])
    return tuple(
        paired_difference(right_a[part], right_b[part]) if len(part) else None for part in parts
    )


def certain(found: Sequence[PairedDifference | None]) -> list[int]:
    """The classes whose difference is no chance, though so many are looked at at a time.

    `holm` over the McNemar p of all of them.
    """
    told = [(at, each.mcnemar_p) for at, each in enumerate(found) if each is not None]
    adjusted = holm([p for _, p in told])
    return [at for (at, _), p in zip(told, adjusted, strict=True) if p < BELIEVED]
