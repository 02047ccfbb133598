"""report.json: everything one run found out, in one file that others read.

Names stay and fields may be added, so unknown fields are ignored on reading; `SCHEMA` rises only
when a field changes its meaning. The pages and the comparison are pure functions of `Report`.
Neither building nor reading one needs torch.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from benchmarks.stats import PairedDifference
from pipeline.errors import StoreError
from pipeline.records import (
    SCHEMA,
    Artifact,
    Checkpoint,
    Dataset,
    InputSpec,
    Measurement,
    Precision,
    Quantized,
    Role,
)
from pipeline.store import file_sha256

FILE = "report.json"
BUNDLE = "bundle"
"""Folder of the shipped files inside a run's folder."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finite = Annotated[float | None, BeforeValidator(_finite)]
"""A number, or None where the computation gave none (JSON knows no NaN)."""


class Part(BaseModel):
    """Base of everything in report.json."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, use_attribute_docstrings=True
    )


class LatencyRow(Part):
    """Batch-1 latency in a fresh process, as in `records.Latency`."""

    profile: str
    threads: int
    host: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    warmup: int
    first_ms: float


class ParityRow(Part):
    """How far the answers are from the float student's, as in `records.Parity`."""

    reference: Role
    max_abs_diff: Finite
    """None where an output was not a number."""
    top1_agreement: float
    n: int


class EpochRow(Part):
    """One point of a training curve."""

    epoch: int
    loss: Finite
    val_top1: Finite
    seconds: float


class Row(Part):
    """What models and artifacts have in common: the outcome of a measurement."""

    key: str
    seconds: float = 0.0
    """Time of the training or of the export."""
    seconds: float = 0.0
    """Time it took to train or to export."""
    bytes: int | None = None
    """Size of the file, or of all files in a folder."""
    skipped: str | None = None
    """Why it is missing, or what could not be measured of it here."""
    top1: float | None = None
    top1_ci95: tuple[float, float] | None = None
    n: int | None = None
    """Test images."""
    evaluated_with: str | None = None
    latency: LatencyRow | None = None
    load_ms: float | None = None
    peak_rss_bytes: int | None = None
    correct: str | None = None
    """Whether each test image was named rightly: base64 of numpy.packbits, in test order."""
    class_top1: tuple[float | None, ...] | None = None
    """Top-1 by class, in the order of `labels`; None where a class has no test image."""

    def correctness(self) -> NDArray[np.bool_] | None:
        """`correct`, unpacked; None where predictions were not kept."""
        if self.correct is None or self.n is None:
            return None
        packed = np.frombuffer(base64.b64decode(self.correct), dtype=np.uint8)
        return np.unpackbits(packed, count=self.n).astype(np.bool_)


class ModelRow(Row):
    """One trained network; its latency is PyTorch's, eager, for orientation."""

    role: Role
    arch: str
    width: float
    stem_stride: int | None
    params: int
    macs: int
    device: str
    """Where it was trained."""
    precision: str
    """Arithmetic of the forward pass in training."""
    history: tuple[EpochRow, ...] = ()
    agreement: float | None = None
    """Share of test images on which it names the same class as the student."""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.role} (PyTorch)"


class ArtifactRow(Row):
    """One exported file."""

    format: str
    precision: Precision
    variant: str | None = None
    path: str | None = None
    """Relative to the folder of report.json; None where there is no file."""
    sha256: str | None = None
    parity: ParityRow | None = None

    @property
    def title(self) -> str:
        """For people: "onnx int8 (symmetric)"."""
        return f"{self.format} {self.precision}" + (f" ({self.variant})" if self.variant else "")

    @property
    def agreement(self) -> float | None:
        """Share of test images on which it names the same class as the student."""
        return self.parity.top1_agreement if self.parity else None


class DatasetRow(Part):
    """The image set, as in `records.Dataset`."""

    source: str
    licence: str
    digest: str
    train: int
    val: int
    test: int
    test_digest: str
    """Equal for two runs exactly when they were tested on the same pixels and labels, in order."""
    class_counts: tuple[int, ...] | None = None
    """Test images by class."""


class QuantizationRow(Part):
    """How the int8 graph came about."""

    method: str
    images: int
    """Calibration images."""
    operators: dict[str, int]
    """As in `records.Quantized`."""


