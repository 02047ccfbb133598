"""Files measured in other ways than over minutes: what the commands find, and how it is told."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from benchmarks import latency, layers, loadgen, operators, stats
from benchmarks.printing import add, announce, table
from benchmarks.profiles import Profile
from benchmarks.steadiness import Conditions
from benchmarks.targets import Found, Target
from benchmarks.turns import Comparison
from benchmarks.worker import IGNORED

BAR = 30
"""Characters of a bar for all of the time."""
OTHER = "(no layer's)"
SPENT_FACTS = (
    "by ONNX Runtime's profiler, which adds some 3 µs to each operator and counts whole "
    "microseconds: shares to compare, no latencies",
    "operators are those that run after ONNX Runtime's fusions, under the layer whose weight they "
    "have",
)
AGREE = 0.05
"""How far LoadGen's p90 may be from ours on a quiet host."""
EMPTY = "onnx_runtime"
"""The runtime that an empty file is timed in."""


class Row(BaseModel):
    """One file."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    title: str
    runtime: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    half_width: float
    n: int
    load_ms: float
    first_ms: float
    peak_rss_bytes: int
    noisy: str | None
    conditions: Conditions
    in_force: dict[str, str]
    loadgen_p90_ms: float | None = None
    samples_ns: list[int] = Field(default=[], exclude=True)
    """All of them; too many for a text."""


class Latencies(BaseModel):
    """What `latency` found."""

    model_config = ConfigDict(frozen=True)

    profile_name: str
    profile: Profile
    overhead_ms: float | None
    """None where an empty file tells nothing of these."""
    rows: tuple[Row, ...]
    skipped: tuple[str, ...]
    provenance: dict[str, str] = {}

    @property
    def samples_ns(self) -> dict[str, list[int]]:
        """All samples by title."""
        return {row.title: row.samples_ns for row in self.rows}


class Pair(BaseModel):
    """What `compare` found."""

    model_config = ConfigDict(frozen=True)

    profile_name: str
    profile: Profile
    comparison: Comparison
    provenance: dict[str, str] = {}


class Profiled(BaseModel):
    """What `operators` found."""

    model_config = ConfigDict(frozen=True)

    title: str
    profile_name: str
    spent: operators.Spent
    layers: dict[str, str]
    provenance: dict[str, str] = {}


def measure(found: Found, name: str, profile: Profile, *, with_loadgen: bool) -> Latencies:
    """Time every target, one after the other, and with LoadGen after that if it is wanted."""
    rows = []
    for number, target in enumerate(found.targets, 1):
        announce(f"{target.title} ({number} of {len(found.targets)})")
        rows.append(_row(target, profile, with_loadgen=with_loadgen))
    # An empty file tells what an inference takes beside the work; not what a cold start does.
    alike = profile.processes == 1 and any(each.runtime == EMPTY for each in found.targets)
    return Latencies(
        profile_name=name,
        profile=profile,
        overhead_ms=latency.overhead_ms(profile) if alike else None,
        rows=tuple(rows),
        skipped=found.skipped,
    )


def _row(target: Target, profile: Profile, *, with_loadgen: bool) -> Row:
    timing = latency.measure(target.runtime, target.path.resolve(), target.images, profile)
    p50, p90, p99 = stats.percentiles(np.array(timing.samples_ns))
    return Row(
        title=target.title,
        runtime=timing.runtime,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        half_width=timing.half_width,
        n=len(timing.samples_ns),
        load_ms=timing.load_ms,
        first_ms=timing.first_ms,
        peak_rss_bytes=timing.peak_rss_bytes,
        noisy=timing.noisy(profile),
        conditions=timing.conditions,
        in_force=timing.in_force,
        loadgen_p90_ms=loadgen.p90_ms(target, profile) if with_loadgen else None,
        samples_ns=timing.samples_ns,
    )


def latency_facts(found: Latencies) -> list[str]:
    """What has to be said beside the table."""
    asked = ", ".join(f"{key} {value}" for key, value in found.profile.model_dump().items())
    return [
        f"profile {found.profile_name}: {asked}",
        _what_p50_is(found.profile),
        *_overhead(found),
        *(f"too noisy: {row.title}: {row.noisy}" for row in found.rows if row.noisy),
        *_disturbed(found),
        *_ignored(found),
        *(f"not timed: {reason}" for reason in found.skipped),
        *_second_clock(found),
    ]


def _what_p50_is(profile: Profile) -> str:
    if profile.processes > 1:
        return (
            f"{profile.processes} fresh processes a file, each from the file to its first answer; "
            "p50 with its 95 % interval over these processes by order statistics; none left out"
        )
    return (
        "one fresh process a file; p50 with the 95 % interval of this process by batch means, and "
        "the next may settle elsewhere (`compare` asks many); no sample left out"
    )


def _overhead(found: Latencies) -> list[str]:
    if found.overhead_ms is None:
        return []
    return [
        f"an empty ONNX file takes {found.overhead_ms:.4f} ms: so much of each latency in ONNX "
        "Runtime is the measuring"
    ]


def _disturbed(found: Latencies) -> list[str]:
    """What stood in the way though p50 is known well enough: it is in the tail, in p90 and p99."""
    return [
        f"disturbed: {row.title}: {'; '.join(row.conditions.doubts)}"
        for row in found.rows
        if row.conditions.doubts and not row.noisy
    ]


def _ignored(found: Latencies) -> list[str]:
    """Keys of the profile that say nothing to a runtime."""
    keys = {row.runtime: row.in_force.get(IGNORED) for row in found.rows}
    return [
        f"{name} has no {ignored}: the profile's do not count"
        for name, ignored in keys.items()
        if ignored
    ]


def _second_clock(found: Latencies) -> list[str]:
    apart = [
        f"{row.title} {row.loadgen_p90_ms / row.p90_ms - 1:+.1%}"
        for row in found.rows
        if row.loadgen_p90_ms and abs(row.loadgen_p90_ms / row.p90_ms - 1) > AGREE
    ]
    if not any(row.loadgen_p90_ms for row in found.rows):
        return []
    return [
        "LoadGen (SingleStream) is another fresh process; its p90 is within "
        f"{AGREE:.0%} of ours" + (f", but for {', '.join(apart)}" if apart else " for all files")
    ]


def latency_tables(found: Latencies) -> list[Table]:
    """One line a file."""
    columns = ["file", "p50 ms", "±", "p90 ms", "p99 ms", "samples", "load ms", "first ms"]
    columns.append("peak MB")
    clocked = any(row.loadgen_p90_ms for row in found.rows)
    told = table("Latency", *columns, *(["LoadGen p90 ms"] if clocked else []))
    for row in found.rows:
        cells = [f"{row.p50_ms:.4g}", f"{row.half_width:.1%}", f"{row.p90_ms:.4g}"]
        cells += [f"{row.p99_ms:.4g}", f"{row.n:,}", f"{row.load_ms:.3g}", f"{row.first_ms:.3g}"]
        cells.append(f"{row.peak_rss_bytes / 1e6:.0f}")
        add(told, row.title, *cells, *([f"{row.loadgen_p90_ms:.4g}"] if clocked else []))
    return [told]


def pair_tables(found: Pair) -> list[Table]:
    """The medians round by round, and the ratio."""
    pair = found.comparison
    told = table("In turn", "round", pair.a, pair.b, "ratio")
    for number, (a, b) in enumerate(zip(pair.a_ms, pair.b_ms, strict=True), 1):
        add(told, str(number), f"{a:.4g}", f"{b:.4g}", f"{b / a:.3f}")
    low, high = pair.ratio_ci95
    add(told, "95 % interval", "", "", f"{pair.ratio:.3f} ({low:.3f} to {high:.3f})")
    return [told]


def pair_facts(found: Pair) -> list[str]:
    """The result in a sentence."""
    told = found.comparison
    low, high = told.ratio_ci95
    sure = "may be chance" if low <= 1 <= high else "is no chance"
    return [
        f"profile {found.profile_name}; median of each fresh process in ms; A B A B ...",
        f"{told.b} takes {told.ratio:.3f} times as long as {told.a} (95 % interval {low:.3f} to "
        f"{high:.3f}, bootstrap over {len(told.a_ms)} rounds): the difference {sure}",
    ]


def spent_tables(spent: operators.Spent, names: dict[str, str]) -> list[Table]:
    """Time by operator type with bars, and the ten slowest operators by layer."""
    whole = sum(spent.types.values())
    types = table("By operator type", "type", "ms", "share", "")
    types.columns[-1].justify = "left"
    for kind, ms in spent.types.items():
        bars = "█" * round(BAR * ms / whole)
        add(types, kind, f"{ms:.3f}", f"{ms / whole:.1%}", bars)
    slowest = table("The ten slowest operators", "layer", "ms", "share", "type")
    for name, ms in list(spent.nodes.items())[:10]:
        kind, _, event = name.partition(" ")
        add(slowest, layers.layer_of(event, names), f"{ms:.3f}", f"{ms / whole:.1%}", kind)
    return [types, slowest, _by_layer(spent, names)]


def _by_layer(spent: operators.Spent, names: dict[str, str]) -> Table:
    """Every layer of the student; operators that belong to none stand together."""
    told = table("By layer", "layer", "ms", "operators")
    found: dict[str, list[float]] = {}
    known = set(names.values())
    for name, ms in spent.nodes.items():
        layer = layers.layer_of(name.partition(" ")[2], names)
        found.setdefault(layer if layer in known else OTHER, []).append(ms)
    order = [*dict.fromkeys(names.values()), OTHER]
    for layer in (each for each in order if each in found):
        add(told, layer, f"{sum(found[layer]):.3f}", str(len(found[layer])))
    return told
