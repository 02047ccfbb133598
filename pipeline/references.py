"""Who needs which results of a store: every run names them while it asks for them.

The reports cannot tell: they name neither data nor measurements, a run that is under way or was
stopped has none, and one store may serve several folders of runs. So each process writes a note of
its own, ``.runs/<name>-<random>.json`` in the store, before it reads or makes a result. It holds
the lock beside the note for as long as it lives, and the operating system releases that when it
dies. A note counts for as long as what it was written for is there, which a run's folder also is
under another name beside it: note and folder have the same mark.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.whole import write_whole

FOLDER = ".runs"
"""Of the notes, inside a store."""
MARK = ".mark"
"""A file in a run's folder that tells it from another of the same name."""


class Reference(BaseModel):
    """What one process asked for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    of: str
    """Who needs it, relative to the store: a run's folder, or the page of an experiment."""
    since: str
    """When the process began, in UTC."""
    finished: bool = False
    results: tuple[str, ...] = ()
    """As "teach/0123456789abcdef"; the last one may have been stopped before it was made."""
    mark: str | None = None
    """What the folder of a finished run has in its file `MARK`; None for a page or the like."""


@dataclass(frozen=True)
class Noted:
    """One note on the disk."""

    file: Path
    reference: Reference
    held: bool | None
    """Whether its process is still there; None where nobody may tell."""

    @property
    def alive(self) -> bool:
        """Whether its process may still be there."""
        return self.held is not False

    @property
    def owner(self) -> Path:
        """Who needs the results."""
        return Path(os.path.normpath(self.file.parents[1].resolve() / self.reference.of))

    @property
    def told(self) -> str:
        """How it stands with a run that has not finished, as "under way since ..."."""
        since = self.reference.since
        if self.held:
            return f"under way since {since}"
        if self.held is None:
            return f"under way or stopped (its lock may not be opened here); begun {since}"
        return f"stopped before its report; begun {since}"


class Note:
    """The note of this process. Raises `OSError` where the store cannot be written."""

    def __init__(self, root: Path, owner: Path) -> None:
        """For `owner`, whose results lie in the store `root`."""
        self._owner = owner.resolve()
        self._folder = root / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / f"{owner.name}-{secrets.token_hex(4)}.json"
        # Locked before there is a note: nobody ever sees this one without its process.
        self._lock = FileLock(_lock_of(self._file))
        self._lock.acquire(timeout=0)
        # Relative, for runs are moved with their store; resolved, for links lead to a store, too.
        of = os.path.relpath(self._owner, root.resolve())
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._write(Reference(of=Path(of).as_posix(), since=now))

    def add(self, result: str) -> None:
        """Say that `result` is needed, before it is looked for."""
        if result not in self._reference.results:
            results = (*self._reference.results, result)
            self._write(self._reference.model_copy(update={"results": results}))

    def finish(self, *, replaces: bool = True) -> None:
        """Say that this is all: it stands in the place of all earlier notes of the same owner.

        Unless `replaces`, only in that of those that asked for nothing else. Notes of a folder that
        had the same name stay, for it may have another by now; `pipeline.pruning` looks for it.
        """
        mark = self._mark()
        self._write(self._reference.model_copy(update={"finished": True, "mark": mark}))
        for other in _readable(self._folder.parent):
            same = other.reference.of == self._reference.of and other.reference.mark in (None, mark)
            if not same or other.file == self._file or other.alive:
                continue
            if replaces or set(other.reference.results) <= set(self._reference.results):
                forget(other)

    def _mark(self) -> str | None:
        """That of the owner's folder, which gets one if it has none."""
        if not self._owner.is_dir():
            return None
        if not (found := mark_of(self._owner)):
            found = secrets.token_hex(8)
            (self._owner / MARK).write_text(found, encoding="utf-8")
        return found

    def close(self) -> None:
        """The process is through with it, finished or not."""
        self._lock.release()

    def _write(self, reference: Reference) -> None:
        self._reference = reference
        write_whole(self._file, reference.model_dump_json(indent=1))


def _lock_of(file: Path) -> Path:
    return file.with_suffix(".lock")


def read(root: Path) -> list[Noted]:
    """All notes in the store `root`. Raises `StoreError` for one that cannot be read."""
    found = (_read(file) for file in _files(root))
    return [note for note in found if note is not None]


def _readable(root: Path) -> Iterator[Noted]:
    """Those notes in the store `root` that can be read."""
    files: list[Path] = []
    with suppress(StoreError):
        files = _files(root)
    for file in files:
        with suppress(StoreError):
            note = _read(file)
            if note is not None:
                yield note


def _files(root: Path) -> list[Path]:
    try:  # not by glob, to which a folder that it may not read is an empty one
        return sorted(file for file in (root / FOLDER).iterdir() if file.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _closed(root / FOLDER, error) from error


def _read(file: Path) -> Noted | None:
    """One note; None where it was forgotten just now."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        reference = Reference.model_validate(body)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _closed(file, error) from error
    except (ValueError, ValidationError) as error:
        raise StoreError(
            f"what a run needs cannot be read: {file}: {error}",
            "Delete that file; the next run of the same settings writes it anew.",
        ) from error
    return Noted(file, reference, holds(_lock_of(file)))


def _closed(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"what a run needs may not be read: {path}: {error.strerror}",
        "Do this as the user who wrote it, or let others read it.",
    )


def mark_of(folder: Path) -> str | None:
    """The mark of a run's folder; None where it has none."""
    try:
        return (folder / MARK).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def holds(lock: Path) -> bool | None:
    """Whether a living process holds `lock`; None where nobody may tell."""
    try:
        if not lock.exists():
            return False
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # another user's, or on a disk that is only read
        return None


def forget(noted: Noted) -> None:
    """Remove a note."""
    noted.file.unlink(missing_ok=True)
    _lock_of(noted.file).unlink(missing_ok=True)


def unfinished(runs: Path) -> dict[str, str]:
    """How it stands with the runs in the folder `runs` that are under way or were stopped, by name.

    Of those whose results are in the store inside it, and whose notes can be read.
    """
    notes = _readable(runs / ".store")
    own = [each for each in notes if each.owner.parent == runs.resolve()]
    own = [each for each in own if not each.reference.finished]
    ordered = sorted(own, key=lambda each: (each.alive, each.reference.since))
    return {each.owner.name: each.told for each in ordered}


def told(folder: Path) -> str:
    """In words, why there is no report in the folder of a run."""
    found = unfinished(folder.parent).get(folder.name)
    if found is None and not folder.is_dir():
        return "there is no such run"
    return found or "nothing in the store beside it tells of such a run"
