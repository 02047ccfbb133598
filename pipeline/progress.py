"""What a person sees while a stage works: bars, one below the other where work is nested."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
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

# One display for all bars: two displays at once would overwrite each other.
_display = Progress(
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
    console=console,
    transient=True,
    refresh_per_second=4,
    disable=not console.is_terminal,
)


def say(part: str, took: str, told: str) -> None:
    """One line of result: of which part of the work, how long it took, and what it gave."""
    text = f"[bold]{part:9}[/][dim]{took:>13}[/]  {escape(told)}"
    console.print(text, highlight=False, soft_wrap=True)


def silence() -> None:
    """Print nothing more: in a job of several processes one speaks for all."""
    console.quiet = True
    _display.disable = True


class Bar:
    """A counter on the screen."""

    def __init__(self, task: TaskID) -> None:
        self._task = task

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps`; `note` is shown behind the numbers."""
        notes: dict[str, Any] = {} if note is None else {"note": note}
        _display.update(self._task, advance=steps, **notes)


@contextmanager
def bar(what: str, total: int) -> Iterator[Bar]:
    """A bar for `total` steps of `what`; it vanishes at the end."""
    if not _display.tasks:
        _display.start()
    task = _display.add_task(what, total=total, note="")
    try:
        yield Bar(task)
    finally:
        _display.remove_task(task)
        if not _display.tasks:
            _display.stop()


@contextmanager
def still() -> Iterator[None]:
    """No redrawing inside: a measurement wants the machine for itself."""
    running = _display.live.is_started
    if running:
        _display.stop()
    try:
        yield
    finally:
        if running:
            _display.start()


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Iterate with a bar."""
    with bar(what, total) as shown:
        for item in items:
            yield item
            shown.advance()
