"""Whether a run may replace another: rules with a statistical reading, for people and for CI.

A rule fails where a file is worse by more than it allows *with 95 % confidence*: what may be chance
passes. What cannot be judged (no latency, a noisy host, no valgrind) is said to be so, and fails or
passes as the rule says.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from benchmarks import instructions, targets
from benchmarks.stats import unpaired_interval
from pipeline import comparing, in_turn
from pipeline.errors import ConfigError, PipelineError
from pipeline.settings import Settings, read_table
from pipeline.summary import ArtifactRow, Report
from pipeline.wording import number, points, points_interval

State = Literal["passed", "failed", "not judged"]


class Rule(Settings):
    """What is allowed to every file."""

    most: float = Field(ge=0)
    """Points that may be lost (accuracy, parity), or times as much as before (the others)."""
    unjudged: Literal["fail", "pass"] = "fail"
    """What it means that the rule cannot be judged."""


class LatencyRule(Rule):
    """The same for p50."""

    in_turn: bool = False
    """Time both files here, in turn, rather than compare what two reports have."""
    rounds: int = Field(default=15, ge=5)
    """Processes of each file then; some 2 s a round."""


class Rules(Settings):
    """A rules file; a rule that is left out is not asked."""

    files: tuple[str, ...] = ()
    """Titles, such as "onnx int8"; none: every file of the baseline."""
    accuracy: Rule | None = None
    """Points of top-1 over the same test images."""
    parity: Rule | None = None
    """Points of agreement with the run's own student."""
    size: Rule | None = None
    """Bytes, as a multiple."""
    latency: LatencyRule | None = None
    """p50 of the same host and profile, as a multiple."""
    instructions: Rule | None = None
    """Instructions of an inference of the ONNX files, under valgrind here, as a multiple."""


@dataclass(frozen=True)
class Judgement:
    """One rule on one file."""

    rule: str
    file: str
    state: State
    told: str
    unjudged: Literal["fail", "pass"] = "fail"

    @property
    def passes(self) -> bool:
        """Whether CI may go on, as far as this goes."""
        return self.state == "passed" or (self.state == "not judged" and self.unjudged == "pass")

    @property
    def line(self) -> str:
        """In one line."""
        state = self.state
        if state == "not judged":
            state += ", and passes" if self.passes else ", and fails"
        return f"{self.file}, {self.rule}: {state}: {self.told}"


def read(path: Path) -> Rules:
    """The rules in the TOML file at `path`. Raises `ConfigError` naming what is wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", "Name a TOML file of rules."
        ) from error
    rules = read_table(table, Rules, ())
    if not _asked(rules):
        names = ", ".join(name for name in Rules.model_fields if name != "files")
        raise ConfigError(f"{path} has no rule", f"Rules: {names}, each a table with `most`.")
    return rules


def _asked(rules: Rules) -> dict[str, Rule]:
    found = {name: getattr(rules, name) for name in Rules.model_fields if name != "files"}
    return {name: rule for name, rule in found.items() if rule is not None}


def judge(
    report: Report, folder: Path, before: Report, before_folder: Path, rules: Rules
) -> list[Judgement]:
    """Every rule on every file that it can be asked of, `report` against `before`.

    Raises `ConfigError` for a title in `rules.files` that the baseline has not, for one that two
    files have, and where no rule can be asked of any file.
    """
    known, now = _files(before), _files(report)
    titles = rules.files or tuple(known)
    if missing := [title for title in titles if title not in known]:
        raise ConfigError(
            f"the baseline '{before.run}' has no file {missing[0]}", f"It has: {', '.join(known)}."
        )
    same = report.dataset.test_digest == before.dataset.test_digest
    found = []
    for title in titles:
        if title not in now:
            found.append(Judgement("file", title, "failed", f"run '{report.run}' has none"))
            continue
        pair = _Pair(before_folder, known[title], folder, now[title], same)
        for name, rule in _asked(rules).items():
            if name == "instructions" and now[title].format != "onnx" and not rules.files:
                continue  # of a file that is named it is said that they cannot be judged
            state, told = _JUDGES[name](pair, rule)
            found.append(Judgement(name, title, state, told, rule.unjudged))
    if not found:
        raise ConfigError(
            f"no rule can be asked of any file of '{before.run}'",
            "`instructions` are those of ONNX files; a run needs files to be judged.",
        )
    return found


def _files(report: Report) -> dict[str, ArtifactRow]:
    """A report's files by title. Raises `ConfigError` where two have the same."""
    rows = [row for row in report.artifacts if row.path]
    found = {row.title: row for row in rows}
    if len(found) < len(rows):
        titles = [row.title for row in rows]
        twice = next(title for title in titles if titles.count(title) > 1)
        raise ConfigError(
            f"run '{report.run}' has two files called {twice}: nothing says which is meant",
            "Run it again: the pipeline gives each file a title of its own.",
        )
    return found


