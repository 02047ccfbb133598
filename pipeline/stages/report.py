"""The last stage: report.json and the two pages that people decide with.

Pages are pure functions of the `Report`. The HTML page is one file that works from disk without
a network: plotly.js is inlined, and colours follow the reader's light or dark setting by CSS.
"""

import html
import os
import re
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

from pipeline import verdict
from pipeline.errors import StoreError
from pipeline.store import writing
from pipeline.summary import FILE, ArtifactRow, EpochRow, Report
from pipeline.verdict import AnyRow

PAGES = ("report.html", "report.md", FILE)
TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
GREY, BLUE, GREEN, ORANGE = "#7f868f", "#3b7dd8", "#2b966a", "#d2691e"
"""Each has a contrast of at least 3:1 to the light and to the dark page."""
PRECISION = {"fp32": BLUE, "fp16": GREEN, "int8": ORANGE}
ROLE = {"teacher": (GREY, "dot"), "baseline": (ORANGE, "dash"), "student": (BLUE, "solid")}
ROLE_SYMBOL = {"teacher": "diamond-open", "baseline": "square-open", "student": "circle-open"}
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "star", "triangle-down", "cross")
GLYPHS = dict(zip((*SYMBOLS, *ROLE_SYMBOL.values()), "●■▲◆★▼✚◇□○", strict=True))
"""Plotly's symbols as text, for a legend that wraps on a phone."""
NUMBERS = ("number", "percent", "interval", "megabytes", "points", "network", "effort")
"""What templates may say of numbers, from `verdict`."""
LONG = 20
"""Rows of a table shown at once; the others are folded away."""


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md and report.json into `folder`, each whole or not at all.

    report.json comes last: where it is new, the pages are too. Raises `StoreError` where the
    folder cannot be written.
    """
    texts = dict(zip(PAGES, (to_html(report), to_markdown(report), report.to_json()), strict=True))
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StoreError(f"{folder} is a file, not a folder", "Remove or rename it.") from error
        for name, text in texts.items():
            _replace(folder / name, text)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def to_markdown(report: Report) -> str:
    """The same decisions, compact, for a pull request."""
    return _render("report.md.j2", report)


def to_html(report: Report) -> str:
    """The page: one file, no network."""
    figures = {"scatter": scatter(report), "curves": curves(report), "losses": losses(report)}
    # "<" inside a script could end it; in JSON it may be written as an escape
    drawn = {
        name: str(figure.to_json()).replace("<", "\\u003c")
        for name, figure in figures.items()
        if figure
    }
    return _render(
        "report.html.j2", report, figures=drawn, plotlyjs=get_plotlyjs() if drawn else ""
    )


def _render(template: str, report: Report, **more: Any) -> str:
    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters.update(
        {name: getattr(verdict, name) for name in NUMBERS},
        md=escape_markdown,
        tied=tied,
    )
    return page.get_template(template).render(
        report=report,
        headline=verdict.headline(report),
        warnings=verdict.warnings(report),
        hosts=verdict.hosts(report),
        seeds=verdict.seed_rows(report),
        seeds_note=verdict.seeds_note(report),
        contract=verdict.contract(report),
        classes=class_rows(report),
        class_noise=class_noise(report),
        integers=integers(report),
        key=key(report),
        curve_table=curve_rows(report),
        settings=list(verdict.flat(report.settings)),
        long=LONG,
        **more,
    )


def tied(text: str) -> str:
    """`text` with units and relations held to their numbers, so that no line starts with "%"."""
    return re.sub(r"(?<=[\d<=]) (?=%|ms\b|MB\b|M\b|points\b|\d)|(?<=\bp) (?=[<=])", "\u00a0", text)


def escape_markdown(text: str) -> str:
    """`text` as one line of literal Markdown: names come from users' folders."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", flat).replace("&", "&amp;")


# ---- figures ----


