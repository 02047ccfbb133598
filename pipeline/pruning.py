"""What may go from a store: results that nothing refers to, and what dead processes left.

Kept are, with everything that they were made of, the results that a note in the store asks for
(`pipeline.references`): those of every run whose folder is there, of runs under way, and of runs
that were stopped before their report. The state that a stopped training goes on from is kept, too.
Both are dropped only by `stopped`. A run of before there were notes does not say what it needs:
while its folder is there, all that may be its own is kept. (Of such a result itself it is not known
what it was made of; its intermediate results, answers to views and fine-tuned networks, may go.)

A result is renamed before it is deleted, under its lock, and only if no run has asked for it since:
a prune that is killed leaves whole results or none. The empty lock files stay, for another process
may wait on one.
"""

import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline import references
from pipeline.errors import StoreError
from pipeline.references import Noted
from pipeline.store import size_of, writing
from pipeline.summary import BUNDLE, FILE
from pipeline.wording import megabytes

KEY = re.compile(r"[0-9a-f]{16}")
ASIDE = ".pruned"
"""Where results go before they are deleted, inside the store."""
PARTIAL, LOCKS, RESUME = ".partial", ".locks", ".resume"
UNFINISHED = "half made"
STOPPED = "state to go on from"
LEFT = "left by a prune"


@dataclass(frozen=True)
class Thing:
    """One folder of a store."""

    kind: str
    """Its stage, or why it is no result."""
    name: str
    """As "teach/0123456789abcdef"."""
    path: Path
    bytes: int
    made: float
    """Seconds since 1970."""

    @property
    def lock(self) -> str:
        """The lock that whoever works on it holds."""
        return self.name.replace("/", "-", 1)


@dataclass(frozen=True)
class Result(Thing):
    """A result."""

    uses: tuple[str, ...] | None = None
    """Names of what it was made of; None where the record, of an earlier version, does not say."""


@dataclass(kw_only=True)
class Plan:
    """What goes, and why the rest stays."""

    root: Path
    runs: Path
    stopped: bool
    """What was asked for: the arguments of `survey`."""
    goes: list[Thing] = field(default_factory=list)
    stays: list[Thing] = field(default_factory=list)
    forgotten: list[Noted] = field(default_factory=list)
    """Notes of what is gone."""
    told: list[str] = field(default_factory=list)
    """Reasons, for people."""


def survey(root: Path, runs: Path, *, stopped: bool = False) -> Plan:
    """What of the store `root` nothing refers to; `runs` is looked through for runs without notes.

    With `stopped`, runs that were stopped before their report need nothing any more.
    Raises `StoreError` where `root` is no store, or a note cannot be read.
    """
    if not (root / LOCKS).is_dir():
        raise StoreError(f"{root} is no store of results", "Name it with --store, or --runs.")
    notes, plan = references.read(root), Plan(root=root, runs=runs, stopped=stopped)
    results = {found.name: found for found in _results(root)}
    needed = _with_parents(_asked(plan, notes, set(results), stopped), results)
    needed |= _perhaps(plan, runs, notes, [r for r in results.values() if r.name not in needed])
    for result in results.values():
        used = result.name in needed or references.is_held(root / LOCKS / result.lock)
        (plan.stays if used else plan.goes).append(result)
    _leftovers(plan, results, stopped=stopped and not any(note.alive for note in notes))
    return plan


def _results(root: Path) -> Iterator[Result]:
    for home in sorted(root.glob("[!.]*/*")):
        if not home.is_dir() or not KEY.fullmatch(home.name):
            continue
        record, uses = home / "record.json", None
        try:
            listed = json.loads(record.read_text(encoding="utf-8")).get("uses")
            uses = None if listed is None else tuple(listed)
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # damaged: whoever asks for it makes it anew
        made = (record if record.exists() else home).stat().st_mtime
        stage = home.parent.name
        yield Result(stage, f"{stage}/{home.name}", home, _bytes(home), made, uses)


