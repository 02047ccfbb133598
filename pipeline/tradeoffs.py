"""The page's pictures of what accuracy costs: top-1 against latency, and against size."""

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from benchmarks.predict import Prediction
from pipeline import comparing, figures, on_device, wording
from pipeline.comparing import AnyRow
from pipeline.summary import ArtifactRow, Report

ROLE_SYMBOL = {"teacher": "triangle-right", "baseline": "triangle-left", "student": "x"}
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "star", "triangle-down", "cross")
GLYPHS = dict(zip((*SYMBOLS, *ROLE_SYMBOL.values()), "●■▲◆★▼✚►◄✕", strict=True))
"""Plotly's symbols as text, for a legend that wraps on a phone."""


class _Point(NamedTuple):
    """One mark of accuracy against a cost."""

    row: AnyRow
    x: float
    ends: tuple[float, float] | None
    """What x lies in, where that is drawn."""
    hover: str
    hollow: bool = False
    """Predicted, not measured."""


def latency(report: Report) -> go.Figure | None:
    """Top-1 against latency: p50 of the rows measured under the most common condition, and what is
    predicted for the devices of the table."""
    rows = comparable(report)
    points = [
        _Point(row, row.latency.p50_ms, row.latency.p50_ci95, _timed(row))
        for row in rows
        if row.latency
    ]
    front = pareto([point for point in points if isinstance(point.row, ArtifactRow)])
    points += _predicted(report)
    return _tradeoff(report, points, front, "latency, p50 ms")


def size(report: Report) -> go.Figure | None:
    """Top-1 against megabytes, of the exported files."""
    points = [
        _Point(row, row.bytes / 1e6, None, _sized(row))
        for row in report.artifacts
        if row.bytes and row.top1 is not None
    ]
    return _tradeoff(report, points, pareto(points), "size, MB")


def _tradeoff(
    report: Report, points: Sequence[_Point], front: Sequence[_Point], title: str
) -> go.Figure | None:
    """Top-1 against a cost; the `front` is drawn. None without a measured point."""
    if all(point.hollow for point in points):
        return None
    figure = go.Figure()
    line = {"color": figures.GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
    if len(front) > 1:
        x, y = [point.x for point in front], [100 * (point.row.top1 or 0) for point in front]
        figure.add_scatter(x=x, y=y, mode="lines", name="Pareto front", line=line, hoverinfo="skip")
    for point in points:
        figure.add_trace(_mark_of(point, *_mark(report, point.row)))
    figures.style(figure, title, "top-1, %", 400)
    figure.update_layout(showlegend=False)  # the page has its own, see `key`
    costs = [point.x for point in points]
    if max(costs) > 6 * min(costs):
        figures.decades(figure)
        figure.update_xaxes(title_text=f"{title} (log scale)")
    return figure


def comparable(report: Report) -> list[AnyRow]:
    """The rows with both numbers whose latencies compare: those of the most common condition."""
    return comparing.comparable([row for row in report.rows if row.top1 is not None])


def pareto(points: Sequence[_Point]) -> list[_Point]:
    """Those that no other point beats on both cost and top-1, the cheapest first."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.x, -(point.row.top1 or 0))):
        if not front or (point.row.top1 or 0) > (front[-1].row.top1 or 0):
            front.append(point)
    return front


def _predicted(report: Report) -> list[_Point]:
    return [
        _Point(row, found.latency_ms, found.interval80, _estimated(row, found), hollow=True)
        for column in on_device.columns(report)
        for row in report.artifacts
        if row.top1 is not None and (found := column.of(row))
    ]


def _mark(report: Report, row: AnyRow) -> tuple[str, str]:
    """Colour and symbol: precision and format of a file, the role of a network."""
    if not isinstance(row, ArtifactRow):
        return figures.GREY, ROLE_SYMBOL[row.role]
    formats = list(dict.fromkeys(other.format for other in report.artifacts))
    return figures.PRECISION.get(row.precision, figures.GREEN), SYMBOLS[
        formats.index(row.format) % len(SYMBOLS)
    ]


def key(report: Report) -> list[tuple[str, str, str]]:
    """The legend of both pictures: colour, glyph and name of each mark."""
    timed = [row.title for row in comparable(report)]
    rows = [
        row
        for row in report.rows
        if row.title in timed
        or (isinstance(row, ArtifactRow) and row.bytes and row.top1 is not None)
    ]
    marks = [(*_mark(report, row), row.title) for row in rows]
    return [(color, GLYPHS[symbol], title) for color, symbol, title in marks]


def _timed(row: AnyRow) -> str:
    assert row.latency is not None
    taken = row.latency
    noisy = "<br>the host was too noisy to time it" if taken.noisy else ""
    return (
        f"{_answers(row)}<br>p50 {wording.within(taken.p50_ms, taken.p50_ci95)} · p90 "
        f"{wording.number(taken.p90_ms)} · p99 {wording.number(taken.p99_ms)} ms<br>measured, "
        f"{figures.literal(wording.condition(taken))}<br>{figures.literal(taken.host)}{noisy}"
    )


def _sized(row: AnyRow) -> str:
    how = f"<br>run by {figures.literal(row.evaluated_with)}" if row.evaluated_with else ""
    return f"{_answers(row)}{how}"


def _estimated(row: AnyRow, found: Prediction) -> str:
    low, high = (wording.number(end) for end in found.interval80)
    return (
        f"{_answers(row)}<br>predicted for {figures.literal(on_device.device(found.device))}, "
        f"{figures.literal(on_device.how(found))}:<br>{wording.number(found.latency_ms)} ms "
        f"(80 % interval {low}–{high})"
    )


def _answers(row: AnyRow) -> str:
    return (
        f"<b>{figures.literal(row.title)}</b><br>top-1 {wording.percent(row.top1)} % "
        f"({wording.interval(row.top1_ci95)})<br>{wording.megabytes(row.bytes)} MB · agreement "
        f"{wording.percent(row.agreement)} %"
    )


def _mark_of(point: _Point, color: str, symbol: str) -> go.Scatter:
    top1 = point.row.top1 or 0
    low, high = point.row.top1_ci95 or (top1, top1)
    bar = {"color": color, "thickness": 1.2, "width": 3}
    sideways = {}
    if point.ends:
        first, last = point.ends
        sideways["error_x"] = {"array": [last - point.x], "arrayminus": [point.x - first], **bar}
    return go.Scatter(
        x=[point.x],
        y=[100 * top1],
        name=figures.literal(point.row.title),
        mode="markers",
        marker={
            "color": color,
            "symbol": f"{symbol}-open" if point.hollow else symbol,
            "size": 11,
            "line": {"color": color, "width": 2 if point.hollow else 0},
        },
        error_y={"array": [100 * (high - top1)], "arrayminus": [100 * (top1 - low)], **bar},
        **sideways,
        hovertemplate=f"{point.hover}<extra></extra>",
    )
