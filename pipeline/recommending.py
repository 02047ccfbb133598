"""The answer: which file to ship to whom, and why, as a pure function of the `Report`.

Only files that are there, whose accuracy was measured and against which nothing speaks
(`soundness`) are recommended. Of those that keep the accuracy of the target's best the fastest is
named, by the best evidence that compares them: a phone's own figures, then predictions for one,
then this host's latency. Files that are not certainly slower count as equal, and of equals the
smallest is named; so it is where no latencies compare them. Where the best does not keep the
student's accuracy, that is said first. `RULE` says all that on the page.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from benchmarks.stats import side
from pipeline import soundness
from pipeline.comparing import AnyRow, difference
from pipeline.records import Platform
from pipeline.speeds import Speeds, best_speeds
from pipeline.summary import ArtifactRow, Report
from pipeline.wording import (
    by_skipped,
    enumerated,
    megabytes,
    percent,
    points,
    points_interval,
    predicates,
)

CERTAIN = 0.2
"""Points of top-1 that a file may lose for certain (paired, 95 %) and still keep the accuracy; as
between two CPUs (`records.APART`)."""
MEASURED = 1.0
"""Points that it may lose as measured: with few test images nothing is certain, and that must not
let everything pass."""
SMALLER = 1.1
"""How many times smaller a file must be for that to be worth telling."""
MORE = 0.0005
"""By how much more accurate, as a share, for that to be."""
RULE = (
    f"A file keeps the accuracy if its top-1 is not certainly more than {CERTAIN:g} points below "
    "that of the best file for the same target (paired over the test images, 95 %), and not more "
    f"than {MEASURED:g} as measured; where that best does not so keep the student’s, it is said. "
    "Of these the fastest is named, by a phone’s own figures, by predictions or by this host’s "
    "latency, whichever comes first and compares them; of files that are not certainly slower, and "
    "where no latencies compare them, the smallest. Never named is what was not run here, is "
    "farther from the student than its precision is allowed, or is known to answer otherwise on a "
    "phone of the target, on arm64 (for Android and iOS) or on any CPU tried (for the browser)."
)


class Target(NamedTuple):
    """Where files are shipped to."""

    name: str
    platform: Platform
    formats: tuple[str, ...]
    """Those that make files for it."""
    first: tuple[str, ...] = ()
    """Formats that go before the others where there is such a file, however fast those are here."""
    why_first: str = ""


TARGETS = (
    Target("Android CPU", "android", ("litert", "executorch", "ort", "onnx")),
    Target(
        *("iOS", "ios", ("coreml", "ort", "executorch"), ("coreml",)),
        "Core ML alone needs no runtime in the app and may use the Neural Engine",
    ),
    Target(
        *("NVIDIA", "nvidia", ("tensorrt", "tensorrt_rtx", "onnx"), ("tensorrt", "tensorrt_rtx")),
        "TensorRT compiles for the very GPU",
    ),
    Target("Browser", "web", ("onnx",)),
)


class Recommendation(NamedTuple):
    """The answer for one target."""

    target: Target
    row: ArtifactRow | None
    """None where nothing can be recommended."""
    reason: str
    """What sets it apart; or that there is nothing."""
    evidence: str
    """A sentence: its figures; or what is missing."""
    preference: str = ""
    """Why its format goes before faster or smaller files of others, where it does."""
    instead: str = ""
    """What another file would give and cost, where that is a real trade."""

    @property
    def why(self) -> str:
        """A sentence of reason and preference."""
        return f"{'; '.join(filter(None, (self.reason, self.preference)))}."

    @property
    def title(self) -> str:
        """What to ship."""
        return self.row.title if self.row else "none"

    @property
    def path(self) -> str | None:
        """Where it lies in the run's folder: its copy in the target's part of the bundle."""
        if self.row is None or self.row.path is None:
            return None
        bundle, *parts = self.row.path.split("/")
        if len(parts) > 1 and parts[0] in self.row.platforms:
            parts[0] = self.target.platform
        return "/".join((bundle, *parts))


def recommend(report: Report) -> list[Recommendation]:
    """One a target, in the order of `TARGETS`."""
    return [_for(report, target) for target in TARGETS]


def to_ship(report: Report) -> ArtifactRow | None:
    """The file by which a run is listed: that of the first target which has one."""
    return next((each.row for each in recommend(report) if each.row), None)


def _for(report: Report, target: Target) -> Recommendation:
    rows = [row for row in report.artifacts if _is_for(row, target)]
    there = [row for row in rows if row.path]
    faults = [soundness.fault(report, target.platform, row) for row in there]
    sound = [
        row for row, fault in zip(there, faults, strict=True) if row.top1 is not None and not fault
    ]
    if not sound:
        return _nothing(target, rows, faults)
    best = max(sound, key=lambda row: (row.top1 or 0, row.format in target.first))
    keeping = [row for row in sound if _keeps(best, row)]
    pool = [row for row in keeping if row.format in target.first] or keeping
    speeds = best_speeds(report, target.platform, pool, sound)
    short = _short(report, best)
    chosen, reason = _choose(pool, speeds, "that accurate" if short else "")
    reason = f"{short}{reason}"
    order = _order(speeds)
    others = sorted(sound, key=lambda row: (row not in pool, row not in keeping, order(row)))
    return Recommendation(
        target,
        chosen,
        f"{reason[0].upper()}{reason[1:]}",
        _evidence(report, target, chosen, best, speeds),
        target.why_first if len(pool) < len(keeping) else "",
        _instead(chosen, [row for row in others if row is not chosen], speeds),
    )


def _is_for(row: ArtifactRow, target: Target) -> bool:
    if row.platforms:
        return target.platform in row.platforms
    # Reports of before files said so: a variant has a purpose of its own.
    return row.format in target.formats and row.variant is None


def _keeps(best: AnyRow, row: ArtifactRow) -> bool:
    change = difference(best, row, same_images=True)
    if row is best or change is None:
        return row is best
    return 100 * change.ci95[1] >= -CERTAIN and round(100 * change.value, 6) >= -MEASURED


def _short(report: Report, best: ArtifactRow) -> str:
    """That not even the best file keeps the student's accuracy; empty where it does."""
    student = report.model("student")
    change = student and difference(student, best, same_images=True)
    if student is None or change is None or _keeps(student, best):
        return ""
    lost = f"{abs(100 * change.value):.2f} points"
    return f"no file keeps the student’s accuracy, and the best loses {lost}; "


