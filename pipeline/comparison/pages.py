"""A comparison as Markdown for a pull request, and as one HTML page that works offline."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from pipeline import templating
from pipeline.comparison import cells, words
from pipeline.comparison.build import Comparison
from pipeline.comparison.facts import Change, Pair
from pipeline.figures import BLUE, GREY, ORANGE, literal, name_rows, style
from pipeline.store import writing
from pipeline.wording import points, points_interval


def write(found: Comparison, markdown: Path | None, json: Path | None, page: Path | None) -> None:
    """Write what is asked for. Raises `StoreError` where a file cannot be written."""
    makers = ((markdown, to_markdown), (json, Comparison.to_json), (page, to_html))
    for path, make in makers:
        if path is not None:
            with writing(path):
                path.write_text(make(found), encoding="utf-8")


def to_markdown(found: Comparison) -> str:
    """Tables and sentences, for a pull request."""
    return _render("comparison.md.j2", found)


def to_html(found: Comparison) -> str:
    """The page: one file, no network."""
    figures = {f"moved-{pair.b.letter}": moved(pair) for pair in found.pairs}
    return _render("comparison.html.j2", found, **templating.drawn(figures))


def _render(template: str, found: Comparison, **more: Any) -> str:
    page = templating.environment().get_template(template)
    return page.render(found=found, cells=cells, words=words, **more)


def moved(pair: Pair) -> go.Figure | None:
    """Differences in top-1 with their 95 % intervals, a row for each network and file."""
    rows = [(row.title, row.top1) for row in pair.rows if row.top1]
    if not rows:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=[100 * change.difference for _, change in rows],
        y=list(range(len(rows))),
        mode="markers",
        marker={"color": [_color(change) for _, change in rows], "size": 9},
        error_x={
            "array": [100 * (change.ci95[1] - change.difference) for _, change in rows],
            "arrayminus": [100 * (change.difference - change.ci95[0]) for _, change in rows],
            **{"color": GREY, "thickness": 1.5, "width": 3},
        },
        hovertext=[_told(title, change) for title, change in rows],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    style(figure, f"{pair.b.letter} − {pair.a.letter}, points of top-1", "", 90 + 26 * len(rows))
    figure.update_layout(showlegend=False)
    figure.update_xaxes(showgrid=True, zeroline=True, zerolinecolor=GREY, showline=False)
    name_rows(figure, [title for title, _ in rows])
    return figure


def _color(change: Change) -> str:
    if not change.certain:
        return GREY
    return BLUE if change.difference > 0 else ORANGE


def _told(title: str, change: Change) -> str:
    return (
        f"<b>{literal(title)}</b><br>{points(change.difference)} points "
        f"({points_interval(change.ci95)})"
    )
