"""One `Comparison` of two or more reports, and which reports cannot be compared at all."""

from collections.abc import Sequence

from pydantic import Field

from pipeline.comparison import facts, leaderboard
from pipeline.comparison.facts import Pair, Run
from pipeline.comparison.leaderboard import Place
from pipeline.errors import StoreError
from pipeline.recommending import to_ship
from pipeline.records import Record
from pipeline.summary import Report

NAMED = 3
"""Labels that an error names of each kind."""


class Comparison(Record):
    """Two or more runs, each against the first. As JSON: names stay, fields may be added."""

    schema_version: int = Field(default=1, validation_alias="schema", serialization_alias="schema")
    across_hosts: bool
    """Whether times and memory of different hosts, profiles or runtimes were asked for."""
    pairs: tuple[Pair, ...]
    leaderboard: tuple[Place, ...] = ()
    """The most accurate first; empty for two runs."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """In the order in which they were named."""
        return (self.pairs[0].a, *(pair.b for pair in self.pairs))

    def to_json(self) -> str:
        """All of it, for programs; read it back with `model_validate_json`."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def compare(reports: Sequence[Report], *, across_hosts: bool = False) -> Comparison:
    """Every later report against the first; more than two of them make a leaderboard.

    Raises `StoreError` for fewer than two reports, for one that is named twice, and where labels
    or their order differ.
    """
    check(reports)
    runs = facts.named(reports)
    pairs = [
        facts.pair(reports[0], report, runs[0], run, across_hosts=across_hosts)
        for report, run in zip(reports[1:], runs[1:], strict=True)
    ]
    entries = [(run, report, to_ship(report)) for run, report in zip(runs, reports, strict=True)]
    placed = leaderboard.places(entries, across_hosts=across_hosts) if len(reports) > 2 else ()
    return Comparison(across_hosts=across_hosts, pairs=tuple(pairs), leaderboard=placed)


def check(reports: Sequence[Report]) -> None:
    """Raise `StoreError` as `compare` says."""
    if len(reports) < 2:
        raise StoreError("compare needs two runs at least", "Name the runs to compare.")
    for i, report in enumerate(reports):
        if report in reports[:i]:
            raise StoreError(
                f"'{report.run}' of {report.date} is named twice: nothing can differ",
                "Name different runs; `show` without a name lists them.",
            )
        if report.labels != reports[0].labels:
            alike = report.run == reports[0].run
            one, two = (
                f"'{each.run}'{f' of {each.date}' if alike else ''}"
                for each in (reports[0], report)
            )
            raise StoreError(
                f"{two} and {one} do not name the same classes: "
                f"{_labels_apart((one, reports[0]), (two, report))}",
                "Only runs with the same labels in the same order can be compared.",
            )


def _labels_apart(one: tuple[str, Report], two: tuple[str, Report]) -> str:
    """How the labels of two reports, each with its name, differ."""
    a, b = one[1], two[1]
    left, right = dict.fromkeys(a.labels), dict.fromkeys(b.labels)
    gone = [label for label in left if label not in right]
    new = [label for label in right if label not in left]
    if gone or new:
        told = [
            f"only {name} ({report.dataset.source}) has {_few(labels)}"
            for (name, report), labels in ((one, gone), (two, new))
            if labels
        ]
        return "; ".join(told)
    moved = [
        f"'{label}' ({i} and {b.labels.index(label)})"
        for i, label in enumerate(a.labels)
        if b.labels.index(label) != i
    ]
    return f"the order differs, of {_few(moved, '')}"


def _few(names: Sequence[str], quote: str = "'") -> str:
    shown = ", ".join(f"{quote}{name}{quote}" for name in names[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