def _nothing(target: Target, rows: Sequence[ArtifactRow], faults: Sequence[str]) -> Recommendation:
    """That no file can be recommended, and what is missing; `faults` are of those with a path."""
    there = [row for row in rows if row.path]
    if any(faults):
        each = zip(there, faults, strict=True)
        told = "; ".join(f"{row.title} {fault}" for row, fault in each if fault)
        return Recommendation(target, None, "No file can be recommended", f"{told}.")
    if there:
        told = "; ".join(
            f"{titles} {'was' if count == 1 else 'were'} exported, not run here, so unverified: "
            f"{reason.rstrip('.')}"
            for titles, reason, count in by_skipped(there)
        )
        claim = "No file was verified, so none is recommended"
        return Recommendation(target, None, claim, f"{told}.")
    reasons = "; ".join(f"{titles}: {reason.rstrip('.')}" for titles, reason, _ in by_skipped(rows))
    asked = f"export.formats has none of {enumerated(target.formats, 'or')}"
    return Recommendation(target, None, "There is no file", f"{reasons or asked}.")


# ---- choosing ----


def _order(speeds: Speeds | None) -> Callable[[ArtifactRow], tuple[float, float]]:
    """What rows are sorted by: latency, where it is known, and size."""

    def order(row: ArtifactRow) -> tuple[float, float]:
        timed = speeds and speeds.of(row)
        return timed[0] if timed else inf, row.bytes or inf

    return order


