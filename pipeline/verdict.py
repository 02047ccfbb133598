"""What a report means, in words and rounded numbers: the sentences that every page prints.

Terminal, HTML and Markdown all take them from here, so that nobody reads two verdicts.
"""

from collections.abc import Iterator

from benchmarks.stats import side
from pipeline import elsewhere, on_device, precision, timings
from pipeline.comparing import (
    AGREEMENT,
    difference,
    faster,
    incomparable,
    latency_ratio,
    medians,
    share_of_tolerance,
    slow,
    speed,
)
from pipeline.summary import ArtifactRow, OverSeeds, Report
from pipeline.tolerances import NEAR
from pipeline.wording import (
    NONE,
    Finding,
    enumerated,
    interval,
    megabytes,
    percent,
    points,
    points_interval,
    predicates,
    probability,
    setting,
)

FORMAT_NAMES = {
    "onnx": "ONNX Runtime",
    "ort": "ONNX Runtime Mobile",
    "coreml": "Core ML",
    "litert": "LiteRT",
    "executorch": "ExecuTorch",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT for RTX",
}
FEW_IMAGES = 1000


def headline(report: Report) -> list[Finding]:
    """What the run found out: what distillation gained, what int8 costs and saves, and where."""
    pairs = lead_pairs(report)[:1]
    found = [_gain(report), *(_int8(*pair) for pair in pairs), elsewhere.same_everywhere(report)]
    found.append(on_device.finding(report))
    return [finding for finding in found if finding.claim]


def lead_pairs(report: Report) -> list[tuple[ArtifactRow, ArtifactRow]]:
    """Float and int8 files, the pair to speak of first: measured, ONNX, and made for CPUs."""
    return sorted(
        report.int8_pairs(),
        key=lambda pair: (
            pair[1].top1 is None,
            pair[0].format != "onnx",
            pair[1].variant == "symmetric",
        ),
    )


def lead_int8(report: Report) -> ArtifactRow | None:
    """The int8 file to speak of first, among those whose answers were kept; one that has a float
    file of its format beside it goes before one that has none."""
    alone = [row for row in report.artifacts if row.precision == "int8"]
    alone.sort(key=lambda row: row.variant == "symmetric")
    rows = (*(int8 for _, int8 in lead_pairs(report)), *alone)
    return next((row for row in rows if row.class_top1), None)


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
    claim = f"Distillation {done[side(gain.ci95)]}{_of_first_seed(report)}."
    return Finding(claim, " ".join(filter(None, evidence)))


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
        claims.append(speed(faster(a, b), *latency_ratio(a, b)))
        evidence.append(f"median {medians(a, b)} ms")
    if plain.bytes and int8.bytes:
        claims.append(("is", f"{plain.bytes / int8.bytes:.1f}× smaller"))
        evidence.append(f"{megabytes(int8.bytes)} against {megabytes(plain.bytes)} MB")
    change = difference(plain, int8, same_images=True)
    if change:
        way = "more" if change.value > 0 else "less"
        amount = f"{abs(100 * change.value):.2f} points {way} accurate"
        claims.append(("is", amount if side(change.ci95) else "not measurably less accurate"))
        evidence.append(
            f"top-1 {percent(int8.top1)} against {percent(plain.top1)} %, "
            f"95 % interval of the difference {points_interval(change.ci95)} points"
        )
    if not claims:
        return Finding("", "")
    details = "; ".join(evidence)
    return Finding(
        f"Against {plain.precision}, {int8.title} {predicates(claims)}.",
        f"{details[0].upper()}{details[1:]}. {precision.fp16_note([plain])}".rstrip(),
    )


def warnings(report: Report) -> list[str]:
    """What a reader must know before believing or shipping, in plain words."""
    faults = [*_unlike(report), *_not_numbers(report), *_near(report)]
    int8 = (*precision.warnings(report), *elsewhere.warnings(report), *slow(report))
    return [
        *_doubts(report),
        *faults,
        *int8,
        *timings.warnings(report),
        *on_device.warnings(report),
        *_unseen(report),
    ]


