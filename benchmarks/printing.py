"""Tables of experiments: for a screen and, by `benchmarks.publishing`, for a page."""

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.progress import console


def table(title: str, *columns: str) -> Table:
    """An empty table; all columns but the first are numbers."""
    # Text, for in a plain string rich takes the [b] of a file's name for markup.
    found = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", pad_edge=False)
    found.add_column(Text(columns[0]), overflow="fold")
    for column in columns[1:]:
        found.add_column(Text(column), justify="right")
    return found


def add(to: Table, *cells: str) -> None:
    """One more row, each cell as it is."""
    to.add_row(*map(Text, cells))


def announce(what: str) -> None:
    """Say on a terminal what begins now: while something is timed no bar is drawn."""
    if console.is_terminal:
        console.print(what, markup=False, highlight=False)
