"""All runs by the accuracy of what they ship, and which are certainly behind the first."""

from collections.abc import Sequence
from itertools import combinations

from benchmarks.stats import BELIEVED, Interval, holm
from pipeline.comparing import difference, incomparable
from pipeline.comparison.facts import Change, Run, change
from pipeline.records import Record
from pipeline.summary import ArtifactRow, LatencyRow, Report

Entry = tuple[Run, Report, ArtifactRow | None]
"""A run with its file to ship; None where it has none."""


class Place(Record):
    """A run on the leaderboard, by its file to ship."""

    run: Run
    file: str | None
    top1: float | None
    top1_ci95: Interval | None
    n: int | None
    p50_ms: float | None
    bytes: int | None
    behind: Change | None = None
    """This minus the leader; None of the leader, and where there is no accuracy."""
    holm_p: float | None = None
    """McNemar's p of that, adjusted for all pairs of runs; None where it is not paired."""
    certain: bool
    """Whether it is certainly less accurate than the leader: that p is below `BELIEVED`, or, where
    it is not paired, the 95 % interval of the difference (Newcombe's, of this pair alone) is below
    zero."""
    why: str | None = None
    """Why a figure is missing."""


def places(entries: Sequence[Entry], *, across_hosts: bool) -> tuple[Place, ...]:
    """The most accurate first, those without an accuracy last.

    Holm's correction is over all pairs of runs, not only those with the leader: which run leads
    was found by looking at the same images, so that any pair might have been the one asked about.
    """
    ordered = sorted(entries, key=lambda entry: -_top1(entry))
    adjusted, usual = _adjusted(ordered), None if across_hosts else _usual(entries)
    return tuple(
        _place(ordered[0], entry, adjusted.get((0, i)), usual) for i, entry in enumerate(ordered)
    )


def _usual(entries: Sequence[Entry]) -> LatencyRow | None:
    """The latency that most others may be set beside, of the run named first where some tie."""
    taken = [row.latency for _, _, row in entries if row and row.latency]
    return max(taken, key=lambda a: sum(not incomparable(a, b) for b in taken), default=None)


def _top1(entry: Entry) -> float:
    row = entry[2]
    return -1.0 if row is None or row.top1 is None else row.top1


def _same_images(a: Entry, b: Entry) -> bool:
    return a[1].dataset.test_digest == b[1].dataset.test_digest


def _adjusted(entries: Sequence[Entry]) -> dict[tuple[int, int], float]:
    """McNemar's p of every pair that has one, by the places of its two, adjusted together."""
    found: dict[tuple[int, int], float] = {}
    for i, j in combinations(range(len(entries)), 2):
        a, b = entries[i], entries[j]
        if a[2] and b[2]:
            moved = difference(a[2], b[2], same_images=_same_images(a, b))
            if moved and moved.test:
                found[i, j] = moved.test.mcnemar_p
    return dict(zip(found, holm(list(found.values())), strict=True))


def _place(leader: Entry, entry: Entry, p: float | None, usual: LatencyRow | None) -> Place:
    """`usual`: what latencies must be comparable with, to stand in one column; None: all are."""
    run, report, row = entry
    moved = None
    if entry is not leader and leader[2] and row:
        moved = change(leader[2], row, same_images=_same_images(leader, entry))
    mine = row and row.latency
    refused = incomparable(usual, mine) if usual and mine else ""
    return Place(
        run=run,
        file=row and row.title,
        top1=row and row.top1,
        top1_ci95=row and row.top1_ci95,
        n=row and row.n,
        p50_ms=mine.p50_ms if mine and not refused else None,
        bytes=row and row.bytes,
        behind=moved,
        holm_p=p,
        certain=p < BELIEVED if p is not None else moved is not None and moved.certain,
        why=f"its p50 is left out, {refused}" if refused else _lacking(report, row),
    )


def _lacking(report: Report, row: ArtifactRow | None) -> str | None:
    """Why accuracy or latency is missing."""
    if row is None:
        measured = any(each.top1 is not None for each in report.artifacts)
        why = "may be shipped (its report says why)" if measured else "was measured"
        return f"it has no file that {why}"
    return None if row.latency and row.top1 is not None else row.skipped or "not measured"