def scatter(report: Report) -> go.Figure | None:
    """Top-1 against p50 latency, of the rows measured under the most common condition."""
    rows = comparable(report)
    if not rows:
        return None
    figure = go.Figure()
    front = pareto([row for row in rows if isinstance(row, ArtifactRow)])
    line = {"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
    if len(front) > 1:
        x, y = [_p50(row) for row in front], [100 * (row.top1 or 0) for row in front]
        figure.add_scatter(x=x, y=y, mode="lines", name="Pareto front", line=line, hoverinfo="skip")
    for row in rows:
        figure.add_trace(_point(row, *_mark(report, row)))
    _style(figure, "latency, p50 ms", "top-1, %", 400)
    figure.update_layout(showlegend=False)  # the page has its own, see `key`
    times = [_p50(row) for row in rows]
    if max(times) > 6 * min(times):
        ticks = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
        labels = [f"{tick:g}" for tick in ticks]
        title = "latency, p50 ms (log scale)"
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=labels, title_text=title)
    return figure


def comparable(report: Report) -> list[AnyRow]:
    """The rows with both numbers, measured on one host under one profile: the most common one."""
    rows = [row for row in report.rows if row.latency and row.top1 is not None]
    conditions = [(row.latency.host, verdict.condition(row.latency)) for row in rows if row.latency]
    usual = max(conditions, key=conditions.count, default=None)
    return [row for row, condition in zip(rows, conditions, strict=True) if condition == usual]


def pareto(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """Those that no other row beats on both latency and top-1, fastest first."""
    front: list[AnyRow] = []
    for row in sorted(rows, key=lambda row: (_p50(row), -(row.top1 or 0))):
        if not front or (row.top1 or 0) > (front[-1].top1 or 0):
            front.append(row)
    return front


def _p50(row: AnyRow) -> float:
    assert row.latency is not None
    return row.latency.p50_ms


def _mark(report: Report, row: AnyRow) -> tuple[str, str]:
    """Colour and symbol: precision and format of a file, the role of a network."""
    if not isinstance(row, ArtifactRow):
        return GREY, ROLE_SYMBOL[row.role]
    formats = list(dict.fromkeys(other.format for other in report.artifacts))
    return PRECISION[row.precision], SYMBOLS[formats.index(row.format) % len(SYMBOLS)]


def key(report: Report) -> list[tuple[str, str, str]]:
    """The legend of the scatter: colour, glyph and name of each mark."""
    marks = [(*_mark(report, row), row.title) for row in comparable(report)]
    return [(color, GLYPHS[symbol], title) for color, symbol, title in marks]


def _point(row: AnyRow, color: str, symbol: str) -> go.Scatter:
    assert row.latency is not None and row.top1 is not None
    low, high = row.top1_ci95 or (row.top1, row.top1)
    name = html.escape(row.title)
    latency = row.latency
    hover = (
        f"<b>{name}</b><br>top-1 {verdict.percent(row.top1)} % ({verdict.interval(row.top1_ci95)})"
        f"<br>p50 {verdict.number(latency.p50_ms)} · p90 {verdict.number(latency.p90_ms)}"
        f" · p99 {verdict.number(latency.p99_ms)} ms<br>{verdict.megabytes(row.bytes)} MB"
        f" · agreement {verdict.percent(row.agreement)} %<extra></extra>"
    )
    return go.Scatter(
        x=[latency.p50_ms],
        y=[100 * row.top1],
        name=name,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 11, "line_color": color},
        error_y={
            "array": [100 * (high - row.top1)],
            "arrayminus": [100 * (row.top1 - low)],
            "color": color,
            "thickness": 1.2,
            "width": 3,
        },
        hovertemplate=hover,
    )


def curves(report: Report) -> go.Figure | None:
    """Top-1 on the validation split by epoch."""

    def share(epoch: EpochRow) -> float | None:
        return None if epoch.val_top1 is None else 100 * epoch.val_top1

    return _by_epoch(report, share, "validation top-1, %", "%{y:.2f} %", 380)


