"""The tables of a comparison, cell by cell, as the terminal, Markdown and HTML all print them."""

from typing import NamedTuple

from benchmarks.stats import Interval
from pipeline.comparison.build import Comparison
from pipeline.comparison.facts import Change, Pair, Ratio
from pipeline.comparison.leaderboard import Place
from pipeline.wording import (
    NONE,
    enumerated,
    interval,
    megabytes,
    number,
    percent,
    points,
    points_interval,
    probability,
)

MARK = "≈"
"""On the leaderboard: not certainly behind the first."""
MARKED = (
    f"{MARK} marks a run that is not certainly less accurate than the first: McNemar’s exact test "
    "over the same test images, adjusted by Holm’s method for all pairs of runs, gives p of 0.05 "
    "or more; where the two cannot be paired, the 95 % interval of their difference (Newcombe’s, "
    "of that pair alone) includes zero."
)


class AccuracyCells(NamedTuple):
    """One row's accuracies."""

    title: str
    a: str
    b: str
    moved: str
    ci95: str
    bootstrap: str
    only: str
    """Images that A alone and B alone named rightly."""
    p: str


class CostCells(NamedTuple):
    """What one row takes."""

    title: str
    a: str
    b: str
    latency: str
    ci95: str
    load: str
    memory: str
    size: str


class PlaceCells(NamedTuple):
    """One row of the leaderboard."""

    run: str
    file: str
    top1: str
    ci95: str
    behind: str
    p: str
    p50: str
    size: str
    date: str


def accuracy_heads(pair: Pair) -> AccuracyCells:
    """Of `accuracies`."""
    a, b = pair.a.letter, pair.b.letter
    return AccuracyCells(
        *("", f"{a} %", f"{b} %", f"{b} − {a}", "95 % interval", "bootstrap"),
        *(f"{a} / {b} alone", "p"),
    )


def cost_heads(pair: Pair) -> CostCells:
    """Of `costs`."""
    a, b = pair.a.letter, pair.b.letter
    return CostCells(
        *("", f"{a} ms", f"{b} ms", f"p50 {b}/{a}", "95 %"),
        *(f"load {b}/{a}", f"memory {b}/{a}", f"size {b}/{a}"),
    )


PLACE_HEADS = PlaceCells(
    *("", "to ship", "top-1 %", "95 %", "behind", "p, Holm", "p50 ms", "MB", "date")
)


def accuracies(pair: Pair) -> list[AccuracyCells]:
    """Top-1 of every row that both have."""
    return [
        AccuracyCells(
            row.title,
            *(percent(row.a.top1), percent(row.b.top1)),
            *_moved(row.top1),
        )
        for row in pair.rows
    ]


def _moved(change: Change | None) -> tuple[str, str, str, str, str]:
    if change is None:
        return NONE, NONE, NONE, NONE, NONE
    return (
        points(change.difference),
        points_interval(change.ci95),
        points_interval(change.bootstrap_ci95) if change.bootstrap_ci95 else NONE,
        NONE if change.only_a is None else f"{change.only_a:,} / {change.only_b:,}",
        _p(change.mcnemar_p),
    )


def _p(value: float | None) -> str:
    return NONE if value is None else probability(value).removeprefix("p ").removeprefix("= ")


def costs(pair: Pair) -> list[CostCells]:
    """Latency, load time, memory and size of every row that both have."""
    return [
        CostCells(
            row.title,
            *(number(row.a.p50_ms), number(row.b.p50_ms)),
            *(times(row.latency), ends(row.latency.ci95)),
            *(times(row.load), times(row.memory), times(row.size)),
        )
        for row in pair.rows
    ]


def times(ratio: Ratio) -> str:
    """As "1.02×"."""
    if ratio.value is None:
        return "refused" if ratio.refused else NONE
    return f"{ratio.value:.2f}×"


def ends(ci95: Interval | None) -> str:
    """The interval of a ratio."""
    return NONE if ci95 is None else f"{ci95[0]:.2f}–{ci95[1]:.2f}"


def places(found: Comparison) -> list[PlaceCells]:
    """The leaderboard, the first with its place and all that may be as good with a mark."""
    return [_place(i, place) for i, place in enumerate(found.leaderboard, 1)]


def _place(i: int, place: Place) -> PlaceCells:
    doubtful = i > 1 and place.top1 is not None and not place.certain
    return PlaceCells(
        f"{i}. {place.run.letter} = {place.run.run}{f' {MARK}' if doubtful else ''}",
        place.file or NONE,
        *(percent(place.top1), interval(place.top1_ci95)),
        points(place.behind.difference) if place.behind else NONE,
        _p(place.holm_p),
        *(number(place.p50_ms), megabytes(place.bytes), place.run.date[:10]),
    )


def board_notes(found: Comparison) -> list[str]:
    """What the mark means, and what is missing on the leaderboard."""
    if not found.leaderboard:
        return []
    lacking = [f"{place.run.letter}: {place.why}." for place in found.leaderboard if place.why]
    first = found.leaderboard[0].run.letter
    loose = [
        place.run.letter
        for place in found.leaderboard
        if place.behind is not None and not place.behind.paired
    ]
    unpaired = f"Not paired with {first}: {enumerated(loose)} (other test images, or not kept)."
    return [MARKED, *([unpaired] if loose else []), *lacking]
