"""The page's pictures of phones: what they measured, and what is predicted for others."""

from math import log10
from typing import NamedTuple

import plotly.graph_objects as go

from pipeline import figures, on_device, wording
from pipeline.summary import Report


class _Line(NamedTuple):
    """One line of the picture of phones: what ran where, and how long it takes."""

    label: str
    precision: str
    ms: float
    ranges: tuple[tuple[float, float], ...]
    """From the widest to the narrowest."""
    hover: str
    measured: bool


def phones(report: Report) -> go.Figure | None:
    """Latencies here, on phones, and predicted for phones: measured ones filled, others hollow."""
    lines = [*_here(report), *_measured(report), *_predicted(report)]
    if not lines or (all(line.measured for line in lines) and not report.phones):
        return None
    labels = list(dict.fromkeys(line.label for line in lines))
    figure = go.Figure()
    for line in lines:
        at = labels.index(line.label)
        color = figures.PRECISION.get(line.precision.split("/")[0], figures.GREY)
        for ends, width in zip(line.ranges, (1.5, 5), strict=False):
            figure.add_scatter(
                **{"x": list(ends), "y": [at, at], "mode": "lines", "hoverinfo": "skip"},
                line={"color": color, "width": width},
                opacity=0.5 if width > 2 else 1,
            )
        symbol = "circle" if line.measured else "circle-open"
        marker = {"color": color, "symbol": symbol, "size": 10, "line_width": 2}
        marker["line_color"] = color
        figure.add_scatter(
            **{"x": [line.ms], "y": [at], "mode": "markers", "marker": marker},
            hovertemplate=f"{line.hover}<extra></extra>",
        )
    figures.style(figure, "latency, ms (log scale)", "", 110 + 36 * len(labels))
    figure.update_layout(showlegend=False)
    figures.decades(figure, (1, 3))
    ends = [end for line in lines for ends in ((line.ms,), *line.ranges) for end in ends]
    figure.update_xaxes(range=[log10(min(ends)) - 0.1, log10(max(ends)) + 0.1])
    figure.update_xaxes(showgrid=True)
    figures.name_rows(figure, labels)
    # Beside the points long names would leave them no room on a phone: above them.
    figure.update_yaxes(showticklabels=False, ticks="")
    for number, label in enumerate(labels):
        figure.add_annotation(
            **{"x": 0, "xref": "paper", "xanchor": "left", "y": number, "yanchor": "bottom"},
            **{"yshift": 5, "showarrow": False, "text": figures.literal(label)},
        )
    return figure


def _here(report: Report) -> list[_Line]:
    """The plain ONNX files on this host, to compare phones with."""
    return [
        _Line(
            *("this host", row.precision, row.latency.p50_ms),
            ((row.latency.p50_ms, row.latency.p90_ms),),
            f"<b>{figures.literal(row.title)}</b>, {figures.literal(row.latency.host)}"
            f"<br>measured: p50 {wording.number(row.latency.p50_ms)} ms",
            True,
        )
        for row in report.artifacts
        if row.predicted and row.latency
    ]


def _measured(report: Report) -> list[_Line]:
    precisions = {row.sha256: row.precision for row in report.artifacts}
    return [
        _Line(
            *(f"{phone.device}, {file.how}", precisions[file.sha256], file.p50_ms),
            ((file.p50_ms, file.p90_ms or file.p50_ms),),
            f"<b>{figures.literal(file.title)}</b>, {figures.literal(on_device.phone_title(phone))}"
            f"<br>{figures.literal(file.how)}: measured, p50 {wording.number(file.p50_ms)} ms",
            True,
        )
        for phone in report.phones
        for file in phone.files
        if file.p50_ms
    ]


def _predicted(report: Report) -> list[_Line]:
    return [
        _Line(
            *(f"{on_device.device(found.device)}, {on_device.how(found)}", found.precision),
            *(found.latency_ms, (found.interval95, found.interval80)),
            f"<b>{figures.literal(row.title)}</b>, {figures.literal(found.device)}"
            f"<br>predicted: {wording.number(found.latency_ms)} ms",
            False,
        )
        for row, found in on_device.predicted(report)
    ]


def sustained(report: Report) -> go.Figure | None:
    """Medians over time on phones, each as a multiple of its start."""
    figure, drawn = go.Figure(), 0
    for phone in report.phones:
        for file in phone.files:
            start = file.curve_start
            if start is None:
                continue
            drawn += 1
            name = figures.literal(f"{phone.device}, {file.title}, {file.how}")
            figure.add_scatter(
                x=list(file.curve_s),
                y=[ms / start for ms in file.curve_ms],
                name=name,
                mode="lines",
                hovertemplate=f"{name}<br>%{{x:.1f}} s: ×%{{y:.2f}}<extra></extra>",
            )
    if not drawn:
        return None
    figures.style(figure, "seconds", "times the start", 260 + 22 * drawn)
    return figure
