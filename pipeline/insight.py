"""What the kept answers of a run tell beyond its accuracies, put into its `Report`.

Of the networks and of the int8 file that is spoken of first: what they take for what, what their
confidence is worth, and the images they disagree on. All of it comes from stored answers, so that
a finished run gets it without being measured anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.stats import PairedDifference
from pipeline import confidence, confusions, disagreements
from pipeline.comparing import AnyRow
from pipeline.disagreements import Answers
from pipeline.images import Images
from pipeline.records import Measurement
from pipeline.summary import ArtifactRow, ModelRow, Report
from pipeline.verdict import lead_int8

R = TypeVar("R", ModelRow, ArtifactRow)

MATRICES = ("student", "int8")
"""Whose confusions are kept."""


def added(
    report: Report,
    models: Sequence[Measurement],
    artifacts: Sequence[Measurement],
    labels: NDArray[np.int64],
    images: Images | None,
) -> Report:
    """`report` with what the answers of its rows tell; `images` are the test split's.

    `models` and `artifacts` are the measurements of its rows, in their order, and `labels` the
    true classes of the test images.
    """
    int8 = lead_int8(report)
    rows: dict[str, tuple[AnyRow, Measurement]] = {
        row.role: (row, m) for row, m in zip(report.models, models, strict=True)
    }
    for row, found in zip(report.artifacts, artifacts, strict=True):
        if row is int8:
            rows["int8"] = row, found
    told = {
        name: (row, _answers(row, found))
        for name, (row, found) in rows.items()
        if found.accuracy is not None
    }
    more = {id(row): _fields(report, name, each, labels) for name, (row, each) in told.items()}
    right = {name: np.argmax(each.values, axis=1) == labels for name, (_, each) in told.items()}
    asked = {name: told[name][1] for name in ("teacher", "student", "int8") if name in told}
    return report.model_copy(
        update={
            "models": tuple(_updated(row, more) for row in report.models),
            "artifacts": tuple(_updated(row, more) for row in report.artifacts),
            "class_gains": _by_class(report, right, "baseline", "student", labels),
            "class_changes": _by_class(report, right, "student", "int8", labels),
            "disagreements": disagreements.find(asked, labels, int8 and int8.title, images),
        }
    )


def _answers(row: AnyRow, found: Measurement) -> Answers:
    assert found.accuracy is not None
    values = np.load(found.folder / found.accuracy.predictions, mmap_mode="r")
    return Answers(values, row.output if isinstance(row, ArtifactRow) else "logits")


def _fields(
    report: Report, name: str, answers: Answers, labels: NDArray[np.int64]
) -> dict[str, Any]:
    named = np.argmax(answers.values, axis=1)
    matrix = confusions.count(named, labels, len(report.labels))
    return {
        "class_precision": confusions.precisions(matrix),
        "confusions": confusions.of(matrix) if name in MATRICES else None,
        "confidence": confidence.assess(answers.values, labels, answers.output),
    }


def _updated(row: R, more: Mapping[int, dict[str, Any]]) -> R:
    return row.model_copy(update=more.get(id(row), {}))


def _by_class(
    report: Report,
    right: Mapping[str, NDArray[np.bool_]],
    before: str,
    after: str,
    labels: NDArray[np.int64],
) -> tuple[PairedDifference | None, ...]:
    if before not in right or after not in right:
        return ()
    return confusions.by_class(right[before], right[after], labels, len(report.labels))
