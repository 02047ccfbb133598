"""Fewer bits, in words and table rows: how the int8 graph came about, what it loses where, and what
an fp16 file shows on a CPU.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.quantized import Fused, Island
from pipeline.records import Scheme
from pipeline.summary import ArtifactRow, Report
from pipeline.wording import NONE, megabytes, percent, points

SCHEMES: dict[Scheme, str] = {
    "u8s8": "uint8 activations, int8 weights",
    "u8s8-reduced": "uint8 activations, int8 weights (of 7 bits, but for depthwise layers)",
    "s8s8": "int8 activations, int8 weights",
    "u8u8": "uint8 activations, uint8 weights",
}


# ---- how it came about ----


def facts(report: Report) -> list[tuple[str, str]]:
    """Types, calibration and what runs in integers: name and value."""
    row = report.quantization
    if row is None:
        return []
    found = [("calibration", f"{row.method}, {row.images:,} training images")]
    if row.fused:
        found.insert(0, ("types on CPUs", f"{row.scheme}: {SCHEMES[row.scheme]}"))
        found.append(("in integer kernels", f"{_share(row.fused)} of the multiply-adds"))
    listed = ", ".join(f"{name} {count}" for name, count in sorted(row.operators.items()))
    return [*found, ("operators, as ONNX Runtime runs them", listed)]


def islands(report: Report) -> list[str]:
    """Each kind of float island: how many there are, their operators, and why they stay float."""
    fused = report.quantization and report.quantization.fused
    if not fused:
        return []
    if not fused.islands:
        return [
            "No float island: nothing between the first and the last operator is converted to "
            "float and back."
        ]
    kinds = Counter((_operators(island), island.reason) for island in fused.islands)
    return [
        f"{_counted(count, 'float island')}, {operators}: {reason}."
        for (operators, reason), count in kinds.items()
    ]


def _share(fused: Fused) -> str:
    """100 % only where it is all of them."""
    share = 100 * fused.integer_share
    return f"{min(share, 99.9) if fused.float_macs else share:.1f} %"


def _operators(island: Island) -> str:
    counts = Counter(island.operators)
    return ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in counts.items())


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def trial_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Name, validation top-1, change against float, agreement, "kept"; float comes first."""
    row = report.quantization
    if row is None or not row.trials:
        return []
    plain = row.float_val_top1
    rows = [
        (
            trial.name,
            percent(trial.val_top1),
            NONE if plain is None else points(trial.val_top1 - plain),
            percent(trial.agreement),
            "kept" if trial.kept else "",
        )
        for trial in row.trials
    ]
    return [("float student", percent(plain), NONE, NONE, ""), *rows]


def trials_note(report: Report) -> str:
    """How the trials were chosen among."""
    row = report.quantization
    if row is None or not row.trials:
        return ""
    told = f"ranges of the activations from {row.images:,} calibration images."
    if len(row.trials) == 1:
        return f"On the validation split; {told}"
    tuned = (
        f" The fine-tuned graph has the ranges of {row.method}, and weights trained on as int8."
        if any(trial.name == "fine-tuned" for trial in row.trials)
        else ""
    )
    return (
        f"Chosen on the validation split; {told}{tuned} The best of several flatters itself: "
        "what is shipped is judged on the test split, above."
    )


# ---- layers ----


class LayerRow(NamedTuple):
    """What the logits gain when this layer alone is float."""

    place: int
    """In the network, from 1."""
    name: str
    gain_db: float
    val_top1: float
    macs: int
    kept: bool
    """Whether the shipped mix has it in float."""


def layer_rows(report: Report) -> list[LayerRow]:
    """All layers that were tried, in the order of the network."""
    found = report.quantization and report.quantization.sensitivity
    if not found:
        return []
    rescue = report.quantization and report.quantization.rescue
    kept = rescue.float_layers if rescue else ()
    rows = [
        LayerRow(
            *(place, loss.layer, loss.snr_db - found.int8_snr_db, loss.val_top1, loss.macs),
            kept=loss.layer in kept,
        )
        for place, loss in enumerate(found.layers, start=1)
    ]
    return [row for row in rows if math.isfinite(row.gain_db)]