def _time(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _bytes(path: Path) -> int:
    """What `path` holds; somebody may be working in it."""
    try:
        return size_of(path)
    except FileNotFoundError:
        return 0


def _asked(plan: Plan, notes: Sequence[Noted], there: set[str], stopped: bool) -> set[str]:
    """Names of the results that notes ask for; the notes that count no more are `forgotten`."""
    found = set[str]()
    for note in notes:
        own = there & set(note.reference.results)
        why = _why(note, len(own), stopped)
        if why is None:
            plan.forgotten.append(note)
            if own and note.reference.finished:
                plan.told.append(f"{note.owner} is gone: nothing stays for its sake.")
            continue
        found |= own
        if why:
            plan.told.append(why)
    return found


def _why(note: Noted, own: int, stopped: bool) -> str | None:
    """Why the `own` results of a note stay, "" where that is a matter of course; None: they go."""
    name = note.owner.name
    if note.alive:
        return f"'{name}' {note.told}: what it uses stays."
    if not note.reference.finished:
        kept = f"'{name}' {note.told}: {_count(own)} of it stay. --stopped gives them up."
        return None if stopped or not own else kept
    if not note.owner.parent.exists():
        return (
            f"{note.owner} cannot be seen, nor its folder (not mounted?): what it needs stays. "
            f"If it is gone for good, delete {note.file}."
        )
    return "" if note.owner.exists() else None


def _with_parents(asked: set[str], results: Mapping[str, Result]) -> set[str]:
    """`asked`, and whatever they were made of."""
    found, left = set[str](), list(asked)
    while left:
        name = left.pop()
        if name in results and name not in found:
            found.add(name)
            left += results[name].uses or ()
    return found


def _perhaps(plan: Plan, runs: Path, notes: Sequence[Noted], others: Sequence[Result]) -> set[str]:
    """Those of `others` that runs of before there were notes may need.

    What such a run asked for was there before its report, and mostly from before notes, too.
    """
    found = set[str]()
    for home in sorted(runs.iterdir()) if runs.is_dir() else ():
        parts = [home / name for name in (FILE, "metrics", BUNDLE)]
        times = [part.stat().st_mtime for part in parts if part.exists()]
        own = [note for note in notes if note.owner == home.resolve()]
        says = any(note.reference.finished for note in own) or (own and not (home / FILE).exists())
        if home.name.startswith(".") or not times or says:
            continue
        its = {each.name for each in others if each.uses is None or each.made <= max(times)}
        if its:
            plan.told.append(
                f"'{home.name}' is of an earlier version, or used another store, and does not say "
                f"what it needs: {_count(len(its))} that may be its own stay. Run it again with "
                "its settings, and it says so; or delete its folder."
            )
        found |= its
    return found


def _leftovers(plan: Plan, results: Mapping[str, Result], *, stopped: bool) -> None:
    """What is no result: halves of dead processes, states to go on from, what a prune left."""
    for path in sorted((plan.root / ASIDE).glob("*")):
        plan.goes.append(Thing(LEFT, path.name, path, _bytes(path), _time(path)))
    for path in sorted((plan.root / PARTIAL).glob("*")):
        name = "/".join(path.name.removesuffix(RESUME).rsplit("-", 1))
        kind = STOPPED if path.name.endswith(RESUME) else UNFINISHED
        thing = Thing(kind, name, path, _bytes(path), _time(path))
        if references.is_held(plan.root / LOCKS / thing.lock):
            plan.stays.append(thing)
        elif kind == UNFINISHED or stopped or name in results:
            plan.goes.append(thing)
        else:
            plan.stays.append(thing)
            plan.told.append(
                f"The state that {name} goes on from stays ({megabytes(thing.bytes)} MB, of "
                f"{_date(thing.made)}). --stopped gives it up, while no run is under way."
            )


def shown(plan: Plan) -> RenderableType:
    """What goes, by stage, and why the rest stays; for 100 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("nothing refers to", "results", "MB", "oldest"):
        table.add_column(column, justify="left" if column == "nothing refers to" else "right")
    kinds = dict.fromkeys(thing.kind for thing in plan.goes)
    for kind, things in [(k, [t for t in plan.goes if t.kind == k]) for k in kinds]:
        table.add_row(Text(kind), *_figures(things))
    if len(kinds) > 1:
        table.add_section()
        table.add_row("in all", *_figures(plan.goes))
    stays = f"Stay: {len(plan.stays)}, {_size(plan.stays)} MB."
    nothing = Text(f"There is nothing to remove in {plan.root}.")
    lines = [Text(line, "dim") for line in (*plan.told, stays)]
    return Group(table if plan.goes else nothing, *lines)


def _figures(things: Sequence[Thing]) -> tuple[str, str, str]:
    return str(len(things)), _size(things), _date(min(thing.made for thing in things))


def _size(things: Sequence[Thing]) -> str:
    return megabytes(sum(thing.bytes for thing in things))


def _date(made: float) -> str:
    return datetime.fromtimestamp(made, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _count(results: int) -> str:
    return f"{results} result{'s' * (results != 1)}"


def remove(plan: Plan) -> str:
    """Do what `plan` says, but for what was asked for meanwhile; what was done, for people.

    Raises `StoreError` where the store may not be written.
    """
    now = survey(plan.root, plan.runs, stopped=plan.stopped)  # a question may stand for hours
    goes = [thing for thing in plan.goes if thing in now.goes]
    forgotten = [note for note in plan.forgotten if note in now.forgotten]
    with writing(plan.root):
        gone = [thing for thing in goes if _removed(plan.root, thing, forgotten)]
        for note in forgotten:
            references.forget(note)
    kept = len(plan.goes) - len(gone)
    meanwhile = f" {kept} stay: a run has come to use them." if kept else ""
    return f"Removed {len(gone)}, {_size(gone)} MB.{meanwhile}"


def _removed(root: Path, thing: Thing, forgotten: Sequence[Noted]) -> bool:
    """Whether it could be removed; False where somebody is at it, or asked for it."""
    if thing.kind == LEFT:
        _delete(thing.path)
        return True
    lock = FileLock(root / LOCKS / thing.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        # A run says what it needs under this lock, before it looks whether that is there.
        # Of what is no result, only a living process makes any use.
        count = (n for n in references.read(root) if n.alive or isinstance(thing, Result))
        asked = any(thing.name in n.reference.results for n in count if n not in forgotten)
        if asked or not thing.path.exists():
            return False
        aside = root / ASIDE / f"{thing.lock}-{secrets.token_hex(4)}"
        aside.parent.mkdir(exist_ok=True)
        thing.path.rename(aside)
    finally:
        lock.release()
    _delete(aside)
    return True


def _delete(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another prune is at it
        shutil.rmtree(folder)
