"""What `sustained` finds, files over minutes, and how it is told."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.printing import add, table
from benchmarks.profiles import Profile
from benchmarks.turns import Curve, ranking

BARS = "▁▂▃▄▅▆▇█"
WIDEST = 40
"""Characters of a curve."""
LEAST_SPAN = 0.1
"""Of a latency that the bars are spread over: less is noise, and shall not look like mountains."""


class Curves(BaseModel):
    """What `sustained` found."""

    model_config = ConfigDict(frozen=True)

    profile_name: str
    profile: Profile
    minutes: float
    curves: tuple[Curve, ...]
    skipped: tuple[str, ...]
    provenance: dict[str, str] = {}

    @property
    def samples_ns(self) -> dict[str, list[int]]:
        """All samples by title."""
        return {curve.title: curve.samples_ns for curve in self.curves}


def curve_facts(found: Curves) -> list[str]:
    """The ranking at the start and at the end, and how to read the curves."""
    start, end = (ranking(found.curves, at) for at in (0, -1))
    same = "the ranking stays" if start == end else f"at the end {', '.join(end)}"
    cool = f" (rested for {found.curves[0].title} only: the others found the machine warm)"
    return [
        f"profile {found.profile_name}; each file {found.minutes:g} min without a pause, one after "
        "the other",
        f"at the start{cool if len(found.curves) > 1 else ''}, fastest first: {', '.join(start)}; "
        f"{same}",
        f"curve: from a file's fastest window ({BARS[0]}) to one that takes {_span(found):.0%} "
        f"longer ({BARS[-1]})",
        *(f"not timed: {reason}" for reason in found.skipped),
    ]


def curve_tables(found: Curves) -> list[Table]:
    """The first and the last window, the extremes between, and the curve itself."""
    columns = ["file", "first ms", "last ms", "change", "least ms", "most ms", "curve"]
    told, span = table("Sustained", *columns), _span(found)
    told.columns[-1].justify = "left"
    for curve in found.curves:
        first, last = curve.p50_ms[0], curve.p50_ms[-1]
        cells = [f"{first:.4g}", f"{last:.4g}", f"{last / first - 1:+.1%}"]
        cells += [f"{min(curve.p50_ms):.4g}", f"{max(curve.p50_ms):.4g}"]
        add(told, curve.title, *cells, sparkline(curve.p50_ms, span))
    return [told]


def sparkline(values: Sequence[float], span: float) -> str:
    """`values` as bars, from the least of them to `span`, a share of it, above.

    Where there are more than `WIDEST`, a bar is the median of several.
    """
    parts = np.array_split(np.asarray(values), min(WIDEST, len(values)))
    above = np.array([np.median(part) for part in parts]) / min(values) - 1
    heights = np.rint(above / span * (len(BARS) - 1)).astype(int)
    return "".join(BARS[height] for height in np.clip(heights, 0, len(BARS) - 1))


def _span(found: Curves) -> float:
    """How much more than its least the slowest window of any file takes, as a share."""
    return max(LEAST_SPAN, *(max(each.p50_ms) / min(each.p50_ms) - 1 for each in found.curves))
