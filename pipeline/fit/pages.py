"""What fitting found, for people: a table on the terminal, fit.md, fit.html; and fit.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from benchmarks import printing
from pipeline.fit import figures
from pipeline.fit.outcome import FILE, Fit, Row, answer, asked, doubts
from pipeline.store import writing
from pipeline.templating import drawn, environment, escape_markdown
from pipeline.whole import write_whole
from pipeline.wording import NONE, megabytes, number, percent

PAGES = ("fit.html", "fit.md", FILE)
SHOWN = 12
"""Rows of a table on the terminal."""
COLUMNS = ("network", "file", "ms", "80 %", "MB", "memory MB", "M MACs", "M parameters")
MORE = ("validation % (epochs)", "s", "what became of it")
"""Columns that follow on the pages."""


def write(fit: Fit, folder: Path) -> None:
    """Write the pages into `folder`, each whole or not at all; fit.json comes last."""
    body = fit.model_dump_json(indent=1, by_alias=True) + "\n"
    texts = dict(zip(PAGES, (to_html(fit), markdown(fit), body), strict=True))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_whole(folder / name, text)


def rows(fit: Fit) -> list[Row]:
    """Best first: trained ones, then the front, then what else fits, then what is nearest to it."""
    return sorted(fit.rows, key=lambda row: _rank(fit, row))


def _rank(fit: Fit, row: Row) -> tuple[bool, int, float, float, bool, float]:
    last = row.steps[-1] if row.steps else None
    return (
        row.network != fit.winner,
        -(last.epochs if last else 0),
        -(last.val_top1 if last else 0.0),
        row.best.excess,
        not row.front,
        -float(row.macs * row.params),
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row, to be read, under `COLUMNS`."""
    low, high = row.best.prediction.interval80
    return (
        row.network.title,
        row.best.precision,
        number(row.best.latency_ms),
        f"{number(low)}–{number(high)}",
        megabytes(row.best.bytes),
        number(row.best.memory_bytes / 1e6),
        number(row.macs / 1e6),
        number(row.params / 1e6),
    )


def state(fit: Fit, row: Row) -> str:
    """What became of a row."""
    if row.network == fit.winner:
        return "trained in full" if fit.final else "best of the rungs"
    if row.best.over:
        return "; ".join(f"{name} ×{times:.2f}" for name, times in row.best.over.items())
    if row.steps:
        return "trained a little"
    return "on the front" if row.front else "fits"


def accuracies(row: Row) -> str:
    """Validation accuracy after so many epochs, by rung."""
    told = [f"{percent(step.val_top1)} ({step.epochs})" for step in row.steps]
    return ", ".join(told) or NONE


def spent(row: Row) -> str:
    """Seconds: to count it, and to train it on the rungs."""
    trained = sum(step.seconds for step in row.steps)
    return f"{row.seconds:.1f}" + (f" + {trained:.0f}" if row.steps else "")


def _more(fit: Fit, row: Row) -> tuple[str, str, str]:
    """The cells under `MORE`."""
    return accuracies(row), spent(row), state(fit, row)


def table(fit: Fit) -> RenderableType:
    """The answer, the rows that matter, and what to know; for 100 columns."""
    shown = printing.table(
        f"{fit.phone}: {asked(fit.budget)}",
        *("network", "file", "ms", "MB", *MORE),
    )
    listed = rows(fit)
    for row in listed[:SHOWN]:
        name, file, ms, _, size, *_ = cells(row)
        printing.add(shown, name, file, ms, size, *_more(fit, row))
    more = len(listed) - SHOWN
    told = [Text(line, "bold") for line in answer(fit)]
    rest = [f"{more} more in {FILE}"] if more > 0 else []
    return Group(*told, shown, *(Text(line, "dim") for line in (*rest, *remarks(fit))))


def remarks(fit: Fit) -> Iterator[str]:
    """What was assumed, left out and not promised, and what it cost."""
    yield from fit.notes
    yield from doubts(fit)
    total = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in fit.seconds.items())
    yield f"Time of the work, done now or in an earlier run: {total}."


def markdown(fit: Fit) -> str:
    """The page for a pull request."""
    head = (*COLUMNS, *MORE)
    lines = [
        f"# {fit.run}: a student for {fit.phone}",
        "",
        f"Budget: {asked(fit.budget)}. {escape_markdown(fit.data)}. {fit.date}.",
        "",
        *(f"**{line}**\n" for line in answer(fit)),
        f"| {' | '.join(head)} |",
        f"| --- | --- |{' --: |' * (len(head) - 3)} --- |",
        *(f"| {' | '.join((*cells(row), *_more(fit, row)))} |" for row in rows(fit)),
        "",
        *(f"- {line}" for line in remarks(fit)),
        *(f"- {name}: no file: {escape_markdown(why)}" for name, why in fit.refused.items()),
        "",
        "To repeat it, or to go on where it stopped:",
        "",
        "```sh",
        fit.command,
        "```",
    ]
    return "\n".join(lines) + "\n"


def to_html(fit: Fit) -> str:
    """The page: one file, no network."""
    made = {"costs": figures.costs(fit), "rungs": figures.rungs(fit)}
    page = environment().get_template("fit.html.j2")
    return page.render(
        fit=fit,
        asked=asked(fit.budget),
        answer=answer(fit),
        rows=[(row.network == fit.winner, (*cells(row), *_more(fit, row))) for row in rows(fit)],
        remarks=list(remarks(fit)),
        **drawn(made),
    )
