"""What a report means, in words and rounded numbers: the sentences that every page prints.

Terminal, HTML and Markdown all take them from here, so that nobody reads two verdicts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from benchmarks.operators import CONVERSIONS, families
from benchmarks.stats import Interval, paired_difference, unpaired_interval
from pipeline.summary import ArtifactRow, LatencyRow, ModelRow, OverSeeds, Report

FEW_IMAGES = 1000
AGREEMENT = 0.99
OVERHEAD = 2
"""A profile that sums up to more than so many latencies shows mostly what profiling costs each
operator (some 3 µs): they are that quick, and it cannot tell which is to blame."""
NONE = "–"
"""Shown where there is no number."""
AnyRow = ModelRow | ArtifactRow


# ---- numbers as people read them ----


def number(value: float | None) -> str:
    """Three significant digits, or all digits before the point."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def percent(fraction: float | None) -> str:
    """A share in per cent, without the sign: it is in the column's head."""
    return NONE if fraction is None else f"{100 * fraction:.2f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def interval(ci95: Interval | None) -> str:
    """An interval of a share, in per cent."""
    return NONE if ci95 is None else f"{percent(ci95[0])}–{percent(ci95[1])}"


def points_interval(ci95: Interval) -> str:
    """An interval of a difference, in points."""
    return f"{points(ci95[0])} to {points(ci95[1])}"


def megabytes(size: int | None) -> str:
    """Bytes in units of 10^6."""
    return NONE if size is None else number(size / 1e6)


def probability(p: float) -> str:
    """A p value, with its relation."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def network(row: ModelRow) -> str:
    """What was trained: without it a top-1 says little."""
    facts = (
        row.arch + (f" ×{row.width:g}" if row.width != 1 else ""),
        f"stem stride {row.stem_stride}" if row.stem_stride else "",
        f"{number(row.params / 1e6)} M parameters",
        f"{number(row.macs / 1e6)} M MACs",
        f"started from {row.start}" if row.start != "random" else "",
    )
    return ", ".join(filter(None, facts))


def setting(report: Report) -> str:
    """What a gain belongs to: the student, and how good its teacher is."""
    student, teacher = report.model("student"), report.model("teacher")
    guide = f"; teacher {percent(teacher.top1)} %" if teacher and teacher.top1 is not None else ""
    return f"Student: {network(student)}{guide}." if student else ""


# ---- comparing two rows ----


@dataclass(frozen=True)
class Difference:
    """Top-1 of B minus top-1 of A."""

    value: float
    ci95: Interval
    paired: bool


def difference(a: AnyRow, b: AnyRow, *, same_images: bool) -> Difference | None:
    """Paired where both rows kept their answers to the same images; None without accuracies."""
    if a.top1 is None or b.top1 is None or not a.n or not b.n:
        return None
    right_a, right_b = a.correctness(), b.correctness()
    if same_images and right_a is not None and right_b is not None and a.n == b.n:
        found = paired_difference(right_a, right_b)
        return Difference(found.difference, found.ci95, paired=True)
    return Difference(b.top1 - a.top1, unpaired_interval(a.top1, a.n, b.top1, b.n), paired=False)


def incomparable(a: LatencyRow, b: LatencyRow) -> str:
    """Why two latencies must not be compared; empty where they may."""
    if a.host != b.host:
        return f"measured on different hosts: {a.host} / {b.host}"
    if (a.profile, a.threads) != (b.profile, b.threads):
        return f"measured under different profiles: {condition(a)} / {condition(b)}"
    return ""


def condition(latency: LatencyRow) -> str:
    """Profile and threads."""
    return f"{latency.profile}, {latency.threads} thread{'s' if latency.threads != 1 else ''}"


# ---- the verdict ----


class Finding(NamedTuple):
    """One thing that the run found out."""

    claim: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.claim} {self.evidence}".strip()


def headline(report: Report) -> list[Finding]:
    """What the run found out: what distillation gained, and what int8 costs and saves."""
    pairs = lead_pairs(report)[:1]
    found = [_gain(report), *(_int8(*pair) for pair in pairs)]
    return [finding for finding in found if finding.claim]


def lead_pairs(report: Report) -> list[tuple[ArtifactRow, ArtifactRow]]:
    """Float and int8 files, the pair to speak of first: measured, and ONNX."""
    return sorted(
        report.int8_pairs(), key=lambda pair: (pair[1].top1 is None, pair[0].format != "onnx")
    )


def _gain(report: Report) -> Finding:
    student, baseline, gain = report.model("student"), report.model("baseline"), report.gain
    if student is None or student.top1 is None:
        return Finding("The student was not measured.", "")
    if gain is None or baseline is None:
        claim = f"The student reaches a top-1 of {percent(student.top1)} %."
        told = ("There is no baseline to compare it with.", _over_seeds(report), setting(report))
        return Finding(claim, " ".join(filter(None, told)))
    size = f"{abs(100 * gain.difference):.2f} points of top-1"
    done = {1: f"gained {size}", -1: f"lost {size}", 0: "made no certain difference"}
    evidence = (
        f"{percent(student.top1)} % against {percent(baseline.top1)} % for the same network "
        f"trained alone; 95 % interval of the difference {points_interval(gain.ci95)} points, "
        f"{probability(gain.mcnemar_p)}, {gain.n:,} test images"
        + ("." if report.seeds else ", one seed."),
        _over_seeds(report),
        setting(report),
    )
    claim = f"Distillation {done[_side(gain.ci95)]}{_of_first_seed(report)}."
    return Finding(claim, " ".join(filter(None, evidence)))


def _side(ci95: Interval) -> int:
    """The sign that an interval is sure of; 0 where it includes zero."""
    return int(ci95[0] > 0) - int(ci95[1] < 0)


def _of_first_seed(report: Report) -> str:
    return f" with seed {report.seeds[0].seed}" if report.seeds else ""


def _over_seeds(report: Report) -> str:
    """The gain over all seeds, or the student's top-1 where there is no baseline."""
    gain, student = report.gain_over_seeds, report.student_over_seeds
    if gain:
        each = ", ".join(points(row.gain.difference) for row in report.seeds if row.gain)
        return (
            f"Over {gain.n} seeds: mean gain {points(gain.mean)} points, 95 % interval "
            f"{points_interval(gain.ci95)} (each seed's own {each})."
        )
    if student:
        each = ", ".join(percent(row.student_top1) for row in report.seeds)
        return (
            f"Over {student.n} seeds: mean top-1 {percent(student.mean)} %, 95 % interval "
            f"{interval(student.ci95)} (each seed's own {each})."
        )
    return ""


