"""Two rows side by side: what sets them apart, and why an int8 file is slower than a float one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log

from benchmarks.operators import CONVERSIONS, families
from benchmarks.stats import Interval, PairedDifference, paired_difference, unpaired_interval
from pipeline.summary import ArtifactRow, LatencyRow, ModelRow, Report
from pipeline.tolerances import TOLERANCES
from pipeline.wording import condition, number, percent, within

OVERHEAD = 2
"""A profile that sums up to more than so many latencies shows mostly what profiling costs each
operator (some 3 µs): they are that quick, and it cannot tell which is to blame."""
AGREEMENT = 0.99
"""Share of test images on which a file should name the student's class; a float file that does not
is faulty."""
DRIFT = (0.87, 1.15)
"""Ratios of p50 within which two runs show no difference in speed: that of the very same file was
0.92 to 1.00 times what it was six hours before, that of the same network trained anew, five
minutes later, 0.99 to 1.11 times (benchmarks/LOG.md). No interval from within a run knows of that,
and few such pairs were seen: hence a little more."""
AnyRow = ModelRow | ArtifactRow


@dataclass(frozen=True)
class Difference:
    """Top-1 of B minus top-1 of A."""

    value: float
    ci95: Interval
    test: PairedDifference | None = None
    """Where both answered the same images, and those answers were kept."""

    @property
    def paired(self) -> bool:
        """Whether the interval is that of the same images."""
        return self.test is not None


def difference(a: AnyRow, b: AnyRow, *, same_images: bool) -> Difference | None:
    """Paired where both rows kept their answers to the same images; None without accuracies."""
    if a.top1 is None or b.top1 is None or not a.n or not b.n:
        return None
    right_a, right_b = a.correctness(), b.correctness()
    if same_images and right_a is not None and right_b is not None and a.n == b.n:
        found = paired_difference(right_a, right_b)
        return Difference(found.difference, found.ci95, found)
    return Difference(b.top1 - a.top1, unpaired_interval(a.top1, a.n, b.top1, b.n))


def incomparable(a: LatencyRow, b: LatencyRow) -> str:
    """Why two latencies must not be compared; empty where they may."""
    if a.host != b.host:
        return f"measured on different hosts: {a.host} / {b.host}"
    if (a.profile, a.threads) != (b.profile, b.threads):
        return f"measured under different profiles: {condition(a)} / {condition(b)}"
    if a.batch != b.batch:
        return f"measured with different batches: {a.batch} / {b.batch} images"
    if a.processes != b.processes:
        return f"measured in different numbers of processes: {a.processes} / {b.processes}"
    return ""


def latency_ratio(a: LatencyRow, b: LatencyRow) -> tuple[float, Interval | None]:
    """p50 of B over p50 of A with its 95 % interval; None where one has no interval of its own.

    The two were measured apart, so the half-widths of their logarithms add as squares do (the delta
    method). What sets two processes of the same file apart, some 1 %, is in neither.
    """
    ratio = b.p50_ms / a.p50_ms
    if a.p50_ci95 is None or b.p50_ci95 is None or min(a.p50_ci95[0], b.p50_ci95[0]) <= 0:
        return ratio, None
    half = hypot(*(log(high / low) / 2 for low, high in (a.p50_ci95, b.p50_ci95)))
    return ratio, (ratio * exp(-half), ratio * exp(half))


def faster(a: LatencyRow, b: LatencyRow, drift: Interval = (1.0, 1.0)) -> int:
    """1 where B is certainly faster than A, -1 where it is slower, 0 where that is uncertain.

    The 95 % intervals of the two p50 decide: noise makes them wide. Reports of before there were
    intervals have the p50 alone. Ratios of B to A within `drift` are uncertain: `DRIFT` for two
    runs.
    """
    if any(row.noisy and row.p50_ci95 is None for row in (a, b)):
        return 0
    (a_low, a_high), (b_low, b_high) = (row.p50_ci95 or (row.p50_ms,) * 2 for row in (a, b))
    return int(b_high < drift[0] * a_low) - int(drift[1] * a_high < b_low)


def speed(sure: int, ratio: float, ci95: Interval | None) -> tuple[str, str]:
    """What is certain of B's speed against A's, as verb and claim: of `faster`, `latency_ratio`."""
    if sure == 0:
        return "shows", "no certain difference in speed"
    factor = max(ratio, 1 / ratio)
    times = f"{factor:.{1 if factor >= 1.05 else 2}f}×"
    blind = "" if ci95 else " (no interval)"
    return ("is", f"{times} as fast{blind}") if sure > 0 else ("takes", f"{times} as long{blind}")


def medians(a: LatencyRow, b: LatencyRow) -> str:
    """The p50 of B and A with their intervals, as "1.30 (1.28–1.32) against 3.00 (2.96–3.04)"."""
    return f"{within(b.p50_ms, b.p50_ci95)} against {within(a.p50_ms, a.p50_ci95)}"


def share_of_tolerance(report: Report, row: ArtifactRow) -> float | None:
    """How far its answers are from the student's, in what the run allowed; None where unknown.

    More than 1 is no file that a run lets pass.
    """
    apart = row.parity.relative if row.parity else None
    if apart is None:
        return None
    own = report.settings.get("export", {}).get(row.format)
    allowed = own.get("max_difference") if isinstance(own, Mapping) else None
    return apart / (allowed or TOLERANCES[row.precision].difference)


def parity_fault(report: Report, row: ArtifactRow) -> str:
    """Why its answers are not the student's; empty where nothing speaks against it."""
    if row.parity is None:
        return ""
    if row.parity.max_abs_diff is None:
        return "gave outputs that are not numbers"
    if (share_of_tolerance(report, row) or 0) > 1:
        return "is farther from the student than is allowed"
    if row.precision in ("fp32", "fp16") and row.parity.top1_agreement < AGREEMENT:
        return (
            f"names the student's class on {percent(row.parity.top1_agreement)} % of the test "
            "images only, which points to a faulty export"
        )
    return ""


