"""The page's figures, as plotly draws them: pure functions of the `Report`."""

import html
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from pipeline import precision, wording
from pipeline.summary import ArtifactRow, EpochRow, Report

GREY, BLUE, GREEN, ORANGE = "#7f868f", "#3b7dd8", "#2b966a", "#d2691e"
"""Each has a contrast of at least 3:1 to the light and to the dark page."""
PRECISION = {"fp32": BLUE, "fp16": GREEN, "int8": ORANGE}
"""Of files that are timed; compressed weights with float16 arithmetic take that one's colour."""
ROLE = {"teacher": (GREY, "dot"), "baseline": (ORANGE, "dash"), "student": (BLUE, "solid")}
MOST_KINDS = 10
"""Operator types that are drawn."""


def decades(figure: go.Figure, digits: Sequence[int] = (1, 2, 5)) -> None:
    """A logarithmic axis with numbers that people count in."""
    ticks = [digit * 10.0**power for power in range(-3, 5) for digit in digits]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _profiled(report: Report) -> tuple[list[ArtifactRow], list[str]]:
    """The plain ONNX files with a profile, and their operator types, those that take most first."""
    rows = [
        row
        for row in report.artifacts
        if row.operators_ms and row.format == "onnx" and row.variant is None
    ]
    spent: dict[str, float] = {}
    for row in rows:
        for kind, ms in (row.operators_ms or {}).items():
            spent[kind] = max(ms, spent.get(kind, 0))
    return rows, sorted(spent, key=lambda kind: -spent[kind])


def operator_table(report: Report) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Titles of the profiled files, and for each operator type the milliseconds in each file."""
    rows, kinds = _profiled(report)
    times = [(kind, [(row.operators_ms or {}).get(kind) for row in rows]) for kind in kinds]
    return [row.title for row in rows], times


def operators(report: Report) -> go.Figure | None:
    """Time by operator type, of the plain ONNX files; the types that take most."""
    rows, kinds = _profiled(report)
    kinds = kinds[:MOST_KINDS]
    if not kinds:
        return None
    figure = go.Figure()
    for row in rows:
        times = [(row.operators_ms or {}).get(kind, 0) for kind in kinds]
        figure.add_bar(
            **{"x": times, "y": list(range(len(kinds))), "orientation": "h"},
            name=literal(row.title),
            marker_color=PRECISION.get(row.precision, GREEN),
            customdata=kinds,
            hovertemplate=f"{literal(row.title)} %{{customdata}} %{{x:.3g}} ms<extra></extra>",
        )
    style(figure, "ms an inference", "", 130 + 15 * len(kinds) * len(rows))
    figure.update_layout(barmode="group")
    figure.update_xaxes(showgrid=True, showline=False)
    name_rows(figure, kinds)
    return figure


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
                mode="lines+markers" if len(row.history) < wording.LONG else "lines",
                line={"color": color, "dash": dash, "width": 2},
                hovertemplate=f"{row.role}, epoch %{{x}}: {told}<extra></extra>",
            )
    if not figure.data:
        return None
    style(figure, "epoch", title, height)
    return figure


def layers(report: Report) -> go.Figure | None:
    """Decibels that the logits gain when a layer alone is float, of the layers that gain most."""
    rows = precision.worst_layers(report, wording.LONG)
    if not rows:
        return None
    names = [literal(row.name) for row in rows]
    hovers = [
        f"<b>{name}</b><br>layer {row.place} of the network, {wording.number(row.macs / 1e6)} M "
        f"MACs<br>alone in float: {precision.decibels(row.gain_db)},<br>validation top-1 "
        f"{wording.percent(row.val_top1)} %"
        for name, row in zip(names, rows, strict=True)
    ]
    figure = go.Figure()
    figure.add_bar(
        x=[row.gain_db for row in rows],
        y=list(range(len(rows))),
        orientation="h",
        width=0.6,
        marker_color=[BLUE if row.kept else ORANGE for row in rows],
        hovertext=hovers,
        hovertemplate="%{hovertext}<extra></extra>",
    )
    style(figure, "gain when alone in float, dB", "", 90 + 23 * len(rows))
    figure.update_xaxes(showgrid=True, zeroline=True, zerolinecolor=GREY, showline=False)
    name_rows(figure, [short(row.name) for row in rows])
    return figure


def name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Names instead of numbers, the first at the top."""
    figure.update_yaxes(
        autorange="reversed",
        showgrid=False,
        title_text=None,
        ticks="outside",
        tickcolor="rgba(0,0,0,0)",  # a gap between names and bars
        tickvals=list(range(len(names))),
        ticktext=[literal(name) for name in names],
    )


def literal(text: str) -> str:
    """`text` as plotly shows it to the letter: it obeys some tags, fills in what stands in "%{}",
    and does not know `&quot;`."""
    return html.escape(text, quote=False).replace("%{", "&#37;{")


def short(name: str, most: int = 22) -> str:
    """A name that leaves room for bars on a phone: its middle may be missing."""
    tail = 3 * most // 5
    return name if len(name) <= most else f"{name[: most - tail - 1]}…{name[-tail:]}"


def style(figure: go.Figure, x: str, y: str, height: int) -> None:
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