def _doubts(report: Report) -> Iterator[str]:
    n = next((row.n for row in report.rows if row.n), None)
    if n is not None and n < FEW_IMAGES:
        yield f"Only {n:,} test images: every accuracy here is uncertain by several points."
    gain = report.gain
    if gain and not side(gain.ci95):
        yield (
            f"The difference between student and baseline{_of_first_seed(report)} "
            f"({points_interval(gain.ci95)} points) may be chance: its 95 % interval includes zero."
        )
    over = report.gain_over_seeds
    if gain and over and side(gain.ci95) not in (0, side(over.ci95)):
        where = "lies on the other side of zero" if side(over.ci95) else "includes zero"
        yield (
            f"The difference{_of_first_seed(report)} may be that seed's luck: the 95 % interval of "
            f"the mean over {over.n} seeds ({points_interval(over.ci95)} points) {where}."
        )
    teacher, baseline = report.model("teacher"), report.model("baseline")
    if teacher and baseline and teacher.top1 and baseline.top1 and teacher.top1 <= baseline.top1:
        yield "The teacher is no better than the baseline: there was nothing to distil from it."
    taken = [row.latency for row in report.rows if row.latency]
    if any(incomparable(taken[0], each) for each in taken):
        yield "Latencies come from different hosts or profiles: compare only within one."


def _unlike(report: Report) -> Iterator[str]:
    """Files that often name another class than the student; those of a kind in one sentence."""
    told = [(row, row.agreement) for row in report.artifacts if row.agreement is not None]
    low = [(row, share) for row, share in told if share < AGREEMENT]
    for kind, blame in ((True, "; for float files that points to a faulty export"), (False, "")):
        names = [
            f"{row.title} ({percent(share)} %)"
            for row, share in low
            if (row.precision in ("fp32", "fp16")) is kind
        ]
        if names:
            yield (
                f"{enumerated(names)} name{'s' * (len(names) == 1)} the same class as the "
                f"student on fewer than {100 * AGREEMENT:g} % of the test images{blame}."
            )


def _not_numbers(report: Report) -> Iterator[str]:
    for row in report.artifacts:
        if row.parity and row.parity.max_abs_diff is None:
            yield f"{row.title} gave outputs that are not numbers."


def _near(report: Report) -> Iterator[str]:
    """Files whose answers are nearly as far from the student's as would have ended the run."""
    for row in report.artifacts:
        share = share_of_tolerance(report, row)
        if share is not None and share > NEAR:
            yield (
                f"{row.title} is near the limit of parity: its answers are {100 * share:.0f} % as "
                "far from the student's as is allowed, and files of this kind that work stay far "
                "below."
                if share <= 1
                else f"{row.title} is beyond the limit of parity: its answers are {share:.1f} "
                "times as far from the student's as is allowed."
            )


def _unseen(report: Report) -> Iterator[str]:
    titles = [row.title for row in report.artifacts if row.path and row.top1 is None]
    if titles:
        yield f"Exported but not run here, so unverified: {', '.join(titles)}."


def contract(report: Report) -> list[str]:
    """What an app must feed the files and what they answer, one line a kind of file."""
    spec = report.input
    colour = "grey" if spec.channels == 1 else "RGB"
    there = {
        row.format: FORMAT_NAMES.get(row.format, row.format) for row in report.artifacts if row.path
    }
    taken = [name for kind, name in there.items() if kind != "coreml"]
    lines = []
    if taken:
        lines.append(
            f"Files for {enumerated(taken)} take {spec.dtype} images [batch, {spec.size}, "
            f"{spec.size}, {spec.channels}] ({spec.layout}, {colour}), values 0 to 255, as a phone "
            "has them."
        )
    if "coreml" in there:
        lines.append(
            f"The Core ML files take an image of {spec.size} × {spec.size} pixels ({colour}, 0 to "
            "255) and answer with the label and a number for every class."
        )
    for output in ("logits", "probabilities"):
        titles = [row.title for row in report.artifacts if row.path and row.output == output]
        if titles:
            lines.append(f"They answer with {output}: {enumerated(titles)}.")
    return [
        *lines,
        "Every file (but a raw one) computes (x ∕ 255 − mean) ∕ std by itself; labels are in its "
        "metadata.",
    ]
