"""From the records of a run to its `Report`.

Reads predictions and labels from the store; needs no torch.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import predict
from benchmarks.stats import PairedDifference, paired_difference
from pipeline import insight
from pipeline.errors import ExportError, StoreError
from pipeline.images import Images
from pipeline.quantized import Quantized
from pipeline.records import Artifact, Checkpoint, Dataset, Measurement
from pipeline.store import file_sha256
from pipeline.summary import (
    BUNDLE,
    ArtifactRow,
    DatasetRow,
    EpochRow,
    LatencyRow,
    ModelRow,
    ParityRow,
    QuantizationRow,
    Report,
    SeedRow,
)


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
    test_images: Images | None = None,
    seeds: Mapping[int, Sequence[tuple[Checkpoint, Measurement]]] | None = None,
) -> Report:
    """The report of a run, from its records.

    The third of each artifact is its place inside the bundle. With `test_labels` the rows also
    carry per-image and per-class correctness, read from the predictions of their measurements, and
    the report has what `insight` adds; with `test_images` it shows some of them.
    `seeds` are the models of every seed where there are several, the shipped one's first.
    Raises `StoreError` where predictions and labels do not belong together.
    """
    student = next((m for c, m in models if c.role == "student" and m.accuracy), None)
    test = _Test(test_labels, len(dataset.labels), _named(student) if student else None)
    report = Report(
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
        seeds=tuple(_seed_row(seed, trained, test) for seed, trained in (seeds or {}).items()),
        quantization=quantized and _quantization_row(quantized),
    )
    if test_labels is None:
        return report
    found = [each for _, each in models], [each for _, each, _ in artifacts]
    return insight.added(report, *found, test_labels, test_images)


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


def _seed_row(seed: int, trained: Sequence[tuple[Checkpoint, Measurement]], test: _Test) -> SeedRow:
    found = {checkpoint.role: measured for checkpoint, measured in trained}
    top1 = {role: m.accuracy.top1 for role, m in found.items() if m.accuracy}
    gain = None
    if test.labels is not None and "baseline" in top1:
        right = [
            _correct(f"{role} of seed {seed}", found[role], test.labels)
            for role in ("baseline", "student")
        ]
        gain = paired_difference(*right)
    return SeedRow(
        seed=seed,
        baseline_top1=top1.get("baseline"),
        student_top1=top1["student"],
        gain=gain,
    )


def _artifact_row(
    artifact: Artifact, found: Measurement, place: str | None, test: _Test
) -> ArtifactRow:
    reasons = dict.fromkeys(reason for reason in (artifact.skipped, found.skipped) if reason)
    return ArtifactRow(
        **artifact.model_dump(exclude={"file", "extras", "skipped"}),
        path=f"{BUNDLE}/{place}" if place else None,
        skipped="; ".join(reasons) or None,
        operators_ms=found.operators_ms,
        cpus=found.cpus,
        parity=found.parity and ParityRow(**found.parity.model_dump()),
        **_predicted(artifact),
        **_outcome(artifact.title, found, test),
    )


def _predicted(artifact: Artifact) -> dict[str, Any]:
    """Estimates for phones, from the graph of a plain ONNX file."""
    plain = artifact.format == "onnx" and artifact.variant is None and artifact.file is not None
    if not plain or artifact.precision not in ("fp32", "int8"):
        return {}
    try:
        return {"predicted": predict.of_file(artifact.path, artifact.precision)}
    except ExportError as error:
        return {"unpredicted": error.message.replace(str(artifact.path), artifact.title)}


def _quantization_row(quantized: Quantized) -> QuantizationRow:
    same = ("scheme", "float_val_top1", "trials", "fused", "sensitivity", "rescue", "checks")
    return QuantizationRow(
        method=quantized.calibration.method,
        images=quantized.calibration.images,
        operators=quantized.fused.operators,
        notes=quantized.notes,
        **{name: getattr(quantized, name) for name in same},
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
