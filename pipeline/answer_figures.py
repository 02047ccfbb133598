"""The page's pictures of answers: what is taken for what, and what confidence is worth."""

from typing import Any

import plotly.graph_objects as go

from pipeline import figures, trust, wording
from pipeline.answers import matrices
from pipeline.confidence import Bin
from pipeline.summary import Report

COUNTED = 12
"""Classes up to which each cell shows its number; on a phone there is no room for more."""
LETTERS = 14
"""Of a class's name."""
HEAT = {"right": "59,125,216", "wrong": "210,105,30"}
"""`figures.BLUE` and `figures.ORANGE`: a cell is as opaque as it is full, on any page."""
FULL = 0.7
"""Opacity of the fullest, so that numbers are read on it."""


def confusion(report: Report) -> go.Figure | None:
    """The student's confusion matrix, each row in shares of its class; None with many classes."""
    counts = dict(matrices(report)).get("student")
    if counts is None or len(counts) < 2:
        return None
    figure = go.Figure()
    for kind, on_diagonal in (("right", True), ("wrong", False)):
        figure.add_trace(_cells(report, counts, kind, on_diagonal))
    names = [figures.short(label, LETTERS) for label in report.labels]
    figures.style(figure, "named", "true class", 150 + 30 * len(counts))
    figures.name_rows(figure, names)
    figure.update_yaxes(title_text="true class")
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=[figures.literal(name) for name in names],
        **{"tickangle": -90, "showline": False, "ticks": "", "constrain": "domain"},
    )
    return figure


def _cells(
    report: Report, counts: tuple[tuple[int, ...], ...], kind: str, on_diagonal: bool
) -> go.Heatmap:
    """The cells on the diagonal, or those off it; the others are left out."""
    inside = [
        [(truth == named) == on_diagonal and n > 0 for named, n in enumerate(row)]
        for truth, row in enumerate(counts)
    ]
    shares = [
        [n / sum(row) if kept else None for n, kept in zip(row, cells, strict=True)]
        for row, cells in zip(counts, inside, strict=True)
    ]
    return go.Heatmap(
        z=shares,
        zmin=0,
        zmax=max((share for row in shares for share in row if share), default=1),
        colorscale=[[0, f"rgba({HEAT[kind]},0)"], [1, f"rgba({HEAT[kind]},{FULL})"]],
        showscale=False,
        text=[
            [f"{n:,}" if kept else "" for n, kept in zip(row, cells, strict=True)]
            for row, cells in zip(counts, inside, strict=True)
        ],
        texttemplate="%{text}" if len(counts) <= COUNTED else None,
        textfont_size=11,
        customdata=[
            [_hover(report, truth, named, row) if cells[named] else "" for named in range(len(row))]
            for truth, (row, cells) in enumerate(zip(counts, inside, strict=True))
        ],
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        **{"xgap": 1, "ygap": 1},
    )


def _hover(report: Report, truth: int, named: int, row: tuple[int, ...]) -> str:
    true, other = (figures.literal(report.labels[at]) for at in (truth, named))
    share = wording.percent(row[named] / sum(row)) if sum(row) else wording.NONE
    way = "named rightly" if truth == named else f"named {other}"
    return f"<b>{true}</b><br>{way}: {row[named]:,} of {sum(row):,} images, {share} %"


def reliability(report: Report) -> go.Figure | None:
    """Top-1 against confidence, bin by bin, over the share of images in each."""
    found = trust.assessed(report)
    told = [(name, found[name]) for name in trust.BINNED if name in found]
    if not told:
        return None
    figure = go.Figure()
    line = {"color": figures.GREY, "width": 1.5, "dash": "dot"}
    ends: dict[str, Any] = {"x": [0, 100], "y": [0, 100], "hoverinfo": "skip"}
    figure.add_scatter(**ends, mode="lines", line=line, name="as sure as right")
    for name, (title, each) in told:
        color, symbol = {
            "student": (figures.BLUE, "circle"),
            "int8": (figures.ORANGE, "square"),
        }[name]
        figure.add_trace(_points(title, each.bins, color, symbol))
        figure.add_bar(
            x=[50 * (bin_.low + bin_.high) for bin_ in each.bins],
            y=[100 * bin_.n / each.n for bin_ in each.bins],
            marker_color=color,
            **{"yaxis": "y2", "showlegend": False},
            customdata=[bin_.n for bin_ in each.bins],
            hovertemplate=f"{figures.literal(title)}: %{{customdata:,}} images<extra></extra>",
        )
    figure.update_layout(yaxis={"domain": [0.3, 1]}, yaxis2={"domain": [0, 0.2]})
    figures.style(figure, "confidence, %", "top-1, %", 470)
    figure.update_layout(yaxis={"range": [0, 104]}, yaxis2={"title": {"text": "images, %"}})
    figure.update_xaxes(range=[0, 102], anchor="y2")
    return figure


def _points(title: str, bins: tuple[Bin, ...], color: str, symbol: str) -> go.Scatter:
    """A bin at its mean confidence, with Wilson's interval of its top-1."""
    name = figures.literal(title)
    return go.Scatter(
        x=[100 * each.confidence for each in bins],
        y=[100 * each.top1 for each in bins],
        name=name,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 8},
        cliponaxis=False,
        error_y={
            "array": [100 * (each.top1_ci95[1] - each.top1) for each in bins],
            "arrayminus": [100 * (each.top1 - each.top1_ci95[0]) for each in bins],
            **{"color": color, "thickness": 1.2, "width": 3},
        },
        customdata=[
            f"{each.n:,} images, top-1 {wording.percent(each.top1)} % "
            f"({wording.interval(each.top1_ci95)})"
            for each in bins
        ],
        hovertemplate=f"<b>{name}</b><br>confidence %{{x:.1f}} %<br>%{{customdata}}<extra></extra>",
    )
