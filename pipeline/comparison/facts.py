"""What is so of two runs: B against A, row by row, with what may not be compared and why."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.stats import BELIEVED, Interval, paired_bootstrap, side
from pipeline.comparing import DRIFT, AnyRow, difference, faster, incomparable, latency_ratio
from pipeline.recommending import to_ship
from pipeline.records import Record
from pipeline.summary import ModelRow, Report
from pipeline.wording import flat, setting


class Run(Record):
    """One of the runs that are compared."""

    letter: str
    """"A" is what the others are held against."""
    run: str
    called: str
    """Its name, or its letter where another run has the same name."""
    date: str
    source: str
    """Image set."""
    classes: int
    test_images: int
    size: int
    """Of an image, in pixels."""
    channels: int
    student: str
    """What was trained, and how good its teacher is."""
    ships: str | None
    """Title of the file by which the run is listed."""


class Side(Record):
    """A row as one run measured it, as in `summary.Row`."""

    top1: float | None
    top1_ci95: Interval | None
    n: int | None
    p50_ms: float | None
    p50_ci95: Interval | None
    load_ms: float | None
    peak_rss_bytes: int | None
    bytes: int | None
    skipped: str | None
    noisy: str | None
    """Why the host was too noisy to time it."""


class Change(Record):
    """Top-1 of B minus top-1 of A, in -1..1."""

    difference: float
    ci95: Interval
    """`stats.paired_difference`, or `stats.unpaired_interval` where it is not paired."""
    paired: bool
    """Whether both answered the same test images, and the answers were kept."""
    mcnemar_p: float | None = None
    """Exact, two-sided; None where it is not paired, as all that follows."""
    only_a: int | None = None
    """Images that A alone named rightly."""
    only_b: int | None = None
    """Images that B alone named rightly."""
    bootstrap_ci95: Interval | None = None
    """`stats.paired_bootstrap`; None also where the two never disagree."""

    @property
    def certain(self) -> bool:
        """Whether the interval, and where there is one the test, say that there is a difference."""
        chance = self.mcnemar_p is not None and self.mcnemar_p >= BELIEVED
        return side(self.ci95) != 0 and not chance


class Ratio(Record):
    """A figure of B over that of A, or why there is none."""

    value: float | None = None
    ci95: Interval | None = None
    why: str | None = None
    refused: bool = False
    """Whether both were measured, but must not be compared."""


class RowPair(Record):
    """A network or file of B against one of A: mostly what both runs have."""

    title: str
    role: str | None
    """Of a network; None of a file."""
    same_file: bool
    """Whether the two files are equal, byte for byte."""
    a: Side
    b: Side
    top1: Change | None
    latency: Ratio
    """Of p50."""
    faster: int | None
    """1 where B's p50 is certainly lower, -1 where it is higher, 0 where that is uncertain
    (`comparing.DRIFT`); None where the two are not compared."""
    load: Ratio
    memory: Ratio
    """Of the peak of a fresh process."""
    size: Ratio
    apart: str | None
    """How the measuring of times and memory differed (host, profile); None where it did not."""
    runtimes: str | None
    """The two runtimes, where they differ."""


class Setting(Record):
    """A setting, version or fact of the data that differs; None where one side has no such."""

    name: str
    a: str | None
    b: str | None


class Pair(Record):
    """B against A."""

    a: Run
    b: Run
    same_images: bool
    """Whether both were tested on the same images, in the same order."""
    rows: tuple[RowPair, ...]
    only_a: tuple[str, ...]
    """Titles of what A alone has."""
    only_b: tuple[str, ...]
    differs: tuple[Setting, ...]
    shipped: RowPair | None
    """The file that B ships against the one that A ships; None where one ships none."""

    @property
    def lead(self) -> RowPair | None:
        """The row to speak of: what both ship, else the most accurate file that both have, else
        the student. Never the teacher: nobody ships it."""
        if self.shipped and self.shipped.top1:
            return self.shipped
        rows = [row for row in self.rows if row.top1]
        files = [row for row in rows if row.role is None]
        if files:
            return max(files, key=lambda row: row.b.top1 or 0)
        return next((row for row in rows if row.role == "student"), None)


def named(reports: Sequence[Report]) -> list[Run]:
    """The runs by letters: A, B, ... Z, A2, B2, ..."""
    letters = [
        chr(ord("A") + i % 26) + (str(i // 26 + 1) if i >= 26 else "") for i in range(len(reports))
    ]
    times = Counter(report.run for report in reports)
    return [
        Run(
            letter=letter,
            run=report.run,
            called=report.run if times[report.run] == 1 else letter,
            date=report.date,
            source=report.dataset.source,
            classes=len(report.labels),
            test_images=report.dataset.test,
            size=report.input.size,
            channels=report.input.channels,
            student=setting(report),
            ships=row.title if (row := to_ship(report)) else None,
        )
        for letter, report in zip(letters, reports, strict=True)
    ]


# ---- B against A ----


def pair(a: Report, b: Report, run_a: Run, run_b: Run, *, across_hosts: bool) -> Pair:
    """B against A. Latencies, load times and memory measured on different hosts or under different
    profiles, and memory in different runtimes, are compared with `across_hosts` only."""
    left = {_identity(row): row for row in a.rows}
    right = {_identity(row): row for row in b.rows}
    same = a.dataset.test_digest == b.dataset.test_digest
    common = [(row, right[which]) for which, row in left.items() if which in right]

    def of(old: AnyRow, new: AnyRow) -> RowPair:
        return _rows(a, b, old, new, same_images=same, across_hosts=across_hosts)

    old, new = to_ship(a), to_ship(b)
    return Pair(
        a=run_a,
        b=run_b,
        same_images=same,
        rows=tuple(of(*rows) for rows in common),
        only_a=tuple(row.title for which, row in left.items() if which not in right),
        only_b=tuple(row.title for which, row in right.items() if which not in left),
        differs=tuple(_differs(a, b)),
        shipped=of(old, new) if old and new else None,
    )


def _identity(row: AnyRow) -> tuple[str | None, ...]:
    if isinstance(row, ModelRow):
        return ("model", row.role)
    return (row.format, row.precision, row.variant)


def _rows(
    a: Report, b: Report, old: AnyRow, new: AnyRow, *, same_images: bool, across_hosts: bool
) -> RowPair:
    apart, runtimes = _apart(a, b, old, new), _runtimes(old, new)
    refused = None if across_hosts else apart
    x, y = _side(old), _side(new)
    times = _ratio(x, y, "p50_ms", refused)
    quicker = None
    if times.value and old.latency and new.latency:
        times = times.model_copy(update={"ci95": latency_ratio(old.latency, new.latency)[1]})
        quicker = faster(old.latency, new.latency, DRIFT)
    sums = {getattr(row, "sha256", None) for row in (old, new)}
    return RowPair(
        title=old.title if _identity(old) == _identity(new) else f"{new.title} against {old.title}",
        role=old.role if isinstance(old, ModelRow) else None,
        same_file=len(sums) == 1 and None not in sums,
        a=x,
        b=y,
        top1=change(old, new, same_images=same_images),
        latency=times,
        faster=quicker,
        load=_ratio(x, y, "load_ms", refused),
        memory=_ratio(x, y, "peak_rss_bytes", None if across_hosts else apart or runtimes),
        size=_ratio(x, y, "bytes"),
        apart=apart,
        runtimes=runtimes,
    )


def _side(row: AnyRow) -> Side:
    return Side(
        top1=row.top1,
        top1_ci95=row.top1_ci95,
        n=row.n,
        p50_ms=row.latency.p50_ms if row.latency else None,
        p50_ci95=row.latency.p50_ci95 if row.latency else None,
        load_ms=row.load_ms,
        peak_rss_bytes=row.peak_rss_bytes,
        bytes=row.bytes,
        skipped=row.skipped,
        noisy=row.latency.noisy if row.latency else None,
    )


def change(old: AnyRow, new: AnyRow, *, same_images: bool) -> Change | None:
    """`new` against `old`; None where one has no accuracy."""
    found = difference(old, new, same_images=same_images)
    if found is None:
        return None
    test = found.test
    return Change(
        difference=found.value,
        ci95=found.ci95,
        paired=found.paired,
        mcnemar_p=test and test.mcnemar_p,
        only_a=test and test.only_a,
        only_b=test and test.only_b,
        bootstrap_ci95=paired_bootstrap(test.only_a or 0, test.only_b or 0, test.n)
        if test
        else None,
    )


def _ratio(a: Side, b: Side, what: str, refused: str | None = None) -> Ratio:
    """B over A of the field `what`."""
    x, y = getattr(a, what), getattr(b, what)
    if x and y:
        return Ratio(why=refused, refused=True) if refused else Ratio(value=y / x)
    told = (
        f"not measured in the {which}: {side.skipped or 'no reason given'}"
        for which, side, found in (("first", a, x), ("second", b, y))
        if not found
    )
    return Ratio(why="; ".join(told))


def _apart(a: Report, b: Report, old: AnyRow, new: AnyRow) -> str | None:
    """How the measuring of times and memory differed."""
    if old.latency and new.latency:
        return incomparable(old.latency, new.latency) or None
    left, right = (report.environment.get("cpu") for report in (a, b))
    return f"measured on different hosts: {left} / {right}" if left != right else None


def _runtimes(old: AnyRow, new: AnyRow) -> str | None:
    left, right = old.evaluated_with, new.evaluated_with
    known = left is not None and right is not None
    return f"measured in different runtimes: {left} / {right}" if known and left != right else None


def _differs(a: Report, b: Report) -> Iterator[Setting]:
    left, right = dict(flat(_facts(a))), dict(flat(_facts(b)))
    for name in dict.fromkeys((*left, *right)):
        if left.get(name) != right.get(name):
            shown = (str(side[name]) if name in side else None for side in (left, right))
            yield Setting(name=name, **dict(zip("ab", shown, strict=True)))


def _facts(report: Report) -> dict[str, Any]:
    settings = {name: value for name, value in report.settings.items() if name != "name"}
    data = {"digest": report.dataset.digest[:16], "test_digest": report.dataset.test_digest[:16]}
    taken = {"size": report.input.size, "channels": report.input.channels}
    return {
        **settings,
        "dataset": data,
        "input": taken,
        "environment": report.environment,
    }
