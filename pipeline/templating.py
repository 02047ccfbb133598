"""How pages are made of templates: what every page shares, whatever it tells of.

A page is one file that works from disk without a network: plotly.js is inlined, and colours follow
the reader's light or dark setting by CSS (templates/style.css.j2).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

from pipeline import wording

TEMPLATES = Path(__file__).resolve().parent / "templates"
NUMBERS = (
    *("number", "percent", "interval", "apart", "megabytes", "points", "points_interval"),
    *("probability", "network", "effort"),
)
"""What templates may say of numbers, from `wording`."""


def environment(**filters: Callable[..., object]) -> Environment:
    """The templates, with their filters and a page's own; what goes into HTML is escaped."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(
        {name: getattr(wording, name) for name in NUMBERS},
        tied=tied,
        **MARKDOWN,
        **filters,
    )
    return found


def drawn(figures: Mapping[str, go.Figure | None]) -> dict[str, object]:
    """What templates/plots.html.j2 needs of the figures, by the ids of their places on the page."""
    # "<" inside a script could end it; in JSON it may be written as an escape
    texts = {
        name: str(figure.to_json()).replace("<", "\\u003c")
        for name, figure in figures.items()
        if figure
    }
    return {"figures": texts, "plotlyjs": get_plotlyjs() if texts else ""}


def tied(text: str) -> str:
    """`text` with units and relations held to their numbers, so that no line starts with "%"."""
    return re.sub(r"(?<=[\d<=]) (?=%|ms\b|MB\b|M\b|points\b|\d)|(?<=\bp) (?=[<=])", "\u00a0", text)


def escape_markdown(text: str) -> str:
    """`text` as one line of literal Markdown: names come from users' folders.

    Nor does GitHub make a mention, a reference or a formula of it. It looks for the first two in
    what the Markdown has become, so that a backslash is no help: a space of no width parts them.
    """
    flat = " ".join(str(text).split()).replace("&", "&amp;")
    escaped = re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", flat).replace("$", "<span>$</span>")
    return re.sub(r"@(?=\w)|#(?=\d)", r"\g<0>&#8203;", escaped)


def as_code(text: str) -> str:
    """`text` as code of Markdown, on one line, whatever is in it."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if "`" in flat else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


MARKDOWN: Mapping[str, Callable[[str], str]] = {"md": escape_markdown, "code": as_code}
"""Filters for what goes into Markdown."""
