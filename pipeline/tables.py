"""Reports as terminal tables: one run, or runs side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.stats import Interval
from pipeline import elsewhere, precision, references, summary
from pipeline.comparing import AnyRow, Difference, difference, incomparable, latency_ratio
from pipeline.errors import StoreError
from pipeline.summary import ModelRow, Report
from pipeline.timings import hosts
from pipeline.verdict import headline, lead_pairs, warnings
from pipeline.wording import (
    NONE,
    by_reason,
    flat,
    interval,
    megabytes,
    number,
    percent,
    points,
    points_interval,
    setting,
)


def _table(*columns: str, title: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title, style="bold") or None)
    table.title_justify = "left"
    table.add_column(Text(columns[0]), max_width=30, overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def show(report: Report) -> RenderableType:
    """The verdict, the table of models and files, what is missing and why; for 100 columns."""
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
        Text.assemble((finding.claim, "bold"), " ", finding.evidence)
        for finding in headline(report)
    ]
    notes = [Text(f"{titles}: {reason}", "dim") for titles, reason in by_reason(report)]
    doubts = [Text(f"! {warning}", "yellow") for warning in warnings(report)]
    asides = [*hosts(report), *precision.lines(report), *elsewhere.not_run(report)]
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
            told = going.get(name, "under way, stopped, or no run")
            why = error.message if unread else f"no report: {told}"
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
    student = report.model("student")
    files = [row for row in report.artifacts if row.path and row.top1 is not None]
    lead = next((pair[1] for pair in lead_pairs(report)), files[0] if files else None)
    yield Text(report.date[:10])
    yield Text(report.dataset.source)
    yield Text(f"{student.arch} ×{student.width:g}" if student else NONE)
    yield Text(percent(student.top1 if student else None))
    yield Text(lead.title if lead else NONE)
    yield Text(percent(lead.top1 if lead else None))
    yield Text(number(lead.latency.p50_ms if lead and lead.latency else None))
    yield Text(megabytes(lead.bytes if lead else None))


@dataclass(frozen=True, kw_only=True)
class RowChange:
    """One row that two reports have in common, B against A."""

    a: AnyRow
    b: AnyRow
    top1: Difference | None
    latency: float | None
    """p50 of B over p50 of A."""
    latency_ci95: Interval | None
    """Its 95 % interval, where both were measured with one."""
    refusal: str
    """Why there is no latency ratio though both were measured."""
    size: float | None
    """Bytes of B over bytes of A."""


def _identity(row: AnyRow) -> tuple[str | None, ...]:
    if isinstance(row, ModelRow):
        return ("model", row.role)
    return (row.format, row.precision, row.variant)


def changes(a: Report, b: Report, *, across_hosts: bool = False) -> list[RowChange]:
    """B against A, for the rows that both have."""
    others = {_identity(row): row for row in b.rows}
    same_images = a.dataset.test_digest == b.dataset.test_digest
    found = []
    for row in a.rows:
        other = others.get(_identity(row))
        if other is None:
            continue
        latency, ends, refusal = None, None, ""
        if row.latency and other.latency:
            refusal = "" if across_hosts else incomparable(row.latency, other.latency)
            if not refusal:
                latency, ends = latency_ratio(row.latency, other.latency)
        change = RowChange(
            a=row,
            b=other,
            top1=difference(row, other, same_images=same_images),
            latency=latency,
            latency_ci95=ends,
            refusal=refusal,
            size=other.bytes / row.bytes if row.bytes and other.bytes else None,
        )
        found.append(change)
    return found


def compare(reports: Sequence[Report], *, across_hosts: bool = False) -> RenderableType:
    """Every later report against the first, in tables for 100 columns.

    Latencies of different hosts or profiles are not compared unless `across_hosts`.
    Raises ValueError for fewer than two reports.
    """
    if len(reports) < 2:
        raise ValueError("comparing takes at least two reports")
    first, *rest = reports
    return Group(*(part for other in rest for part in _versus(first, other, across_hosts)))


def _versus(a: Report, b: Report, across_hosts: bool) -> Iterator[RenderableType]:
    found = changes(a, b, across_hosts=across_hosts)
    heads = ("", "top-1 % A", "B", "B − A points", "95 %", "p50 B/A", "size B/A")
    table = _table(*heads, title=f"A = {a.run} ({a.date}), B = {b.run} ({b.date})")
    for change in found:
        moved = change.top1
        table.add_row(
            Text(change.a.title),
            *(percent(change.a.top1), percent(change.b.top1)),
            points(moved.value) if moved else NONE,
            points_interval(moved.ci95) if moved else NONE,
            *(_ratio(change.latency), _ratio(change.size)),
        )
    yield table
    yield from (Text(line, "dim") for line in _pairing(found))
    yield from (Text(line, "dim") for line in _speeds(found))
    for name, report in (("A", a), ("B", b)):
        if told := setting(report):
            yield Text(f"{name}: {told}", "dim")
    for refusal in dict.fromkeys(change.refusal for change in found if change.refusal):
        yield Text(f"! latencies are not compared: {refusal}", "yellow")
    common = {_identity(change.a) for change in found}
    for name, report in (("A", a), ("B", b)):
        alone = [row.title for row in report.rows if _identity(row) not in common]
        if alone:
            yield Text(f"only in {name}: {', '.join(alone)}", "dim")
    yield from _settings(a, b)


def _pairing(found: Sequence[RowChange]) -> Iterator[str]:
    """How the intervals came about."""
    paired = {change.top1.paired for change in found if change.top1}
    if True in paired:
        yield "95 % intervals are paired: both were tested on the same images."
    if False in paired:
        which = [change.a.title for change in found if change.top1 and not change.top1.paired]
        rows = f" ({', '.join(which)})" if True in paired else ""
        yield f"95 % intervals are unpaired{rows}: the test images differ, or were not kept."


def _speeds(found: Sequence[RowChange]) -> Iterator[str]:
    """The intervals of the latency ratios, and what is in none of them."""
    told = [
        f"{change.a.title} {change.latency_ci95[0]:.2f} to {change.latency_ci95[1]:.2f}"
        for change in found
        if change.latency_ci95
    ]
    if told:
        yield (
            f"p50 B/A, 95 % intervals of the two processes: {'; '.join(told)}. A host that drifts "
            "between two runs is in none of them: python -m benchmarks compare takes files in turn."
        )


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"


def _settings(a: Report, b: Report) -> Iterator[RenderableType]:
    left, right = dict(flat(_facts(a))), dict(flat(_facts(b)))
    names = [name for name in dict.fromkeys((*left, *right)) if left.get(name) != right.get(name)]
    if not names:
        yield Text("settings, data and versions are equal", "dim")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("differs", "A", "B"):
        table.add_column(column, overflow="fold")
    for name in names:
        shown = (str(side[name]) if name in side else NONE for side in (left, right))
        table.add_row(*(Text(text) for text in (name, *shown)))
    yield table


def _facts(report: Report) -> dict[str, Any]:
    data = {"digest": report.dataset.digest[:16]}
    return {**report.settings, "dataset": data, "environment": report.environment}
