"""Where results are kept: content key -> folder, whole or not at all.

A result is worked out in ``.partial/<stage>-<key>`` and renamed to ``<stage>/<key>`` when it is
complete, with ``record.json`` beside its files. A process killed at any instant therefore leaves
either the whole result or none. A lock a key (released by the operating system when its holder
dies) lets two runs share one store: the second waits and then finds the result.

Long work keeps what it can be continued from in `resume_folder`, which outlives an interruption and
goes when the result is there. Of the processes of one job only the leader writes.

Who needs a result is noted inside `Store.referred_by`, and a record says what it was made of, so
that `pipeline.pruning` can tell what nothing refers to.
"""

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from pipeline.errors import DivergedError, StoreError
from pipeline.progress import console
from pipeline.records import SCHEMA, Result
from pipeline.references import Note
from pipeline.team import Team, leave, noticing_loss

R = TypeVar("R", bound=Result)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ALMOST_NOTHING = 1 << 20
"""Bytes left on a disk that is full for our purposes."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Whether a result was worked out now or had been there."""

    stage: str
    key: str
    reused: bool


def digest(facts: Any) -> str:
    """Sixteen hexadecimal digits that stand for JSON-able `facts`; pydantic models are allowed."""
    text = json.dumps(facts, sort_keys=True, default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not JSON-able: {type(value)}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; of a directory, over its files' sorted relative names and contents."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{part.relative_to(path).as_posix()}\0{file_sha256(part)}\n".encode())
    return total.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return sum(size for _, size in _files(path)) if path.is_dir() else path.stat().st_size


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Turn a full disk, a quota, a read-only folder, or a `what` that cannot be a file into a
    `StoreError` that says so."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _is_full(error, what):
            raise StoreError(
                f"no space left while writing below {what}",
                remedy="Free some space, or name another place with --store; "
                "then run again: finished stages are kept.",
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StoreError(
                f"may not write to {error.filename or what}",
                remedy="Make the folder writable, or name another one with --store.",
            ) from error
        if isinstance(error, OSError) and str(error.filename) == str(what):
            raise StoreError(
                f"cannot write {what}: {error.strerror}",
                remedy="Name another place, in a folder that is there.",
            ) from error
        raise


def _is_full(error: OSError | RuntimeError, what: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    # Libraries written in C++ report a failed write as any RuntimeError: ask the disk itself.
    there = next((p for p in (what, *what.absolute().parents) if p.exists()), Path())
    return shutil.disk_usage(there).free < ALMOST_NOTHING


def resume_folder(folder: Path) -> Path:
    """Where work whose results go to `folder` keeps the state that it can be continued from."""
    return folder.with_name(f"{folder.name}.resume")


class Store:
    """A folder of results. Every stage goes through `get`."""

    def __init__(self, root: Path, team: Team | None = None) -> None:
        self.root = root
        self.team = team or Team()
        """The processes of this job; they must all see `root`."""
        self.outcomes: list[Outcome] = []
        """What `get` did so far, in order."""
        self._notes: list[Note] = []

    @contextmanager
    def referred_by(self, owner: Path, *, replaces: bool = True) -> Iterator[None]:
        """Note what is asked for inside as needed by `owner`, for as long as that is there.

        `owner` is a run's folder or the like. Where what it held before may stay in it (a search
        that finds nothing leaves an earlier report), say `replaces=False`: what was asked for
        before counts on. Raises `StoreError` when the store cannot be written.
        """
        if not self.team.leads:
            yield
            return
        with writing(self.root):
            note = Note(self.root, owner)
        self._notes.append(note)
        try:
            yield
            with writing(self.root):
                note.finish(replaces=replaces)
        finally:
            self._notes.remove(note)
            note.close()

    def refer(self, result: Result) -> None:
        """Note as needed a `result` that was loaded by hand; nothing where this store has it not.

        Raises `StoreError` when the store cannot be written.
        """
        if self.team.leads and (name := self._name(result)):
            with writing(self.root):
                for note in self._notes:
                    note.add(name)

    def _name(self, result: Result) -> str | None:
        """As "teach/0123456789abcdef"; None where it lies elsewhere.

        By where the folders are: a path may be absolute, relative, or through a link, and the
        folder of a stage may be a link out of the store.
        """
        root = self.root.resolve()
        for home in (result.folder.absolute(), result.folder.resolve()):
            if home.parent.parent.resolve() == root:
                return f"{home.parent.name}/{home.name}"
        return None

    def get(
        self,
        kind: type[R],
        stage: str,
        work: Callable[[Path], R],
        *,
        version: int,
        settings: object,
        parents: Sequence[Result] = (),
        facts: Mapping[str, Any] | None = None,
        together: bool = False,
    ) -> R:
        """The result of `work`, from the store if it is there.

        The key covers `stage`, `version` (raise it when the stage's code changes its results),
        `settings`, the identity of the `parents`, and `facts` (library versions and the like).
        `work` gets an empty folder for its files and returns the record. In a job of several
        processes the leader does it while the others wait; with `together` all do it, and only
        the leader may write.

        Raises `StoreError` when the folder cannot be written, `TrainingError` where another
        process of the job is gone; whatever `work` raises passes through, and nothing but the
        `resume_folder` is left behind.
        """
        key = digest(
            {
                "schema": SCHEMA,
                "stage": stage,
                "version": version,
                "settings": settings,
                "parents": [parent.identity for parent in parents],
                "facts": dict(facts or {}),
            }
        )
        home = self.root / stage / key
        with noticing_loss(self.team, stage):
            self._agree(stage, key)
            if self.team.leads:
                with writing(self.root), self.alone(f"{stage}-{key}"):
                    for note in self._notes:
                        note.add(f"{stage}/{key}")
                    found = self.load(kind, home)
                    reused = self.team.tell(found is not None)
                    record = found if found is not None else self._make(home, work, parents)
                    self.team.tell("done")
            else:
                reused, record = self._follow(kind, home, work if together else None)
        self.outcomes.append(Outcome(stage=stage, key=key, reused=reused))
        return record

    def _agree(self, stage: str, key: str) -> None:
        """Raise `StoreError` where this process would work on something else than the leader."""
        if self.team.tell(key) != key:
            raise StoreError(
                f"{stage}: the process of rank {self.team.rank} works on something else than the "
                "leader",
                remedy="Give all machines of the job the same versions, files and devices.",
            )

    def _follow(
        self, kind: type[R], home: Path, work: Callable[[Path], R] | None
    ) -> tuple[bool, R]:
        """What a process does that does not lead: take part in `work`, wait, and read."""
        reused = self.team.tell(False)
        if not reused and work is not None:
            work(self._partial(home))
        self.team.tell("done")
        record = self.load(kind, home)
        if record is None:
            raise StoreError(
                f"the process of rank {self.team.rank} does not see {home}",
                remedy="Name a store with --store that all machines of the job share.",
            )
        return reused, record

    def _partial(self, home: Path) -> Path:
        return self.root / ".partial" / f"{home.parent.name}-{home.name}"

    def disband(self) -> bool:
        """End the work of several processes; whether this one led them and works on alone."""
        leads = self.team.leads
        if self.team.size > 1:
            leave()
            self.team = Team()
        return leads

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Hold the lock called `what`, waiting for another run on this store that has it."""
        (self.root / ".locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".locks" / what)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console.print(f"{what}: another run is at it; waiting for it", highlight=False)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _make(self, home: Path, work: Callable[[Path], R], parents: Sequence[Result]) -> R:
        partial = self._partial(home)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)  # in here, for Ctrl-C may come right after it
            since, before = time.perf_counter(), len(self.outcomes)
            record = work(partial)
            seconds = time.perf_counter() - since
            record = record.model_copy(
                update={"key": home.name, "folder": home, "seconds": seconds}
            )
            body = {
                "schema": SCHEMA,
                "record": record.model_dump(mode="json"),
                "files": dict(_files(partial)),
                "uses": self._used(parents, self.outcomes[before:]),
            }
            (partial / "record.json").write_text(json.dumps(body, indent=1), encoding="utf-8")
            if home.exists():  # damaged, or written by another version: `load` refused it
                shutil.rmtree(home)
            home.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(home)
            shutil.rmtree(resume_folder(partial), ignore_errors=True)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, DivergedError):  # it would fail again from where it is
                shutil.rmtree(resume_folder(partial), ignore_errors=True)
            raise
        return record

    def _used(self, parents: Sequence[Result], inside: Sequence[Outcome]) -> list[str]:
        """Names of the results that one was made of: its parents, and what its work asked for."""
        names = {name for each in parents if (name := self._name(each))}
        return sorted(names | {f"{each.stage}/{each.key}" for each in inside})

    @staticmethod
    def load(kind: type[R], home: Path) -> R | None:
        """The record in `home`, or None where there is none that is whole.

        A result is whole when every file it was written with is there at its full size.
        """
        try:
            body = json.loads((home / "record.json").read_text(encoding="utf-8"))
            whole = body["schema"] == SCHEMA and all(
                (home / name).stat().st_size == size for name, size in body["files"].items()
            )
            record = kind.model_validate(body["record"]) if whole else None
        except (FileNotFoundError, NotADirectoryError, KeyError, ValueError, ValidationError):
            return None
        return record.model_copy(update={"folder": home}) if record else None
