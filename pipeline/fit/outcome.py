"""fit.json: everything that fitting found out, and what it comes to, in words.

The pages are pure functions of `Fit`. Names stay and fields may be added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from benchmarks.stats import Interval
from pipeline.fit.budget import Budget
from pipeline.fit.shots import Shot, best, judged_ms
from pipeline.fit.space import Network
from pipeline.on_device import SIZES
from pipeline.records import SCHEMA, Record
from pipeline.wording import enumerated, megabytes, number, percent

FILE = "fit.json"
ONNX = ("onnxruntime",)
"""Runtimes that open the files that are counted."""
EXPORTED = ("litert",)
"""Runtimes with files of their own that a run can make, in the format of the same name."""


class Step(Record):
    """A training on one rung."""

    key: str
    """Of the checkpoint in the store."""
    epochs: int
    val_top1: float
    seconds: float


class Row(Record):
    """One network that was looked at."""

    key: str
    """Of what was counted, in the store."""
    network: Network
    params: int
    macs: int
    shots: tuple[Shot, ...]
    """Its files that can be judged on the phone, the most exact first."""
    front: bool
    """Whether no other network is at least as good in latency, size and capacity, each by the file
    that stands for it."""
    seconds: float
    """Time it took to count."""
    steps: tuple[Step, ...] = ()
    """Trainings, the shortest first."""

    @property
    def best(self) -> Shot:
        """The file that stands for it: the most exact that keeps the budget."""
        return best(self.shots)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.network.title}, {self.best.precision}"


class Final(Record):
    """The trained student's files, as the run's report has them."""

    network: Network
    shots: tuple[Shot, ...]
    """The most exact first."""
    top1: dict[str, tuple[float, Interval, int]]
    """By precision: on the test images, its 95 % interval, and how many."""
    files: dict[str, str] = Field(default_factory=dict)
    """By precision: the file whose bytes and answers these are, where not the ONNX file."""
    missing: str | None = None
    """Why the file that was chosen is not there."""

    @property
    def chosen(self) -> Shot | None:
        """The most exact file that keeps the budget, else the one that breaks it least."""
        return best(self.shots) if self.shots else None


class Fit(Record):
    """What was asked, tried and found."""

    schema_version: int = Field(
        default=SCHEMA, validation_alias="schema", serialization_alias="schema"
    )
    """Version of this layout."""
    run: str
    command: str
    date: str
    data: str
    phone: str
    """Device, runtime and threads."""
    runtime: str = "onnxruntime"
    """By which latencies are predicted."""
    notes: tuple[str, ...] = ()
    """What was assumed or left out."""
    budget: Budget
    space: int
    """Networks that there are; `rows` and `refused` are those that were looked at."""
    rows: tuple[Row, ...]
    refused: dict[str, str]
    """Networks without a file, and why."""
    rungs: tuple[int, ...] = ()
    """Epochs of each."""
    epochs: int
    """Of a whole training."""
    winner: Network | None = None
    final: Final | None = None
    seconds: dict[str, float]
    """What was spent by part, now or in an earlier run."""

    @property
    def meets(self) -> bool:
        """Whether there is a trained student that keeps every bound."""
        shot = self.final.chosen if self.final else None
        return shot is not None and not shot.over and self.accurate is not False

    @property
    def accurate(self) -> bool | None:
        """Whether the accuracy asked for is reached; None where none was, or nothing is trained."""
        shot = self.final.chosen if self.final else None
        if self.final is None or shot is None or self.budget.accuracy is None:
            return None
        return self.final.top1[shot.precision][0] >= self.budget.accuracy

    @property
    def fitting(self) -> list[Row]:
        """Rows within the budget."""
        return [row for row in self.rows if not row.best.over]


def asked(budget: Budget) -> str:
    """The budget in words."""
    kind = " even at the upper end of the 80 % interval" if budget.sure else ""
    parts = [
        budget.latency_ms and f"{number(budget.latency_ms)} ms{kind}",
        budget.bytes and f"{megabytes(budget.bytes)} MB",
        budget.memory_bytes and f"{megabytes(budget.memory_bytes)} MB of memory",
        budget.accuracy and f"{percent(budget.accuracy)} % top-1",
    ]
    return enumerated([part for part in parts if part])


def answer(fit: Fit) -> list[str]:
    """What it comes to, in sentences."""
    if fit.final is not None:
        return list(_trained(fit, fit.final))
    if fit.fitting:
        names = f"{len(fit.fitting)} of {len(fit.rows)} networks keep the budget"
        if fit.winner is None:
            return [f"{names}, and none of them has been trained."]
        return [f"{names}; {fit.winner.title} came out best and is still to be trained in full."]
    return list(_nothing(fit))


def _trained(fit: Fit, final: Final) -> Iterator[str]:
    shot = final.chosen
    if shot is None:
        yield f"{final.network.title} was trained, and there is no file of it: {final.missing}."
        return
    top1, (low, high), n = final.top1[shot.precision]
    verb = "keeps" if not shot.over else "does not keep"
    yield (
        f"{final.network.title}, {shot.precision}, {verb} the budget: {shot.costs}; top-1 "
        f"{percent(top1)} % (95 % {percent(low)} to {percent(high)}) on {n:,} test images."
    )
    yield from (f"It breaks {each}." for each in broken(fit.budget, shot))
    if any(row.front for row in fit.rows if row.network == final.network) and len(fit.rows) > 1:
        yield (
            f"It is on the front: none of the other {len(fit.rows) - 1} networks that were looked "
            "at, each by the file named in the table, is as good in latency, size and capacity "
            "together."
        )
    for other in final.shots:
        if other != shot and not other.over:
            share = percent(final.top1[other.precision][0])
            yield f"Its {other.precision} file keeps it, too: {other.costs}; top-1 {share} %."
    wanted = fit.budget.accuracy
    if wanted is None:
        return
    if top1 < wanted:
        yield (
            f"The accuracy of {percent(wanted)} % is not reached: this is the best that was found "
            "within the budget. Networks outside it were not trained, so nothing is known of them."
        )
    elif low < wanted:
        yield (
            f"The accuracy of {percent(wanted)} % is reached, but lies within the interval: "
            "other test images may say otherwise."
        )


def _nothing(fit: Fit) -> Iterator[str]:
    """What would fit, where nothing does."""
    bounds = asked(fit.budget.model_copy(update={"accuracy": None}))
    seen = len(fit.rows) + len(fit.refused)
    part = f" (of {fit.space}; --trials looks at more)" if seen < fit.space else ""
    yield f"Nothing fits: none of {len(fit.rows)} networks{part} keeps {bounds}."
    if not fit.rows:
        return
    near = min(fit.rows, key=lambda row: row.best.excess)
    yield f"The nearest is {near.title}: it breaks {enumerated(broken(fit.budget, near.best))}."
    files = [(shot, row) for row in fit.rows for shot in row.shots]
    for name, bound in _bounds(fit.budget).items():
        if bound is not None:
            shot, row = min(files, key=lambda file: _cost(file[0], name, fit.budget))
            amount = _amount(shot, name, fit.budget)
            yield f"The least {name} of any: {amount} ({row.network.title}, {shot.precision})."


def _bounds(budget: Budget) -> dict[str, float | None]:
    """By the name of the cost."""
    return {"latency": budget.latency_ms, "size": budget.bytes, "memory": budget.memory_bytes}


def broken(budget: Budget, shot: Shot) -> list[str]:
    """The bounds that `shot` breaks, and by how much."""
    bounds = _bounds(budget)
    units = {"latency": "ms", "size": "MB", "memory": "MB"}
    told = []
    for name, times in shot.over.items():
        bound = bounds[name] or 0
        wanted = number(bound) if name == "latency" else megabytes(int(bound))
        amount = _amount(shot, name, budget)
        told.append(f"the {name}, {amount} where {wanted} {units[name]} are allowed ×{times:.2f}")
    return told


def _amount(shot: Shot, name: str, budget: Budget) -> str:
    """What `shot` needs of the cost called `name`, in words."""
    value = _cost(shot, name, budget)
    return f"{number(value)} ms" if name == "latency" else f"{megabytes(int(value))} MB"


def _cost(shot: Shot, name: str, budget: Budget) -> float:
    """What of `shot` is held against the bound called `name`."""
    latency = judged_ms(shot.prediction, budget)
    return {"latency": latency, "size": shot.bytes, "memory": shot.memory_bytes}[name]


def doubts(fit: Fit) -> list[str]:
    """What the numbers do not promise."""
    judged = "the upper end of the 80 % interval" if fit.budget.sure else "the estimate itself"
    told = [
        f"Latencies are predicted for {fit.phone}, from the graph alone; nothing ran there. The "
        f"budget is held against {judged}.",
        "Memory is that of weights and activations, without the runtime itself.",
    ]
    return [*told, *_other_files(fit), *far(relevant(fit))]


def _other_files(fit: Fit) -> Iterator[str]:
    """Whether the runtime that is predicted opens other files than those that were counted."""
    if fit.runtime in ONNX:
        return
    if fit.runtime not in EXPORTED:
        yield (
            f"Latencies are those by {fit.runtime}, for which no file is made here; the sizes are "
            "those of the ONNX file."
        )
        return
    yield f"Sizes of untrained networks are those of the ONNX file, not of {fit.runtime}'s own."
    shot = fit.final.chosen if fit.final else None
    if fit.final is None or shot is None:
        return
    whose = fit.final.files.get(shot.precision)
    if whose is None:
        none = f"no {fit.runtime} file of it was run here (see export.formats)"
        yield f"Size and accuracy of the trained one are those of the ONNX file: {none}."
    else:
        yield f"Size and accuracy of the trained one are those of its {whose} file."


def relevant(fit: Fit) -> Sequence[Row]:
    """The rows that the answer is about."""
    if fit.winner is not None:
        return [row for row in fit.rows if row.network == fit.winner]
    return fit.fitting or fit.rows


def far(rows: Sequence[Row]) -> Iterator[str]:
    """Whether networks lie beyond those that the prediction was fitted on."""
    beyond = [row for row in rows if row.best.prediction.outside]
    if not beyond:
        return
    who = f"{len(beyond)} of {len(rows)} networks" if len(rows) > 1 else beyond[0].title
    names = dict.fromkeys(name for row in beyond for name in row.best.prediction.outside)
    distance = max(row.best.prediction.distance for row in beyond)
    yield (
        f"{who} lie{'s' * (len(rows) == 1)} beyond all networks that the predictions were fitted "
        f"on, in {enumerated([SIZES[name] for name in names])} (the nearest differs by a factor of "
        f"{distance:.1f}): there the intervals promise nothing."
    )