def worst_layers(report: Report, most: int) -> list[LayerRow]:
    """The layers that cost most in int8, the worst first."""
    return sorted(layer_rows(report), key=lambda row: -row.gain_db)[:most]


def layers_note(report: Report) -> str:
    """What the gains are measured against."""
    found = report.quantization and report.quantization.sensitivity
    if not found or not layer_rows(report):
        return ""
    return (
        f"With all layers int8 the logits are {decibels(found.int8_snr_db, signed=False)} above "
        "their rounding noise; a layer's gain is how much farther they are when that layer alone "
        f"is float. Over {found.n:,} validation images, of which int8 names "
        f"{percent(found.int8_top1)} % rightly and the float student {percent(found.float_top1)} %."
    )


def decibels(value: float, *, signed: bool = True) -> str:
    """With its unit."""
    return f"{value:{'+' if signed else ''}.2f} dB".replace("-", "−")


def rescue_lines(report: Report) -> list[str]:
    """What was kept in float for accuracy, and what that costs."""
    found = report.quantization and report.quantization.rescue
    if not found:
        return []
    layers = _counted(len(found.float_layers), "layer")
    lines = [
        f"With all layers int8 it lost {found.drop_before:.2f} points of top-1 on the validation "
        f"split, more than quantize.max_drop = {found.max_drop:g} allows; with {layers} in float "
        f"it loses {found.drop:.2f}. That takes {found.latency_ratio:.2f}× the time on this host, "
        f"and {megabytes(found.bytes)} instead of {megabytes(found.bytes_before)} MB; "
        f"{_counted(found.tried, 'graph')} were tried.",
    ]
    if found.float_layers:
        lines.append(f"In float: {', '.join(found.float_layers)}.")
    return lines


# ---- warnings and notes ----


def warnings(report: Report) -> Iterator[str]:
    """A search for accuracy that did not reach its goal."""
    found = report.quantization and report.quantization.rescue
    if found and found.drop > found.max_drop:
        layers = _counted(len(found.float_layers), "layer")
        yield (
            f"int8 loses {found.drop:.2f} points of top-1 on the validation split even with "
            f"{layers} in float, more than quantize.max_drop = {found.max_drop:g} allows: "
            "rounding the activations alone costs that. Give quantize.fine_tune more epochs."
        )


def fp16_note(rows: Iterable[ArtifactRow]) -> str:
    """What a float16 ONNX file shows on a CPU; "" where none was measured."""
    for row in rows:
        if (row.format, row.precision) == ("onnx", "fp16") and _measured(row):
            return (
                f"On x86 CPUs ONNX Runtime computes {row.title} in float32, with weights rounded "
                "to float16: its latency there says nothing of a GPU or NPU, and its agreement "
                "shows only what rounding the weights costs."
            )
    return ""


def file_notes(report: Report) -> str:
    """Which files are measured on a CPU that they are not made for."""
    made = [
        f"{row.title} is made for TensorRT: kernels of CPUs want zero points."
        for row in report.artifacts
        if (row.format, row.variant) == ("onnx", "symmetric") and _measured(row)
    ]
    return " ".join(filter(None, (fp16_note(report.artifacts), *made)))


def _measured(row: ArtifactRow) -> bool:
    return row.latency is not None or row.top1 is not None


def lines(report: Report) -> list[str]:
    """The section in a line or two, for the terminal."""
    row = report.quantization
    if row is None:
        return []
    told = f"ranges by {row.method} from {row.images:,} images"
    if row.fused:
        count = len(row.fused.islands)
        found = _counted(count, "float island") if count else "no float island"
        told = (
            f"{row.scheme} ({SCHEMES[row.scheme]}), {told}; {_share(row.fused)} of the "
            f"multiply-adds in integer kernels, {found}"
        )
    return [f"int8: {told}.", *rescue_lines(report)[:1]]
