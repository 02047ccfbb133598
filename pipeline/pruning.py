"""What may go from a store: results that nothing refers to, and what dead processes left.

Kept are, with everything that they were made of, the results that a note in the store asks for
(`pipeline.references`): those of every run whose folder is there, of runs under way, and of runs
that were stopped before their report. The state that a stopped training goes on from is kept, too.
Both are dropped only by `stopped`. A run of before there were notes does not say what it needs:
while its folder is there, all that may be its own is kept, and results of such versions that no
note reaches are dropped only by `older`, for runs of other folders may be theirs.

A result is renamed before it is deleted, under its lock, and only if no run under way has asked
since for it, or for what was made of it (what a run asks for later it finds gone, and makes anew):
a prune that is killed leaves whole results or none. The empty lock files stay, for another process
may wait on one.
"""

import contextlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline import references
from pipeline.errors import StoreError
from pipeline.kept import Result, Thing, bytes_of, results, uses_of, with_parents
from pipeline.references import Noted
from pipeline.store import writing
from pipeline.summary import BUNDLE, FILE
from pipeline.wording import megabytes

ASIDE = ".pruned"
"""Where results go before they are deleted, inside the store."""
PARTIAL, LOCKS, RESUME = ".partial", ".locks", ".resume"
UNFINISHED = "half made"
STOPPED = "state to go on from"
LEFT = "left by a prune"


@dataclass(kw_only=True)
class Plan:
    """What goes, and why the rest stays."""

    root: Path
    runs: Path
    stopped: bool
    older: bool
    """What was asked for: the arguments of `survey`."""
    goes: list[Thing] = field(default_factory=list)
    stays: list[Thing] = field(default_factory=list)
    forgotten: list[Noted] = field(default_factory=list)
    """Notes of what is gone."""
    told: list[str] = field(default_factory=list)
    """Reasons, for people."""


def survey(root: Path, runs: Path, *, stopped: bool = False, older: bool = False) -> Plan:
    """What of the store `root` nothing refers to; `runs` is looked through for runs without notes.

    With `stopped`, runs that were stopped before their report need nothing any more; with `older`,
    results of earlier versions go that neither a note nor a run in `runs` may need.
    Raises `StoreError` where `root` is no store, a note cannot be read, or `runs` is no folder and
    there are results of earlier versions.
    """
    if not (root / LOCKS).is_dir():
        raise StoreError(f"{root} is no store of results", "Name it with --store, or --runs.")
    plan = Plan(root=root, runs=runs, stopped=stopped, older=older)
    notes, there = references.read(root), {found.name: found for found in results(root)}
    asked = _asked(plan, notes, set(there))
    uses = {name: each.uses or () for name, each in there.items()}
    needed = with_parents(asked, lambda name: uses.get(name, ()))
    needed |= _perhaps(plan, notes, [each for each in there.values() if each.name not in needed])
    closed = 0
    for result in there.values():
        held = result.name not in needed and references.holds(root / LOCKS / result.lock)
        (plan.goes if held is False and result.name not in needed else plan.stays).append(result)
        closed += held is None
    if closed:
        plan.told.append(
            f"{_count(closed)} stay, for it cannot be told whether anybody works on them: their "
            f"locks in {root / LOCKS} may not be opened."
        )
    _leftovers(plan, there, stopped=stopped and not any(note.alive for note in notes))
    return plan


