"""What a run's folder without a report shows of the run: under way, stopped, or no run at all."""

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

QUIET = 600.0
"""Seconds without a new epoch after which a training of short epochs is taken for stopped."""
EPOCHS = 3
"""As many of its longest epochs are waited for, where those take longer."""


def told(folder: Path, now: float | None = None) -> str:
    """In words, why there is no report in `folder`; `now` in seconds since 1970.

    What is known for certain are locks that a process holds: the folder's own, while its pages are
    written, and those of the store beside it, while a stage is at work, though not for which run.
    A training writes its epochs into the folder.
    """
    if not folder.is_dir():
        return "there is no such run"
    if _held([folder / ".lock"]):
        return "it is under way: its pages are being written"
    works = _held((folder.parent / ".store" / ".locks").glob("*"))
    last = max(folder.glob("metrics/*.jsonl"), key=_written, default=None)
    if last is None:
        return (
            "it may be under way: a run is at work" if works else "no training in it ended an epoch"
        )
    at = _written(last)
    since = (time.time() if now is None else now) - at
    day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if works or since < max(QUIET, EPOCHS * _longest(last)):
        return f"it may be under way: the last epoch of {last.stem} ended at {day}"
    return f"it stopped before its report: the last epoch, of {last.stem}, ended at {day}"


def _held(locks: Iterable[Path]) -> bool:
    """Whether another process holds one of them."""
    for path in locks:
        if path.is_file():
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return True
            except OSError:  # a folder that may only be read: nobody can tell
                continue
            lock.release()
    return False


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _longest(metrics: Path) -> float:
    """Seconds of the longest epoch in a file of `metrics.Metrics`; 0 where it cannot be read."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
        return max((float(json.loads(line)["seconds"]) for line in lines), default=0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