@dataclass(frozen=True)
class _Pair:
    old_folder: Path
    old: ArtifactRow
    new_folder: Path
    new: ArtifactRow
    same_images: bool


Verdict = tuple[State, str]
SAME = "it is the same file"


def _accuracy(pair: _Pair, rule: Rule) -> Verdict:
    found = comparing.difference(pair.old, pair.new, same_images=pair.same_images)
    if found is None:
        return "not judged", "top-1 was not measured in both runs"
    if not pair.same_images:
        return "not judged", "the two were tested on different images"
    how = "" if found.paired else ", unpaired and so wider: a run kept no answers to them"
    told = f"{points(found.value)} points of top-1 ({points_interval(found.ci95)}{how})"
    return _worse(-100 * found.ci95[1], rule.most, f"{told}, {rule.most:g} may be lost")


def _parity(pair: _Pair, rule: Rule) -> Verdict:
    old, new = pair.old.parity, pair.new.parity
    if old is None or new is None or not old.n or not new.n:
        return "not judged", "agreement with the student was not measured in both runs"
    ends = unpaired_interval(old.top1_agreement, old.n, new.top1_agreement, new.n)
    change = new.top1_agreement - old.top1_agreement
    told = f"{points(change)} points of agreement ({points_interval(ends)})"
    return _worse(-100 * ends[1], rule.most, f"{told}, {rule.most:g} may be lost")


def _size(pair: _Pair, rule: Rule) -> Verdict:
    old, new = pair.old.bytes, pair.new.bytes
    if not old or not new:
        return "not judged", "a size is not known"
    return _worse(
        new / old, rule.most, f"{new:,} bytes against {old:,}, {rule.most:g} times are allowed"
    )


def _latency(pair: _Pair, rule: LatencyRule) -> Verdict:
    if rule.in_turn:
        return _in_turn(pair, rule)
    old, new = pair.old.latency, pair.new.latency
    if old is None or new is None:
        return "not judged", "p50 was not measured in both runs"
    if refusal := comparing.incomparable(old, new):
        return "not judged", refusal
    if noisy := new.noisy or old.noisy:
        return "not judged", f"the host was too noisy: {noisy}"
    ratio, ends = comparing.latency_ratio(old, new)
    if ends is None:
        return "not judged", "a run has no interval of its p50"
    told = f"p50 {number(ratio)} times ({number(ends[0])} to {number(ends[1])})"
    return _worse(ends[0], rule.most, f"{told}, {rule.most:g} are allowed")


def _in_turn(pair: _Pair, rule: LatencyRule) -> Verdict:
    try:
        if _same_file(pair):
            return _worse(1.0, rule.most, SAME)
        found = in_turn.measure(pair.old_folder, pair.old, pair.new_folder, pair.new, rule.rounds)
    except PipelineError as error:
        return "not judged", error.message
    ends = f"{number(found.ci95[0])} to {number(found.ci95[1])}"
    told = f"{number(found.value)} times ({ends}), in {found.rounds} rounds in turn"
    if found.undecided(rule.most):
        return "not judged", f"the host was too noisy: {told}, and {rule.most:g} are allowed"
    return _worse(found.ci95[0], rule.most, f"{told}, {rule.most:g} are allowed")


def _instructions(pair: _Pair, rule: Rule) -> Verdict:
    if pair.new.format != "onnx":
        return "not judged", "only ONNX files' instructions are counted"
    try:
        if _same_file(pair):
            return _worse(1.0, rule.most, SAME)
        old = instructions.count(targets.file_of_row(pair.old, pair.old_folder)).per_inference
        new = instructions.count(targets.file_of_row(pair.new, pair.new_folder)).per_inference
    except PipelineError as error:
        return "not judged", error.message
    return _worse(new / old, rule.most, f"{new:,} against {old:,}, {rule.most:g} times are allowed")


def _same_file(pair: _Pair) -> bool:
    """Whether the two are one file. Raises `PipelineError` where either is not what it was."""
    for row, folder in ((pair.old, pair.old_folder), (pair.new, pair.new_folder)):
        targets.file_of_row(row, folder)
    return pair.old.sha256 == pair.new.sha256


def _worse(least: float, most: float, told: str) -> Verdict:
    """`least`: by how much it is worse at the least."""
    return ("failed" if least > most else "passed"), told


_JUDGES: Mapping[str, Any] = {
    "accuracy": _accuracy,
    "parity": _parity,
    "size": _size,
    "latency": _latency,
    "instructions": _instructions,
}
