"""What phones measured of the files, and what is predicted of others, in words and table rows."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.predict import Prediction, Score
from pipeline.phones import Phone, PhoneFile
from pipeline.records import Platform
from pipeline.summary import ArtifactRow, Report
from pipeline.wording import Finding, enumerated, interval, number, percent

SIZES = {
    "dense_macs": "dense multiply-adds",
    "depthwise_macs": "depthwise multiply-adds",
    "moved_elements": "memory traffic",
    "peak_elements": "most memory at one time",
    "parameters": "parameters",
    "kernels": "operators",
}
"""`Prediction.outside` in words."""
INTERVALS = (
    "The 80 % intervals are conformal, from networks left out of the fit; the 95 % ones are those, "
    "widened as Student’s t is, for the networks are too few. Both hold for networks like those."
)
DRIFT = 1.05
"""A median at the end that is so many times that of the start is told."""


class PhoneRow(NamedTuple):
    """One file on one phone, to be read."""

    title: str
    how: str
    p50: str
    p90: str
    p99: str
    load: str
    end: str
    """Median at the end, in that of the start."""
    golden: str
    top1: str
    top1_ci95: str
    here: str
    """Top-1 on the report's host over the same images."""
    why: str
    """Why there is no latency."""


class PredictedRow(NamedTuple):
    """One estimate, to be read."""

    device: str
    how: str
    precision: str
    ms: str
    interval80: str
    interval95: str
    models: str
    """Fitted networks."""
    nearest: str


def device(name: str) -> str:
    """A published device's name, without what its maker calls the chip."""
    found = re.sub(r"^Qualcomm (?:\S+ )?(?=Snapdragon)", "", name)
    return found.removesuffix(" Broadcom BCM2712, Cortex-A76")


def how(found: Prediction | Score) -> str:
    """Runtime, unit and threads."""
    threads = f", {found.threads} thread{'s' * (found.threads != 1)}" if found.threads else ""
    return f"{found.runtime} {found.unit}{threads}"


def phone_title(phone: Phone) -> str:
    """As "Pixel 8, Android 14, Chrome 140"; a part that another one says already is left out."""
    parts = [part for part in (phone.device, phone.system, phone.runtime) if part]
    return ", ".join(
        part
        for at, part in enumerate(parts)
        if not any(part in other for other in (*parts[:at], *parts[at + 1 :]) if part != other)
        and part not in parts[:at]
    )


def phones_of(report: Report, platform: Platform) -> list[Phone]:
    """The phones that measured in the way that the platform runs files, the latest first."""
    via = {"android": "adb", "web": "browser"}.get(platform)
    return [phone for phone in reversed(report.phones) if phone.via == via]


def phone_groups(report: Report) -> list[tuple[str, str, list[PhoneRow], list[str]]]:
    """For each phone its title, its facts in a line, a row a file, and what is to be said."""
    return [
        (
            phone_title(phone),
            "; ".join((phone.date, *phone.facts)),
            [_row(file) for file in phone.files],
            list(_remarks(phone)),
        )
        for phone in report.phones
    ]


def _row(file: PhoneFile) -> PhoneRow:
    golden = f"{file.golden[0]} of {file.golden[1]}" if file.golden else "–"
    end = file.rate_at_end
    return PhoneRow(
        title=file.title,
        how=file.how,
        p50=number(file.p50_ms),
        p90=number(file.p90_ms),
        p99=number(file.p99_ms),
        load=number(file.load_ms),
        end=f"×{end:.2f}" if end else "–",
        golden=golden,
        top1=percent(file.top1),
        top1_ci95=interval(file.top1_ci95) if file.top1_ci95 else "",
        here=percent(file.here_top1),
        why=file.skipped or "",
    )


def _remarks(phone: Phone) -> Iterator[str]:
    if phone.left:
        yield f"{phone.left[0].upper()}{phone.left[1:]}."
    for file in phone.files:
        named = f"{file.title}, {file.how}"
        if file.golden_fault:
            yield f"{named} does not answer as the file did here: {file.golden_fault}."
        if file.p50_ms is None and file.mean_ms is not None:
            yield f"{named} took {number(file.mean_ms)} ms on average; it tells no percentiles."
        if file.doubts:
            yield f"{named}: {'; '.join(file.doubts)}."
    images = {file.images for file in phone.files if file.images}
    if images:
        yield f"Top-1 is over {max(images):,} test images, there and here."
    empty = [file.overhead_ms for file in phone.files if file.overhead_ms is not None]
    if empty:
        yield f"Of a latency up to {number(max(empty))} ms are the measuring itself."
    ends = [file.rate_at_end or 0 for file in phone.files]
    if max(ends, default=0) > DRIFT:
        yield f"At the end of a curve a file took up to {max(ends):.2f} times as long as first."