def comparable(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """Those of `rows` whose latencies may be compared: taken under the most common condition."""
    timed = [(row, row.latency) for row in rows if row.latency]
    kept = list[AnyRow]()
    for _, first in timed:
        alike = [row for row, each in timed if not incomparable(first, each)]
        kept = max(kept, alike, key=len)
    return kept


def slow(report: Report) -> Iterator[str]:
    """A sentence for each int8 file that is certainly slower than the float file beside it, and
    why."""
    for plain, int8 in report.int8_pairs():
        a, b = plain.latency, int8.latency
        if int8.variant == "symmetric":  # made for TensorRT: CPU kernels want zero points
            continue
        if a and b and not incomparable(a, b) and faster(a, b) < 0:
            counts = report.quantization.operators if report.quantization else {}
            told = f"{number(b.p50_ms)} against {number(a.p50_ms)} ms"
            yield (
                f"{int8.title} is slower than {plain.precision} on this host (p50 {told})"
                f"{_blame(plain, int8, b.p50_ms - a.p50_ms, counts)}."
            )


def _blame(plain: ArtifactRow, int8: ArtifactRow, gap: float, counts: Mapping[str, int]) -> str:
    """What makes int8 slower by `gap` ms: some of its operators, or their number (`counts`)."""
    if plain.precision != "fp32" or not (plain.operators_ms and int8.operators_ms and int8.latency):
        return (
            ": operators that stay float are surrounded by conversions, this processor lacks int8 "
            "instructions, or the network is so small that fixed costs outweigh its arithmetic"
        )
    before, after = families(plain.operators_ms), families(int8.operators_ms)
    lost = {name: after.get(name, 0) - before.get(name, 0) for name in {**before, **after}}
    least = max(0.0005, sum(loss for loss in lost.values() if loss > 0) / 20)

    def listed(sign: int) -> str:
        largest = sorted(lost, key=lambda name: -sign * lost[name])[:3]
        return ", ".join(
            f"{name} ({_time(after.get(name, 0))} against {_time(before.get(name, 0))} ms)"
            for name in largest
            if sign * lost[name] > least
        )

    more, less, in_all = listed(1), listed(-1), sum(lost.values())
    many = f"{sum(counts.values())} operators" if counts else "operators"
    if converting := families(counts).get(CONVERSIONS):
        many += f" ({converting:.0f} of them {CONVERSIONS})"
    if sum(after.values()) > OVERHEAD * int8.latency.p50_ms:
        return f": in so small a network the fixed costs of its {many} outweigh their arithmetic"
    other = "other work on this machine"
    if not more or in_all <= 0:
        return f". Profiled, its {many} take no longer in all: fixed costs between them, or {other}"
    rest = f"; fixed costs of its {many}, or {other}, make up the rest" if in_all < gap / 2 else ""
    return f". Profiled, it spends more on {more}" + (f"; less on {less}" if less else "") + rest


def _time(ms: float) -> str:
    return number(ms) if ms else "0"
