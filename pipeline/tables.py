"""Reports as terminal tables: one run, or runs side by side."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline import elsewhere, precision, references, summary
from pipeline.answers import class_lines
from pipeline.comparison import cells
from pipeline.comparison import words as told
from pipeline.comparison.build import Comparison
from pipeline.comparison.facts import Pair
from pipeline.errors import StoreError
from pipeline.recommending import recommend, to_ship
from pipeline.summary import Report
from pipeline.timings import hosts
from pipeline.verdict import headline, warnings
from pipeline.wording import NONE, by_reason, interval, megabytes, number, percent


def _table(*columns: str, title: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title, style="bold") or None)
    table.title_justify = "left"
    table.add_column(Text(columns[0]), max_width=30, overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def show(report: Report) -> RenderableType:
    """What to ship, the verdict, the table of rows, what is missing and why; for 100 columns."""
    table = _table(
        report.run, "top-1 %", "95 %", "agree %", "p50 ms", "p90 ms", "p99 ms", "load ms", "MB"
    )
    for row in report.rows:
        times = row.latency
        table.add_row(
            Text(row.title),
            *(percent(row.top1), interval(row.top1_ci95), percent(row.agreement)),
            *(number(times and times.p50_ms), number(times and times.p90_ms)),
            *(number(times and times.p99_ms), number(row.load_ms), megabytes(row.bytes)),
        )
    lines = [
        Text.assemble((f"{each.target.name}: {each.title}. ", "bold"), f"{each.reason}.")
        for each in recommend(report)
    ]
    lines += [
        Text.assemble((finding.claim, "bold"), " ", finding.evidence)
        for finding in headline(report)
    ]
    notes = [Text(f"{titles}: {reason}", "dim") for titles, reason in by_reason(report)]
    doubts = [Text(f"! {warning}", "yellow") for warning in warnings(report)]
    asides = [
        *hosts(report),
        *class_lines(report),
        *precision.lines(report),
        *elsewhere.not_run(report),
    ]
    return Group(*lines, table, *(Text(line, "dim") for line in asides), *notes, *doubts)


def runs(folder: Path) -> RenderableType:
    """The runs in `folder`, the latest first; of one without a readable report the reason."""
    found, without, going = list[tuple[str, Report]](), list[Text](), references.unfinished(folder)
    homes = {path.name for path in folder.iterdir() if path.is_dir()} | set(going)
    for name in sorted(name for name in homes if not name.startswith(".")):
        home = folder / name
        try:
            found.append((name, summary.read(home)))
            why = going.get(name)
        except StoreError as error:
            unread = (home / summary.FILE).exists()
            why = error.message if unread else f"no report: {references.told(home)}"
        if why:
            without.append(Text(f"{name}: {why}", "dim"))
    table = _table(
        "run", "date", "data", "student", "top-1 %", "to ship", "top-1 %", "p50 ms", "MB"
    )
    table.columns[0].min_width = 12
    for words in table.columns[2:4]:
        words.justify, words.no_wrap = "left", False
    for name, report in sorted(found, key=lambda each: each[1].date, reverse=True):
        table.add_row(Text(name), *_listed(report))
    return Group(table, *without)


def _listed(report: Report) -> Iterator[Text]:
    student, lead = report.model("student"), to_ship(report)
    yield Text(report.date[:10])
    yield Text(report.dataset.source)
    yield Text(f"{student.arch} ×{student.width:g}" if student else NONE)
    yield Text(percent(student.top1 if student else None))
    yield Text(lead.title if lead else NONE)
    yield Text(percent(lead.top1 if lead else None))
    yield Text(number(lead.latency.p50_ms if lead and lead.latency else None))
    yield Text(megabytes(lead.bytes if lead else None))


def compare(found: Comparison) -> RenderableType:
    """Every later run against the first, and the leaderboard of more than two; for 100 columns."""
    parts: list[RenderableType] = []
    if found.leaderboard:
        board = _cells(cells.PLACE_HEADS, cells.places(found), without="date")
        parts += [board, *_dim(cells.board_notes(found))]
    for pair in found.pairs:
        parts += _versus(pair)
    doubts = (Text(f"! {doubt}", "yellow") for doubt in told.doubts(found))
    return Group(*parts, *_dim(told.methods(found)), *doubts)


def _versus(pair: Pair) -> Iterator[RenderableType]:
    a, b = pair.a, pair.b
    claim, evidence = told.headline(pair)
    yield Text(f"{a.letter} = {a.run} ({a.date}), {b.letter} = {b.run} ({b.date})", "bold")
    yield Text.assemble((claim, "bold"), " ", evidence)
    if pair.rows:
        yield _cells(cells.accuracy_heads(pair), cells.accuracies(pair), without="only")
        yield _cells(cells.cost_heads(pair), cells.costs(pair))
    yield from _dim(told.notes(pair))
    yield from _settings(pair)


def _cells(heads: Any, rows: Iterable[Any], without: str = "") -> Table:
    """A table of a comparison's cells; one column may have no room here."""
    names = [name for name in heads._fields if name != without]
    table = _table(*(getattr(heads, name) for name in names))
    for row in rows:
        table.add_row(*(Text(getattr(row, name)) for name in names))
    return table


def _dim(lines: Iterable[str]) -> Iterator[Text]:
    yield from (Text(line, "dim") for line in lines)


def _settings(pair: Pair) -> Iterator[RenderableType]:
    if not pair.differs:
        yield Text("settings, data and versions are equal", "dim")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("differs", pair.a.letter, pair.b.letter):
        table.add_column(column, overflow="fold")
    for each in pair.differs:
        shown = (NONE if value is None else value for value in (each.a, each.b))
        table.add_row(*(Text(text) for text in (each.name, *shown)))
    yield table