def losses(report: Report) -> go.Figure | None:
    """Mean training loss by epoch."""
    return _by_epoch(report, lambda epoch: epoch.loss, "training loss", "%{y:.4f}", 300)


def _by_epoch(
    report: Report, value: Callable[[EpochRow], float | None], title: str, told: str, height: int
) -> go.Figure | None:
    figure = go.Figure()
    for row in report.models:
        color, dash = ROLE[row.role]
        if row.history:
            figure.add_scatter(
                x=[epoch.epoch for epoch in row.history],
                y=[value(epoch) for epoch in row.history],
                name=row.role,
                mode="lines+markers" if len(row.history) < LONG else "lines",
                line={"color": color, "dash": dash, "width": 2},
                hovertemplate=f"{row.role}, epoch %{{x}}: {told}<extra></extra>",
            )
    if not figure.data:
        return None
    _style(figure, "epoch", title, height)
    return figure


def _style(figure: go.Figure, x: str, y: str, height: int) -> None:
    """Transparent and unhurried; the page's CSS gives text and grid their colours."""
    axis = {"fixedrange": True, "zeroline": False, "automargin": True, "title_standoff": 12}
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 8, "r": 16, "t": 12, "b": 8},
        legend={
            **{"orientation": "h", "x": 0, "xref": "container", "xanchor": "left"},
            **{"y": 0, "yref": "container", "yanchor": "bottom"},
        },
        hovermode="closest",
        dragmode=False,
    )
    figure.update_xaxes(
        title_text=x,
        showgrid=False,
        ticks="outside",
        linecolor=GREY,
        showline=True,
        tickcolor=GREY,
        **axis,
    )
    figure.update_yaxes(title_text=y, showgrid=True, **axis)


# ---- tables that only the page has ----


def class_rows(report: Report) -> list[dict[str, Any]]:
    """Top-1 by class of teacher, student and int8, what int8 loses most first."""
    int8 = next((pair[1] for pair in verdict.lead_pairs(report) if pair[1].class_top1), None)
    columns = {"teacher": report.model("teacher"), "student": report.model("student"), "int8": int8}
    shares = {name: row.class_top1 for name, row in columns.items() if row and row.class_top1}
    if not shares:
        return []
    counts = report.dataset.class_counts or (None,) * len(report.labels)
    rows = []
    for index, label in enumerate(report.labels):
        row = {name: shares[name][index] if name in shares else None for name in columns}
        student, quantized = row["student"], row["int8"]
        change = None if student is None or quantized is None else quantized - student
        rows.append({"label": label, "n": counts[index], **row, "change": change})
    return sorted(rows, key=lambda row: (row["change"] is None, row["change"] or 0))


def class_noise(report: Report) -> tuple[int, float] | None:
    """A typical class's number of test images, and the half-width of its 95 % interval."""
    student, counts = report.model("student"), report.dataset.class_counts
    if not counts or student is None or student.top1 is None:
        return None
    typical = sorted(counts)[len(counts) // 2]
    return (typical, 1.96 * sqrt(student.top1 * (1 - student.top1) / typical)) if typical else None


def integers(report: Report) -> str:
    """The operators of the int8 graph, and how many of them compute in integers."""
    if report.quantization is None:
        return ""
    row = report.quantization
    listed = ", ".join(f"{name} {count}" for name, count in sorted(row.operators.items()))
    return f"{row.fused.line}: {listed}" if row.fused else listed


def curve_rows(report: Report) -> list[tuple[int, list[EpochRow | None]]]:
    """What each epoch gave, one entry a model with a history; long runs are thinned."""
    curves = [{e.epoch: e for e in row.history} for row in report.models if row.history]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    step = -(-len(epochs) // (2 * LONG)) or 1
    kept = [epoch for i, epoch in enumerate(epochs) if i % step == 0 or epoch == epochs[-1]]
    return [(epoch, [curve.get(epoch) for curve in curves]) for epoch in kept]