def warnings(report: Report) -> Iterator[str]:
    """Files that answered wrongly on a phone."""
    for phone in report.phones:
        wrong = [file for file in phone.files if file.golden_fault]
        if wrong:
            ways = enumerated([f"{file.title} ({file.how})" for file in wrong])
            yield f"On {phone_title(phone)} {ways} did not answer the golden images as here."
        yield from (
            f"{file.title} ({file.how}) {accuracy_there(phone, file)}."
            for file in phone.files
            if file.loses
        )


def accuracy_there(phone: Phone, file: PhoneFile) -> str:
    """How much of the test images it names rightly there and here."""
    return (
        f"names {percent(file.top1)} % of {file.images:,} test images rightly on "
        f"{phone_title(phone)}, and {percent(file.here_top1)} % of them here"
    )


def predicted(report: Report) -> list[tuple[ArtifactRow, Prediction]]:
    """Every estimate with the file that it is of."""
    return [(row, found) for row in report.artifacts for found in row.predicted]


def predicted_rows(report: Report) -> list[PredictedRow]:
    """Every estimate, to be read."""
    return [
        PredictedRow(
            device(found.device),
            how(found),
            found.precision,
            number(found.latency_ms),
            _range(found.interval80),
            _range(found.interval95),
            str(found.models),
            f"{found.nearest} ({found.distance:.1f} times)",
        )
        for _, found in predicted(report)
    ]


class Column(NamedTuple):
    """A device whose predictions stand in the table of files."""

    device: str
    runtime: str
    unit: str
    threads: int | None

    @property
    def title(self) -> str:
        """For a column's head."""
        return f"{device(self.device)} {self.unit}"

    def of(self, row: ArtifactRow) -> Prediction | None:
        """What is predicted of `row` there."""
        return next((found for found in row.predicted if _column(found) == self), None)


def _column(found: Prediction) -> Column:
    return Column(found.device, found.runtime, found.unit, found.threads)


def columns(report: Report) -> list[Column]:
    """One device a kind of unit, CPUs first: the one known best (narrowest 80 % interval) for the
    files' own runtime. The others stand in the section on phones."""
    best: dict[str, Prediction] = {}
    for _, found in predicted(report):
        if found.runtime == "onnxruntime":
            known = best.setdefault(found.unit, found)
            best[found.unit] = min(known, found, key=_spread)
    return [_column(best[unit]) for unit in sorted(best)]


def _spread(found: Prediction) -> float:
    low, high = found.interval80
    return round(high / low, 6)  # those of one fit are equal: the first of them


def predicted_cell(found: Prediction | None) -> tuple[str, str] | None:
    """Latency and its 80 % interval, to be read."""
    return found and (number(found.latency_ms), _range(found.interval80))


def columns_note(report: Report) -> str:
    """What the predicted columns show; "" without any."""
    shown = columns(report)
    if not shown:
        return ""
    found = [each for column in shown for row in report.artifacts if (each := column.of(row))]
    beyond = any(each.outside for each in found)
    promise = "; this network lies beyond those, so that even the interval promises nothing"
    return (
        "In italics: predicted from the file’s graph with an 80 % interval, by latencies that "
        f"others published of other networks; nothing ran there{promise * beyond}."
    )


def _range(ends: tuple[float, float]) -> str:
    return f"{number(ends[0])}–{number(ends[1])}"


def predicted_note(report: Report) -> str:
    """What to make of the estimates."""
    rows = predicted(report)
    if not rows:
        reasons = [row.unpredicted for row in report.artifacts if row.unpredicted]
        return f"Nothing is predicted: {reasons[0]}." if reasons else ""
    told = (
        "Predicted from the network’s graph alone, by costs fitted to published latencies of other "
        f"networks; nothing ran there. {INTERVALS}"
    )
    return " ".join((told, *outside([found for _, found in rows])))


def outside(rows: Iterable[Prediction]) -> Iterator[str]:
    """Where a network lies beyond all that were fitted on, a sentence for each set of sizes."""
    found: dict[tuple[str, ...], list[Prediction]] = {}
    for row in rows:
        if row.outside:
            found.setdefault(row.outside, []).append(row)
    for names, each in found.items():
        runtimes = dict.fromkeys(f"{row.runtime} {row.unit} {row.precision}" for row in each)
        distance = max(row.distance for row in each)
        yield (
            f"It lies beyond all networks fitted on for {enumerated(list(runtimes))} in "
            f"{enumerated([SIZES[name] for name in names])} (the nearest differs by a factor of "
            f"{distance:.1f}): there the intervals promise nothing."
        )


def finding(report: Report) -> Finding:
    """The fastest file that answers rightly, on each phone that measured all it was given; empty
    where there is none."""
    best = []
    for phone in report.phones:
        timed = [file for file in phone.files if file.p50_ms and file.as_here]
        if timed and phone.left is None:
            first = min(timed, key=lambda file: file.p50_ms or 0)
            best.append(
                f"on {phone_title(phone)} {first.title} is fastest ({number(first.p50_ms)} ms, "
                f"{first.how})"
            )
    if not best:
        return Finding("", "")
    told = enumerated(best)
    return Finding(f"{told[0].upper()}{told[1:]}.", "Measured on the device itself.")