class Report(Part):
    """The whole of report.json."""

    model_config = ConfigDict(populate_by_name=True)

    schema_version: int = Field(
        default=SCHEMA, validation_alias="schema", serialization_alias="schema"
    )
    run: str
    date: str
    command: str
    """What was typed, to type it again."""
    seconds: dict[str, float]
    """By stage."""
    environment: dict[str, Any]
    settings: dict[str, Any]
    input: InputSpec
    labels: tuple[str, ...]
    dataset: DatasetRow
    models: tuple[ModelRow, ...]
    artifacts: tuple[ArtifactRow, ...]
    gain: PairedDifference | None = None
    """Student minus baseline."""
    quantization: QuantizationRow | None = None

    @property
    def rows(self) -> tuple[ModelRow | ArtifactRow, ...]:
        """Models, then artifacts."""
        return (*self.models, *self.artifacts)

    def model(self, role: Role) -> ModelRow | None:
        """The model of that role."""
        return next((row for row in self.models if row.role == role), None)

    def int8_pairs(self) -> list[tuple[ArtifactRow, ArtifactRow]]:
        """Every int8 file beside the float file of its format (fp32 before fp16)."""
        floats = [row for row in self.artifacts if row.path and row.precision != "int8"]
        floats.sort(key=lambda row: (row.precision != "fp32", row.variant is not None))
        pairs = []
        for row in self.artifacts:
            same = [other for other in floats if other.format == row.format]
            same.sort(key=lambda other: other.variant != row.variant)
            if row.path and row.precision == "int8" and same:
                pairs.append((same[0], row))
        return pairs

    def to_json(self) -> str:
        """The text of report.json."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def read(path: Path) -> Report:
    """The report at `path`, a report.json or a run's folder.

    Raises `StoreError` when it is missing, damaged, or of a newer schema than this code reads.
    """
    file = path / FILE if path.is_dir() else path
    run = file.parent.name
    again = f"Write it anew: python -m pipeline run, with the settings of '{run}'."
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"run '{run}' has no report: {file} does not exist", again) from error
    except ValueError as error:
        raise StoreError(f"the report of run '{run}' is damaged: {file}: {error}", again) from error
    schema = body.get("schema") if isinstance(body, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise StoreError(
            f"the report of run '{run}' has schema {schema}; this version reads {SCHEMA}: {file}",
            "Update this clone, or read the report with the version that wrote it.",
        )
    try:
        return Report.model_validate_json(json.dumps(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise StoreError(
            f"the report of run '{run}' cannot be used: {file}: {where}: {first['msg']}", again
        ) from error


def build(
    *,
    run: str,
    seconds: Mapping[str, float],
    environment: Mapping[str, Any],
    dataset: Dataset,
    models: Sequence[tuple[Checkpoint, Measurement]],
    artifacts: Sequence[tuple[Artifact, Measurement, str | None]],
    settings: Mapping[str, Any],
    gain: PairedDifference | None,
    command: str,
    date: str,
    quantized: Quantized | None = None,
    test_labels: NDArray[np.int64] | None = None,
) -> Report:
    """The report of a run, from its records.

    The third of each artifact is its place inside the bundle. With `test_labels` the rows also
    carry per-image and per-class correctness, read from the predictions of their measurements.
    Raises `StoreError` where predictions and labels do not belong together.
    """
    student = next((m for c, m in models if c.role == "student" and m.accuracy), None)
    test = _Test(test_labels, len(dataset.labels), _named(student) if student else None)
    return Report(
        run=run,
        date=date,
        command=command,
        seconds=dict(seconds),
        environment=dict(environment),
        settings=dict(settings),
        input=dataset.input,
        labels=dataset.labels,
        dataset=_dataset_row(dataset, test),
        models=tuple(_model_row(checkpoint, found, test) for checkpoint, found in models),
        artifacts=tuple(_artifact_row(*artifact, test) for artifact in artifacts),
        gain=gain,
        quantization=quantized
        and QuantizationRow(
            method=quantized.calibration.method,
            images=quantized.calibration.images,
            operators=quantized.operators,
        ),
    )


@dataclass(frozen=True)
class _Test:
    """What the rows are scored against."""

    labels: NDArray[np.int64] | None
    classes: int
    student: NDArray[np.int64] | None
    """The class that the student names for each image."""

    def per_class(self, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Images (of the `chosen`, or all) by class."""
        assert self.labels is not None
        labels = self.labels if chosen is None else self.labels[chosen]
        return np.bincount(labels, minlength=self.classes)


