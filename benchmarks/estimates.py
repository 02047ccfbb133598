"""What `predict` tells: estimates for files, and how far such estimates are off."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks import predict
from benchmarks.predict import Evaluation, Prediction, Score
from benchmarks.printing import add, table
from pipeline.on_device import INTERVALS, device, how, outside

GOAL = 0.10
"""Mean absolute error of a CPU runtime's predictions that is aimed at."""
GOAL_MODELS = 12
"""From so many networks on."""
COVER = (0.70, 0.90)
"""Where the coverage of an 80 % interval should be."""


class Estimates(BaseModel):
    """What `predict` found."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, tuple[Prediction, ...]]
    provenance: dict[str, str] = {}


class Evaluated(BaseModel):
    """What `predict --evaluate` found."""

    model_config = ConfigDict(frozen=True)

    evaluation: Evaluation
    provenance: dict[str, str] = {}


def estimate(files: Sequence[tuple[str, Path]]) -> Estimates:
    """Estimates for .onnx files by title. Raises `ExportError` for one that cannot be counted."""
    return Estimates(
        files={title: predict.of_file(path, precision_of(path)) for title, path in files}
    )


def precision_of(path: Path) -> str:
    """Whether an .onnx file is quantized: int8, else fp32."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    return "int8" if any(node.op_type == "QuantizeLinear" for node in nodes) else "fp32"


def facts(found: Estimates) -> list[str]:
    """What has to be said beside the tables."""
    told = [
        "predicted from the graph alone, by costs fitted to published latencies "
        "(benchmarks/published/phones.csv); nothing ran on these devices",
        INTERVALS,
        "how far such predictions are off: python -m benchmarks predict --evaluate",
    ]
    for title, rows in found.files.items():
        told += [f"{title}: {line}" for line in outside(rows)]
    return told


def tables(found: Estimates) -> list[Table]:
    """One table a file, one line a device."""
    made = []
    for title, rows in found.files.items():
        columns = ("device", "runtime", "precision", "predicted ms", "80 %", "95 %")
        shown = table(f"Predicted: {title}", *columns, "networks", "nearest")
        for row in rows:
            add(
                shown,
                *(device(row.device), how(row), row.precision, f"{row.latency_ms:.3g}"),
                *(_range(row.interval80), _range(row.interval95), str(row.models)),
                f"{row.nearest} ×{row.distance:.2f}",
            )
        made.append(shown)
    return made


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g}–{ends[1]:.3g}"


def evaluation_facts(found: Evaluated) -> list[str]:
    """The goals, and whether they are met."""
    told = [
        "error: mean absolute, as a share of the published latency; each network left out of the "
        "fit, of the choice of costs and of the intervals",
        "nearest: the latency of the network with the nearest number of multiply-adds; scalar: "
        "multiply-adds times one number",
        "device left out: the median of what the runtime's other devices would take",
        "the sets of costs to choose from were found on the same rows: no error here pays for that",
    ]
    return [*told, *(line for each in found.evaluation.families for line in _goals(each))]


def _goals(family: Score) -> list[str]:
    name = f"{family.runtime} {family.unit} {family.precision} ({family.models} networks)"
    better = family.error < min(family.nearest, family.scalar)
    lines = [] if better else [f"{name}: no better than a plain baseline"]
    if family.unit == "CPU" and family.models >= GOAL_MODELS:
        met = "met" if family.error <= GOAL else "missed"
        lines.append(f"{name}: error {family.error:.1%}, goal at most {GOAL:.0%}: {met}")
    low, high = COVER
    if not low <= family.cover80 <= high:
        lines.append(
            f"{name}: the 80 % interval holds {family.cover80:.0%}, goal {low:.0%} to {high:.0%}: "
            "missed"
        )
    return lines


def evaluation_tables(found: Evaluated) -> list[Table]:
    """Families, then every device."""
    whole = found.evaluation
    return [
        _scores("By runtime", [(how(score), score) for score in whole.families]),
        _scores(
            "By device",
            [(f"{device(score.device)}, {how(score)}", score) for score in whole.groups],
        ),
    ]


def _scores(title: str, scores: Sequence[tuple[str, Score]]) -> Table:
    columns = ("", "precision", "networks", "error", "worst", "nearest", "scalar")
    shown = table(title, *columns, "80 / 95 % hold", "device left out", "80 % holds")
    for name, score in scores:
        shares = (score.error, score.worst, score.nearest, score.scalar)
        away = (score.device_error, score.device_cover80)
        add(
            shown,
            *(name, score.precision, str(score.models)),
            *(f"{share:.1%}" for share in shares),
            f"{score.cover80:.0%} / {score.cover95:.0%}",
            *("–" if share is None else f"{share:.0%}" for share in away),
        )
    return shown
