"""What lies in a store: its results, and what each was made of, as their records say."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.store import size_of

KEY = re.compile(r"[0-9a-f]{16}")


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
    """Names of what it was made of; None where the record does not say."""
    older: bool = False
    """Whether that is because an earlier version wrote it, and not for damage."""


def results(root: Path) -> Iterator[Result]:
    """All results in the store `root`, damaged ones too."""
    for home in sorted(root.glob("[!.]*/*")):
        if not home.is_dir() or not KEY.fullmatch(home.name):
            continue
        record, stage = home / "record.json", home.parent.name
        uses, older = _made_of(record)
        made = (record if record.exists() else home).stat().st_mtime
        yield Result(stage, f"{stage}/{home.name}", home, bytes_of(home), made, uses, older)


def _made_of(record: Path) -> tuple[tuple[str, ...] | None, bool]:
    """What a result was made of, if its record says so, and whether it is of an earlier version."""
    try:
        body = json.loads(record.read_text(encoding="utf-8"))
        return (tuple(body["uses"]), False) if "uses" in body else (None, "record" in body)
    except (OSError, ValueError, TypeError):
        return None, False  # damaged: whoever asks for it makes it anew


def uses_of(root: Path, name: str) -> tuple[str, ...]:
    """What the result `name` in the store `root` was made of, as far as that is known."""
    return _made_of(root / name / "record.json")[0] or ()


def with_parents(asked: Iterable[str], uses: Callable[[str], Iterable[str]]) -> set[str]:
    """`asked`, and whatever they were made of: `uses` tells it of one."""
    found, left = set[str](), list(asked)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += uses(name)
    return found


def bytes_of(path: Path) -> int:
    """What `path` holds; somebody may be working in it."""
    try:
        return size_of(path)
    except FileNotFoundError:
        return 0
