"""The two pictures of fit.html, as plotly draws them."""

from collections.abc import Callable

import plotly.graph_objects as go

from pipeline.figures import BLUE, GREEN, GREY, ORANGE, decades, literal, style
from pipeline.fit.outcome import Fit, Row
from pipeline.wording import megabytes, number, percent

Mark = tuple[str, str, str, int]
"""Name, colour, symbol and size. Open ones, for all of this is predicted."""
MARKS: tuple[tuple[Mark, Callable[[Fit, Row], bool]], ...] = (
    (("beyond the budget", GREY, "circle-open", 8), lambda fit, row: bool(row.best.over)),
    (("within the budget", BLUE, "circle-open", 10), lambda fit, row: not row.steps),
    (("trained a little", GREEN, "square-open", 11), lambda fit, row: row.network != fit.winner),
    (("chosen", ORANGE, "star-open", 16), lambda fit, row: True),
)
"""A row has the first that is true of it."""


def costs(fit: Fit) -> go.Figure | None:
    """Predicted latency against size, a mark a network, with the bounds."""
    if not fit.rows:
        return None
    figure = go.Figure()
    for (name, color, symbol, size), rows in marked(fit):
        figure.add_scatter(
            x=[row.best.latency_ms for row in rows],
            y=[row.best.bytes / 1e6 for row in rows],
            **{"name": name, "mode": "markers", "text": [_hover(row) for row in rows]},
            marker={"color": color, "symbol": symbol, "size": size, "line": {"width": 2}},
            hovertemplate="%{text}<extra></extra>",
        )
    style(figure, "predicted latency, ms (log scale)", "size, MB (log scale)", 400)
    decades(figure)
    ticks = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    line = {"color": GREY, "width": 1.5, "dash": "dot"}
    if fit.budget.latency_ms is not None and not fit.budget.sure:
        figure.add_vline(x=fit.budget.latency_ms, line=line)
    if fit.budget.bytes is not None:
        figure.add_hline(y=fit.budget.bytes / 1e6, line=line)
    return figure


def rungs(fit: Fit) -> go.Figure | None:
    """Validation accuracy by epochs, a line a network that was trained."""
    trained = [row for row in fit.rows if row.steps]
    if not trained:
        return None
    figure = go.Figure()
    for row in trained:
        chosen = row.network == fit.winner
        figure.add_scatter(
            x=[step.epochs for step in row.steps],
            y=[100 * step.val_top1 for step in row.steps],
            **{"mode": "lines+markers", "name": literal(row.network.title)},
            line={"color": ORANGE if chosen else GREEN, "width": 2},
            marker={"symbol": "star" if chosen else "square", "size": 13 if chosen else 8},
            text=[_hover(row)] * len(row.steps),
            hovertemplate="%{text}<br>validation %{y:.2f} % after %{x} epochs<extra></extra>",
        )
    style(figure, "epochs of each training", "validation top-1, %", 320)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(tickvals=list(fit.rungs))
    return figure


def marked(fit: Fit) -> list[tuple[Mark, list[Row]]]:
    """The marks that are used, each with its rows."""
    found: dict[Mark, list[Row]] = {}
    for mark, holds in MARKS:
        taken = [row for rows in found.values() for row in rows]
        rows = [row for row in fit.rows if row not in taken and holds(fit, row)]
        if rows:
            found[mark] = rows
    return list(found.items())


def _hover(row: Row) -> str:
    shot, (low, high) = row.best, row.best.prediction.interval80
    return (
        f"<b>{literal(row.title)}</b><br>{number(shot.latency_ms)} ms ({number(low)} to "
        f"{number(high)}), {megabytes(shot.bytes)} MB<br>{number(row.macs / 1e6)} M multiply-adds, "
        f"{number(row.params / 1e6)} M parameters"
        + "".join(f"<br>{percent(s.val_top1)} % after {s.epochs} epochs" for s in row.steps)
    )
