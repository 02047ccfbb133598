"""Numbers and facts as people read them: what all pages and tables share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.stats import Interval
from pipeline.summary import ArtifactRow, LatencyRow, ModelRow, ParityRow, Report

NONE = "–"
"""Shown where there is no number."""
LONG = 20
"""Rows of a table shown at once; the others are folded away."""


class Finding(NamedTuple):
    """One thing that the run found out."""

    claim: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.claim} {self.evidence}".strip()


# ---- numbers ----


def number(value: float | None) -> str:
    """Three significant digits, or all digits before the point."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def percent(fraction: float | None) -> str:
    """A share in per cent, without the sign: it is in the column's head."""
    return NONE if fraction is None else f"{100 * fraction:.2f}"


def within(value: float, ci95: Interval | None) -> str:
    """A number with its interval, where it has one, as "1.30 (1.28–1.32)"."""
    return number(value) + (f" ({number(ci95[0])}–{number(ci95[1])})" if ci95 else "")


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def apart(parity: ParityRow | None) -> str:
    """Mean and largest difference of an answer from the student's."""
    if parity is None:
        return NONE
    mean, largest = (small(value) for value in (parity.mean_abs_diff, parity.max_abs_diff))
    return f"{mean} / {largest}"


def small(value: float | None) -> str:
    """Two significant digits, of numbers that may be very small."""
    return NONE if value is None else f"{value:.2g}"


def interval(ci95: Interval | None) -> str:
    """An interval of a share, in per cent."""
    return NONE if ci95 is None else f"{percent(ci95[0])}–{percent(ci95[1])}"


def points_interval(ci95: Interval) -> str:
    """An interval of a difference, in points."""
    return f"{points(ci95[0])} to {points(ci95[1])}"


def megabytes(size: int | None) -> str:
    """Bytes in units of 10^6."""
    return NONE if size is None else number(size / 1e6)


def probability(p: float) -> str:
    """A p value, with its relation."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


# ---- facts ----


def network(row: ModelRow) -> str:
    """What was trained: without it a top-1 says little."""
    facts = (
        row.arch + (f" ×{row.width:g}" if row.width != 1 else ""),
        f"stem stride {row.stem_stride}" if row.stem_stride else "",
        f"{number(row.params / 1e6)} M parameters",
        f"{number(row.macs / 1e6)} M MACs",
        f"started from {row.start}" if row.start != "random" else "",
    )
    return ", ".join(filter(None, facts))


def setting(report: Report) -> str:
    """What a gain belongs to: the student, and how good its teacher is."""
    student, teacher = report.model("student"), report.model("teacher")
    guide = f"; teacher {percent(teacher.top1)} %" if teacher and teacher.top1 is not None else ""
    return f"Student: {network(student)}{guide}." if student else ""


def effort(row: ModelRow) -> str:
    """How quickly a network was trained, and with how much memory; "" where that is not known."""
    speeds = [epoch.images_per_second for epoch in row.history if epoch.images_per_second]
    peaks = [epoch.memory_bytes for epoch in row.history if epoch.memory_bytes]
    if not speeds or not peaks:
        return ""
    return f"{number(median(speeds))} images/s, at most {number(max(peaks) / 1e6)} MB"


def condition(latency: LatencyRow) -> str:
    """Profile and threads."""
    return f"{latency.profile}, {latency.threads} thread{'s' if latency.threads != 1 else ''}"


def by_reason(report: Report, *, executed: bool = False) -> list[tuple[str, str]]:
    """What is missing or not shown of models and files: titles, and the reason they share.

    With `executed` only of those that were executed all the same.
    """
    rows = [row for row in report.rows if row.skipped and (row.top1 is not None or not executed)]
    return [(titles, reason) for titles, reason, _ in by_skipped(rows)]


def by_skipped(rows: Iterable[ModelRow | ArtifactRow]) -> list[tuple[str, str, int]]:
    """The reason that `rows` share: titles, reason, how many they are."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.skipped or "no reason is known", []).append(row.title)
    return [(enumerated(titles), reason, len(titles)) for reason, titles in found.items()]


def enumerated(names: Sequence[str], last: str = "and") -> str:
    """As "a, b and c"."""
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def predicates(claims: Sequence[tuple[str, str]]) -> str:
    """Pairs of verb and claim as "takes 1.5× as long, is 3.7× smaller and less accurate"."""
    verbs = ["", *(verb for verb, _ in claims)]
    told = [
        claim if verb == before else f"{verb} {claim}"
        for before, (verb, claim) in zip(verbs, claims, strict=False)
    ]
    return enumerated(told)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as "distill.temperature"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