def _time(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _asked(plan: Plan, notes: Sequence[Noted], there: set[str]) -> set[str]:
    """Names of the results that notes ask for; the notes that count no more are `forgotten`."""
    found = set[str]()
    for note in notes:
        own = there & set(note.reference.results)
        why = _why(plan, note, len(own))
        if why is None:
            plan.forgotten.append(note)
            if own and note.reference.finished:
                plan.told.append(f"{note.owner} is gone or moved: nothing stays for its sake.")
            continue
        found |= own
        if why:
            plan.told.append(why)
    return found


def _why(plan: Plan, note: Noted, own: int) -> str | None:
    """Why the `own` results of a note stay, "" where that is a matter of course; None: they go."""
    name, place = note.owner.name, note.owner.parent
    if not note.reference.finished:
        if note.alive:
            return f"'{name}' {note.told}: what it uses stays."
        kept = f"'{name}' {note.told}: {_count(own)} of it stay. --stopped gives them up."
        return None if plan.stopped or not own else kept
    if _found(note, plan.runs):
        return ""
    # An empty folder may be one that another disk comes to lie in; with the store in it, it is not.
    empty = not place.is_dir() or not any(_homes(place))
    if empty and place != plan.root.resolve().parent:
        return (
            f"{note.owner} cannot be seen, nor anything beside it (not mounted?): what it needs "
            f"stays. If it is gone for good, delete {note.file}."
        )
    return None


def _found(note: Noted, runs: Path) -> bool:
    """Whether the owner of a note is there, under its name or another one."""
    mark = note.reference.mark
    if note.owner.exists() and (mark is None or references.mark_of(note.owner) in (None, mark)):
        return True
    beside = (home for folder in (note.owner.parent, runs) for home in _homes(folder))
    return mark is not None and any(references.mark_of(home) == mark for home in beside)


def _homes(folder: Path) -> list[Path]:
    """What lies in a folder of runs."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(home for home in found if not home.name.startswith("."))


def _perhaps(plan: Plan, notes: Sequence[Noted], others: Sequence[Result]) -> set[str]:
    """Those of `others` that runs of before there were notes may need.

    What such a run asked for was there before its report, and mostly from before notes, too.
    """
    found, old = set[str](), {each.name for each in others if each.older}
    if old and not plan.runs.is_dir():
        raise StoreError(
            f"{plan.root} has {_count(len(old))} of an earlier version, which do not say whose "
            f"they are, and {plan.runs} is no folder of runs",
            "Name the folder of the runs with --runs.",
        )
    for home in _homes(plan.runs):
        parts = [home / name for name in (FILE, "metrics", BUNDLE)]
        times = [part.stat().st_mtime for part in parts if part.exists()]
        mark = references.mark_of(home)
        own = [n for n in notes if n.owner == home.resolve() or (mark and n.reference.mark == mark)]
        says = any(note.reference.finished for note in own) or (own and not (home / FILE).exists())
        if not times or says:
            continue
        its = {each.name for each in others if each.uses is None or each.made <= max(times)}
        if its:
            plan.told.append(
                f"'{home.name}' is of an earlier version, or used another store, and does not say "
                f"what it needs: {_count(len(its))} that may be its own stay. Run it again with "
                "its settings, and it says so; or delete its folder."
            )
        found |= its
    if (left := old - found) and not plan.older:
        plan.told.append(
            f"{_count(len(left))} of an earlier version stay, which no run in {plan.runs} needs; "
            "runs of other folders may. --older gives them up."
        )
        found |= left
    return found


def _leftovers(plan: Plan, results: Mapping[str, Result], *, stopped: bool) -> None:
    """What is no result: halves of dead processes, states to go on from, what a prune left."""
    for path in sorted((plan.root / ASIDE).glob("*")):
        plan.goes.append(Thing(LEFT, path.name, path, bytes_of(path), _time(path)))
    for path in sorted((plan.root / PARTIAL).glob("*")):
        name = "/".join(path.name.removesuffix(RESUME).rsplit("-", 1))
        kind = STOPPED if path.name.endswith(RESUME) else UNFINISHED
        thing = Thing(kind, name, path, bytes_of(path), _time(path))
        if references.holds(plan.root / LOCKS / thing.lock) is not False:
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
    # A question may stand for hours.
    now = survey(plan.root, plan.runs, stopped=plan.stopped, older=plan.older)
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
        count = [n for n in references.read(root) if n.alive or isinstance(thing, Result)]
        asked = {name for n in count if n not in forgotten for name in n.reference.results}
        if isinstance(thing, Result):
            asked = with_parents(asked, partial(uses_of, root))
        if thing.name in asked or not thing.path.exists():
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
