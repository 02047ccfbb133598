"""What a person sees while a stage works: a bar for whatever takes over two seconds."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
PIPE_WIDTH = 110
"""Columns where the output is no terminal: rich's own 80 would fold lines."""


def make_console(*, stderr: bool) -> Console:
    """A console as wide as the terminal, or `PIPE_WIDTH` where there is none."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


console = make_console(stderr=True)
"""Everything that is not a command's result goes here."""

PATIENCE = 2.0
"""Seconds before a bar appears."""


class Bar:
    """A counter that shows itself after `PATIENCE` seconds."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, visible=False, note="")
        self._since = time.monotonic()

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps`; `note` is shown behind the description."""
        visible = time.monotonic() - self._since > PATIENCE
        self._progress.update(self._task, advance=steps, visible=visible)
        if note is not None:
            self._progress.update(self._task, note=note)


@contextmanager
def bar(what: str, total: int) -> Iterator[Bar]:
    """A bar for `total` steps of `what`; it vanishes at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    shown = Progress(
        *columns,
        console=console,
        transient=True,
        refresh_per_second=4,
        disable=not console.is_terminal,
    )
    with shown as progress:
        yield Bar(progress, what, total)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Iterate with a bar."""
    with bar(what, total) as shown:
        for item in items:
            yield item
            shown.advance()