def _named(found: Measurement) -> NDArray[np.int64]:
    """The class named for each test image."""
    assert found.accuracy is not None
    return np.argmax(np.load(found.folder / found.accuracy.predictions, mmap_mode="r"), axis=1)


def _outcome(title: str, found: Measurement, test: _Test) -> dict[str, Any]:
    """The fields of `Row` that a measurement decides."""
    fields: dict[str, Any] = {
        "load_ms": found.load_ms,
        "peak_rss_bytes": found.peak_rss_bytes,
        "latency": found.latency and LatencyRow(**found.latency.model_dump(exclude={"raw"})),
    }
    if found.accuracy is not None:
        fields |= found.accuracy.model_dump(exclude={"predictions"})
        if test.labels is not None:
            right = _correct(title, found, test.labels)
            fields["correct"] = base64.b64encode(np.packbits(right).tobytes()).decode("ascii")
            fields["class_top1"] = tuple(
                float(hits / images) if images else None
                for hits, images in zip(test.per_class(right), test.per_class(), strict=True)
            )
    return fields


def _correct(title: str, found: Measurement, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which test images were named rightly, after checking that the two belong together."""
    named = _named(found)
    remedy = "The test labels are not those it was measured on; measure it again."
    if len(named) != len(labels):
        raise StoreError(f"{title}: {len(named)} predictions for {len(labels)} test labels", remedy)
    correct = named == labels
    assert found.accuracy is not None
    top1, recorded = float(correct.mean()), found.accuracy.top1
    if abs(top1 - recorded) > 0.5 / len(labels):
        raise StoreError(
            f"{title}: its predictions give top-1 {top1:.4f}, its record says {recorded:.4f}",
            remedy,
        )
    return correct


def _model_row(checkpoint: Checkpoint, found: Measurement, test: _Test) -> ModelRow:
    weights = checkpoint.weights_path
    compared = test.student is not None and found.accuracy is not None
    return ModelRow(
        **checkpoint.model_dump(exclude={"labels", "input", "weights", "history"}),
        history=tuple(EpochRow(**epoch.model_dump()) for epoch in checkpoint.history),
        bytes=weights.stat().st_size if weights.is_file() else None,
        skipped=found.skipped,
        agreement=float(np.mean(_named(found) == test.student)) if compared else None,
        **_outcome(checkpoint.role, found, test),
    )


def _artifact_row(
    artifact: Artifact, found: Measurement, place: str | None, test: _Test
) -> ArtifactRow:
    reasons = dict.fromkeys(reason for reason in (artifact.skipped, found.skipped) if reason)
    return ArtifactRow(
        **artifact.model_dump(exclude={"file", "extras", "skipped"}),
        path=f"{BUNDLE}/{place}" if place else None,
        skipped="; ".join(reasons) or None,
        parity=found.parity and ParityRow(**found.parity.model_dump()),
        **_outcome(artifact.title, found, test),
    )


def _dataset_row(dataset: Dataset, test: _Test) -> DatasetRow:
    counts = None if test.labels is None else tuple(int(n) for n in test.per_class())
    return DatasetRow(
        source=dataset.source,
        licence=dataset.licence,
        digest=dataset.digest,
        train=dataset.train.n,
        val=dataset.val.n,
        test=dataset.test.n,
        test_digest=_test_digest(dataset),
        class_counts=counts,
    )


def _test_digest(dataset: Dataset) -> str:
    """Stands for the test split alone, so that runs trained on other shares of a set still compare.

    Streamed images are only listed in the split; the digest of the whole set covers them.
    """
    split = dataset.test
    parts = [json.dumps(dataset.labels), file_sha256(dataset.folder / split.labels)]
    parts.append(file_sha256(dataset.folder / split.images) if split.images else dataset.digest)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