def _choose(
    rows: Sequence[ArtifactRow], speeds: Speeds | None, alike: str
) -> tuple[ArtifactRow, str]:
    """The file to ship, and what sets it apart; `alike` is said where none keeps the accuracy."""
    names = {row.format for row in rows}
    kind = f"{names.pop()} " if len(names) == 1 else ""
    ranked = sorted(rows, key=_order(speeds))
    if len(rows) == 1:
        keeps = f"is {alike}" if alike else "keeps the accuracy"
        return rows[0], f"the only {kind}file that {keeps}"
    keep = f"{len(rows)} {kind}files that {f'are {alike}' if alike else 'keep the accuracy'}"
    if speeds is None:
        return ranked[0], f"the smallest of {keep}; no latencies compare them"
    timed = [(row, found[1]) for row in ranked if (found := speeds.of(row))]
    if len(timed) < len(rows):
        keep += f" ({len(timed)} timed)"
    first, (_, latest) = timed[0]
    equal = [row for row, (low, _) in timed if low <= latest]
    if len(equal) == 1:
        return first, f"the fastest {speeds.where} of {keep}"
    return min(equal, key=lambda row: row.bytes or inf), (
        f"the smallest of {len(equal)} that share first place {speeds.where}, of {keep}"
    )


# ---- words ----


def _evidence(
    report: Report, target: Target, row: ArtifactRow, best: ArtifactRow, speeds: Speeds | None
) -> str:
    """Its figures in a sentence, with what they do not show."""
    parts = [speeds.told(row)] if speeds and speeds.of(row) else []
    parts += [f"{megabytes(row.bytes)} MB"] if row.bytes else []
    told = ", ".join([*parts, f"top-1 {percent(row.top1)} %"])
    student = report.model("student")
    against: list[tuple[str, AnyRow]] = [("the student", student)] if student else []
    against += [] if row is best else [(best.title, best)]
    apart: dict[tuple[str, str], list[str]] = {}
    for name, other in against:
        if change := difference(other, row, same_images=True):
            size = points(change.value), points_interval(change.ci95)
            apart.setdefault(size, []).append(name)
    each = [
        f"{size} points against {enumerated(names)}, 95 % interval {ends}"
        for (size, ends), names in apart.items()
    ]
    told += f" ({'; '.join(each)})" if each else ""
    caveats = soundness.caveats(report, target.platform, row)
    return "; ".join((f"{told[0].upper()}{told[1:]}", *caveats)) + "."


def _instead(chosen: ArtifactRow, others: Sequence[ArtifactRow], speeds: Speeds | None) -> str:
    """The first of `others` that is better in something, and what it gives and costs."""
    for row in others:
        gives, costs = list[tuple[str, str]](), list[tuple[str, str]]()
        for good, claim in _claims(chosen, row, speeds):
            (gives if good else costs).append(claim)
        if gives:
            but = f", but {predicates(costs)}" if costs else ""
            return f"{row.title} {predicates(gives)}{but}."
    return ""


def _claims(
    chosen: ArtifactRow, row: ArtifactRow, speeds: Speeds | None
) -> list[tuple[bool, tuple[str, str]]]:
    """What sets `row` apart: whether that is for the better, verb and claim."""
    found = []
    before, after = (speeds and speeds.of(each) for each in (chosen, row))
    if before and after:
        (a, (a_low, a_high)), (b, (b_low, b_high)) = before, after
        if b_high < a_low:
            found.append((True, ("is", f"{a / b:.1f}× as fast")))
        elif a_high < b_low:
            found.append((False, ("takes", f"{b / a:.1f}× as long")))
    if chosen.bytes and row.bytes:
        times = chosen.bytes / row.bytes
        if times >= SMALLER:
            found.append((True, ("is", f"{times:.1f}× smaller")))
        elif times <= 1 / SMALLER:
            found.append((False, ("is", f"{1 / times:.1f}× larger")))
    change = difference(chosen, row, same_images=True)
    if change and abs(change.value) >= MORE:
        way = "more" if change.value > 0 else "less"
        sure = "" if side(change.ci95) else " (not certain)"
        amount = f"{abs(100 * change.value):.2f} points {way} accurate{sure}"
        found.append((change.value > 0, ("is", amount)))
    return found