def seed_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Seed, top-1 of baseline and student, gain and its interval; the last row is the mean."""
    if not report.seeds:
        return []
    rows = [
        (
            str(row.seed),
            percent(row.baseline_top1),
            percent(row.student_top1),
            points(row.gain.difference) if row.gain else NONE,
            points_interval(row.gain.ci95) if row.gain else NONE,
        )
        for row in report.seeds
    ]
    gain = report.gain_over_seeds
    mean = (
        "mean",
        _spread(report.baseline_over_seeds),
        _spread(report.student_over_seeds),
        points(gain.mean) if gain else NONE,
        points_interval(gain.ci95) if gain else NONE,
    )
    return [*rows, mean]


def _spread(found: OverSeeds | None) -> str:
    return f"{percent(found.mean)} ({interval(found.ci95)})" if found else NONE


def seeds_note(report: Report) -> str:
    """What the table of seeds compares, and which of them is shipped."""
    if not report.seeds:
        return ""
    return (
        "Baseline and student trained anew with each seed; teacher, split and test images stay. "
        f"Those shown elsewhere, and every file, are of seed {report.seeds[0].seed}: the first "
        "named, not the best. "
        "A seed's interval is paired over the test images; those of the mean are Student's t over "
        "the seeds."
    )


def _int8(plain: ArtifactRow, int8: ArtifactRow) -> Finding:
    claims, evidence = [], []
    a, b = plain.latency, int8.latency
    if a and b and not incomparable(a, b):
        ratio = a.p50_ms / b.p50_ms
        fast = ("is", f"{ratio:.1f}× as fast")
        claims.append(fast if ratio >= 1 else ("takes", f"{1 / ratio:.1f}× as long"))
        evidence.append(f"median {number(b.p50_ms)} against {number(a.p50_ms)} ms")
    if plain.bytes and int8.bytes:
        claims.append(("is", f"{plain.bytes / int8.bytes:.1f}× smaller"))
        evidence.append(f"{megabytes(int8.bytes)} against {megabytes(plain.bytes)} MB")
    change = difference(plain, int8, same_images=True)
    if change:
        certain = not change.ci95[0] <= 0 <= change.ci95[1]
        way = "more" if change.value > 0 else "less"
        amount = f"{abs(100 * change.value):.2f} points {way} accurate"
        claims.append(("is", amount if certain else "not measurably less accurate"))
        evidence.append(
            f"top-1 {percent(int8.top1)} against {percent(plain.top1)} %, "
            f"95 % interval of the difference {points_interval(change.ci95)} points"
        )
    if not claims:
        return Finding("", "")
    details = "; ".join(evidence)
    return Finding(
        f"Against {plain.precision}, {int8.title} {_listed(claims)}.",
        f"{details[0].upper()}{details[1:]}.",
    )


def _listed(claims: Sequence[tuple[str, str]]) -> str:
    """Pairs of verb and claim as "takes 1.5× as long, is 3.7× smaller and less accurate"."""
    verbs = ["", *(verb for verb, _ in claims)]
    told = [
        claim if verb == before else f"{verb} {claim}"
        for before, (verb, claim) in zip(verbs, claims, strict=False)
    ]
    return " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def effort(row: ModelRow) -> str:
    """How quickly a network was trained, and with how much memory; "" where that is not known."""
    speeds = [epoch.images_per_second for epoch in row.history if epoch.images_per_second]
    peaks = [epoch.memory_bytes for epoch in row.history if epoch.memory_bytes]
    if not speeds or not peaks:
        return ""
    return f"{number(median(speeds))} images/s, at most {number(max(peaks) / 1e6)} MB"


def warnings(report: Report) -> list[str]:
    """What a reader must know before believing or shipping, in plain words."""
    faults = [fault for row in report.artifacts for fault in _faults(row)]
    return [*_doubts(report), *faults, *_slow(report), *_unseen(report)]


def _doubts(report: Report) -> Iterator[str]:
    n = next((row.n for row in report.rows if row.n), None)
    if n is not None and n < FEW_IMAGES:
        yield f"Only {n:,} test images: every accuracy here is uncertain by several points."
    gain = report.gain
    if gain and gain.ci95[0] <= 0 <= gain.ci95[1]:
        yield (
            f"The difference between student and baseline{_of_first_seed(report)} "
            f"({points_interval(gain.ci95)} points) may be chance: its 95 % interval includes zero."
        )
    over = report.gain_over_seeds
    if gain and over and _side(gain.ci95) not in (0, _side(over.ci95)):
        where = "lies on the other side of zero" if _side(over.ci95) else "includes zero"
        yield (
            f"The difference{_of_first_seed(report)} may be that seed's luck: the 95 % interval of "
            f"the mean over {over.n} seeds ({points_interval(over.ci95)} points) {where}."
        )
    teacher, baseline = report.model("teacher"), report.model("baseline")
    if teacher and baseline and teacher.top1 and baseline.top1 and teacher.top1 <= baseline.top1:
        yield "The teacher is no better than the baseline: there was nothing to distil from it."
    if len({(row.latency.host, condition(row.latency)) for row in report.rows if row.latency}) > 1:
        yield "Latencies come from different hosts or profiles: compare only within one."


def _faults(row: ArtifactRow) -> Iterator[str]:
    if row.agreement is not None and row.agreement < AGREEMENT:
        blame = (
            "" if row.precision == "int8" else "; for a float file that points to a faulty export"
        )
        yield (
            f"{row.title} names the same class as the student on only {percent(row.agreement)} % "
            f"of the test images{blame}."
        )
    if row.parity and row.parity.max_abs_diff is None:
        yield f"{row.title} gave outputs that are not numbers."


def _slow(report: Report) -> Iterator[str]:
    for plain, int8 in report.int8_pairs():
        a, b = plain.latency, int8.latency
        if int8.variant == "symmetric":  # made for TensorRT: CPU kernels want zero points
            continue
        if a and b and not incomparable(a, b) and b.p50_ms >= a.p50_ms:
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


def _unseen(report: Report) -> Iterator[str]:
    titles = [row.title for row in report.artifacts if row.path and row.top1 is None]
    if titles:
        yield f"Exported but not run here, so unverified: {', '.join(titles)}."


def hosts(report: Report) -> list[str]:
    """Where and how the latencies were measured, one line a condition."""
    found = dict.fromkeys(
        f"Latency: one image at a time, profile {condition(row.latency)}, on {row.latency.host}."
        for row in report.rows
        if row.latency
    )
    return list(found)


def contract(report: Report) -> list[str]:
    """What an app must feed the files and what they answer, one line a kind of file."""
    spec = report.input
    colour = "grey" if spec.channels == 1 else "RGB"
    lines = [
        f"ONNX and TensorRT files take {spec.dtype} images [batch, {spec.size}, {spec.size}, "
        f"{spec.channels}] ({spec.layout}, {colour}), values 0 to 255, as a phone has them, and "
        "answer with one logit a class."
    ]
    if any(row.format == "coreml" and row.path for row in report.artifacts):
        lines.append(
            f"The Core ML file takes an image of {spec.size} × {spec.size} pixels ({colour}, 0 to "
            "255) and answers with the label and, unless export.coreml.output says otherwise, the "
            "probability of every class."
        )
    return [*lines, "Every file computes (x ∕ 255 − mean) ∕ std by itself."]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as "distill.temperature"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
