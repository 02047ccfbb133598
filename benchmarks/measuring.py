"""Latencies of several files: what `latency`, `compare`, `sustained` find, and how it is told."""

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.table import Table

from benchmarks import latency, layers, loadgen, operators, stats
from benchmarks.graph_cost import GraphCost
from benchmarks.profiles import Profile
from benchmarks.steadiness import Conditions
from benchmarks.targets import Found, Target
from benchmarks.turns import Comparison, Curve, ranking
from pipeline.progress import track

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


class Latencies(BaseModel):
    """What `latency` found."""

    model_config = ConfigDict(frozen=True)

    profile_name: str
    profile: Profile
    overhead_ms: float
    rows: tuple[Row, ...]
    skipped: tuple[str, ...]
    provenance: dict[str, str] = {}


class Pair(BaseModel):
    """What `compare` found."""

    model_config = ConfigDict(frozen=True)

    profile_name: str
    profile: Profile
    comparison: Comparison
    provenance: dict[str, str] = {}


class Costs(BaseModel):
    """What `cost` found."""

    model_config = ConfigDict(frozen=True)

    costs: dict[str, GraphCost]
    provenance: dict[str, str] = {}


class Curves(BaseModel):
    """What `sustained` found."""

    model_config = ConfigDict(frozen=True)

    profile_name: str
    profile: Profile
    minutes: float
    curves: tuple[Curve, ...]
    skipped: tuple[str, ...]
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
    rows = [
        _row(target, profile, with_loadgen=with_loadgen)
        for target in track(found.targets, "latency", len(found.targets))
    ]
    return Latencies(
        profile_name=name,
        profile=profile,
        overhead_ms=latency.overhead_ms(profile),
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
    )


def latency_facts(found: Latencies) -> list[str]:
    """What has to be said beside the table."""
    asked = ", ".join(f"{key} {value}" for key, value in found.profile.model_dump().items())
    facts = [
        f"profile {found.profile_name}: {asked}",
        "one fresh process a file; p50 with its 95 % interval by batch means; no sample left out",
        f"an empty ONNX file takes {found.overhead_ms:.4f} ms: so much of each latency is the "
        "measuring",
        *(f"too noisy: {row.title}: {row.noisy}" for row in found.rows if row.noisy),
        *(f"not timed: {reason}" for reason in found.skipped),
    ]
    apart = [
        f"{row.title} {row.loadgen_p90_ms / row.p90_ms - 1:+.1%}"
        for row in found.rows
        if row.loadgen_p90_ms and abs(row.loadgen_p90_ms / row.p90_ms - 1) > AGREE
    ]
    if any(row.loadgen_p90_ms for row in found.rows):
        facts.append(
            "LoadGen (SingleStream) is another fresh process; its p90 is within "
            f"{AGREE:.0%} of ours"
            + (f", but for {', '.join(apart)}" if apart else " for all files")
        )
    return facts


def latency_tables(found: Latencies) -> list[Table]:
    """One line a file."""
    columns = ["file", "p50 ms", "±", "p90 ms", "p99 ms", "samples", "load ms", "first ms"]
    columns.append("peak MB")
    clocked = any(row.loadgen_p90_ms for row in found.rows)
    table = _table("Latency", *columns, *(["LoadGen p90 ms"] if clocked else []))
    for row in found.rows:
        cells = [f"{row.p50_ms:.4g}", f"{row.half_width:.1%}", f"{row.p90_ms:.4g}"]
        cells += [f"{row.p99_ms:.4g}", f"{row.n:,}", f"{row.load_ms:.3g}", f"{row.first_ms:.3g}"]
        cells.append(f"{row.peak_rss_bytes / 1e6:.0f}")
        table.add_row(row.title, *cells, *([f"{row.loadgen_p90_ms:.4g}"] if clocked else []))
    return [table]


def pair_tables(found: Pair) -> list[Table]:
    """The medians round by round, and the ratio."""
    told = found.comparison
    table = _table("In turn", "round", told.a, told.b, "ratio")
    for number, (a, b) in enumerate(zip(told.a_ms, told.b_ms, strict=True), 1):
        table.add_row(str(number), f"{a:.4g}", f"{b:.4g}", f"{b / a:.3f}")
    low, high = told.ratio_ci95
    table.add_row("95 % interval", "", "", f"{told.ratio:.3f} ({low:.3f} to {high:.3f})")
    return [table]


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
    types = _table("By operator type", "type", "ms", "share", "")
    types.columns[-1].justify = "left"
    for kind, ms in spent.types.items():
        bars = "█" * round(BAR * ms / whole)
        types.add_row(kind, f"{ms:.3f}", f"{ms / whole:.1%}", bars)
    slowest = _table("The ten slowest operators", "layer", "ms", "share", "type")
    for name, ms in list(spent.nodes.items())[:10]:
        kind, _, event = name.partition(" ")
        slowest.add_row(layers.layer_of(event, names), f"{ms:.3f}", f"{ms / whole:.1%}", kind)
    return [types, slowest, _by_layer(spent, names)]


def _by_layer(spent: operators.Spent, names: dict[str, str]) -> Table:
    """Every layer of the student; operators that belong to none stand together."""
    table = _table("By layer", "layer", "ms", "operators")
    found: dict[str, list[float]] = {}
    known = set(names.values())
    for name, ms in spent.nodes.items():
        layer = layers.layer_of(name.partition(" ")[2], names)
        found.setdefault(layer if layer in known else OTHER, []).append(ms)
    order = [*dict.fromkeys(names.values()), OTHER]
    for layer in (each for each in order if each in found):
        table.add_row(layer, f"{sum(found[layer]):.3f}", str(len(found[layer])))
    return table


COST_FACTS = (
    "counted in the file, for one image: equal from run to run and on every machine",
    "activations: most memory at one time, in the order of the file, activation functions in place",
)


def cost_tables(costs: dict[str, GraphCost]) -> list[Table]:
    """One line a file."""
    table = _table(
        "Cost",
        *("file", "dense M MACs", "depthwise M MACs", "M parameters", "weights MB"),
        *("activations MB", "operators"),
    )
    for title, cost in costs.items():
        cells = [f"{cost.dense_macs / 1e6:.3f}", f"{cost.depthwise_macs / 1e6:.3f}"]
        cells += [f"{cost.parameters / 1e6:.3f}", f"{cost.parameter_bytes / 1e6:.3f}"]
        cells += [f"{cost.peak_activation_bytes / 1e6:.3f}", str(cost.nodes)]
        table.add_row(title, *cells)
    return [table]


def curve_facts(found: Curves) -> list[str]:
    """The ranking at the start and at the end."""
    start, end = (ranking(found.curves, at) for at in (0, -1))
    same = "the ranking stays" if start == end else f"at the end {', '.join(end)}"
    return [
        f"profile {found.profile_name}; each file {found.minutes:g} min without a pause, one after "
        "the other",
        f"at the start, fastest first: {', '.join(start)}; {same}",
        *(f"not timed: {reason}" for reason in found.skipped),
    ]


def curve_tables(found: Curves) -> list[Table]:
    """The first and the last window, and the extremes between."""
    table = _table("Sustained", "file", "first ms", "last ms", "change", "least ms", "most ms")
    for curve in found.curves:
        first, last = curve.p50_ms[0], curve.p50_ms[-1]
        cells = [f"{first:.4g}", f"{last:.4g}", f"{last / first - 1:+.1%}"]
        table.add_row(curve.title, *cells, f"{min(curve.p50_ms):.4g}", f"{max(curve.p50_ms):.4g}")
    return [table]


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table
