"""report.json: everything one run found out, in one file that others read.

Names stay and fields may be added, so unknown fields are ignored on reading; `SCHEMA` rises only
when a field changes its meaning. The pages and the comparison are pure functions of `Report`.
Neither building nor reading one needs torch.
"""

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    computed_field,
)

from benchmarks.predict import Prediction
from benchmarks.stats import PairedDifference, mean_interval
from pipeline import phones, references
from pipeline.confidence import Confidence
from pipeline.confusions import Confusions
from pipeline.disagreements import Disagreements
from pipeline.errors import StoreError
from pipeline.phones import Phone
from pipeline.quantized import Fused, Rescue, Sensitivity, Trial
from pipeline.records import (
    SCHEMA,
    CpuCheck,
    InputSpec,
    Platform,
    Precision,
    Role,
    Scheme,
    artifact_title,
)

FILE = "report.json"
STATE = ".state"
"""What pages and bundle were made of, in a run's folder."""
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
    p50_ms: float = Field(gt=0)
    p90_ms: float
    p99_ms: float
    n: int
    warmup: int
    first_ms: float
    p50_ci95: tuple[float, float] | None = None
    noisy: str | None = None
    overhead_ms: float | None = None
    batch: int = 1
    processes: int = 1
    in_force: dict[str, str] = {}


class ParityRow(Part):
    """How far the answers are from the float student's, as in `records.Parity`."""

    reference: Role
    max_abs_diff: Finite
    """None where an output was not a number."""
    mean_abs_diff: Finite = None
    relative: Finite = None
    """Mean difference of logits in standard deviations of the student's."""
    top1_agreement: float
    n: int


class EpochRow(Part):
    """One point of a training curve."""

    epoch: int
    loss: Finite
    val_top1: Finite
    seconds: float
    learning_rate: float | None = None
    images_per_second: Finite = None
    memory_bytes: int | None = None
    """As in `records.Epoch`."""


class Row(Part):
    """What models and artifacts have in common: the outcome of a measurement."""

    key: str
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
    """Top-1 by class, in the order of `labels`; None where a class has no test image. It is each
    class's recall."""
    class_precision: tuple[float | None, ...] | None = None
    """Share of the images named as a class that belongs to it; None where none was so named."""
    confusions: Confusions | None = None
    """What it takes for what."""
    confidence: Confidence | None = None
    """What its confidence is worth. These three are of the networks and of one int8 file alone,
    confusions of that file and the student."""

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
    start: str = "random"
    """What the weights were before training."""
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
    platforms: tuple[Platform, ...] = ()
    """What it is for."""
    output: Literal["logits", "probabilities"] = "logits"
    """What it answers."""
    path: str | None = None
    """Relative to the folder of report.json; None where there is no file."""
    sha256: str | None = None
    operators_ms: dict[str, float] | None = None
    """Milliseconds an inference spends in each operator type, as in `records.Measurement`."""
    cpus: tuple[CpuCheck, ...] = ()
    """The same file on other CPUs, over test images."""
    parity: ParityRow | None = None
    notes: tuple[str, ...] = ()
    """What somebody who ships it should know."""
    predicted: tuple[Prediction, ...] = ()
    """Estimates of its graph's latency on named phones; of the plain ONNX files only."""
    unpredicted: str | None = None
    """Why there are none, where there should be."""

    @property
    def title(self) -> str:
        """For people: "onnx int8 (symmetric)"."""
        return artifact_title(self.format, self.precision, self.variant)

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
    """Equal only for runs that were tested on the same pixels and labels, in the same order. Of
    stored images the converse holds too; of images decoded from their files batch by batch the
    digest of the whole set stands in, so that the same test split beside another training split
    counts as different."""
    class_counts: tuple[int, ...] | None = None
    """Test images by class."""


class QuantizationRow(Part):
    """How the int8 graph came about."""

    method: str
    images: int
    """Calibration images."""
    operators: dict[str, int]
    """How often each type stands in the graph that ONNX Runtime really runs."""
    scheme: Scheme = "u8s8"
    float_val_top1: float | None = None
    """Of the float student on the validation split."""
    trials: tuple[Trial, ...] = ()
    fused: Fused | None = None
    sensitivity: Sensitivity | None = None
    rescue: Rescue | None = None
    checks: tuple[CpuCheck, ...] = ()
    """On validation images; they chose the scheme."""
    notes: tuple[str, ...] = ()
    """All of these as in `quantized.Quantized`."""


class SeedRow(Part):
    """What one seed's baseline and student reached on the test split."""

    seed: int
    baseline_top1: float | None = None
    """None where the baseline was switched off."""
    student_top1: float
    gain: PairedDifference | None = None
    """Student minus baseline."""


class OverSeeds(Part):
    """A figure that every seed gave anew."""

    mean: float
    ci95: tuple[float, float]
    """Student's t interval of the mean: teacher, split and test images are those of this run."""
    n: int
    """Seeds."""


def _over(values: Sequence[float | None]) -> OverSeeds | None:
    given = [value for value in values if value is not None]
    if len(given) < max(2, len(values)):
        return None
    mean, ci95 = mean_interval(given)
    return OverSeeds(mean=mean, ci95=ci95, n=len(given))


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
    """Student minus baseline, as trained with the seed of what is shipped."""
    seeds: tuple[SeedRow, ...] = ()
    """One a seed, where there are several; the first one's student is shipped."""
    class_gains: tuple[PairedDifference | None, ...] = ()
    """Student minus baseline by class; None of a class without a test image."""
    class_changes: tuple[PairedDifference | None, ...] = ()
    """The int8 file that is spoken of first minus student, by class."""
    disagreements: Disagreements | None = None
    """Test images that teacher, student and that int8 file name differently."""
    quantization: QuantizationRow | None = None
    phones: tuple[Phone, ...] = ()
    """What phones measured of these files."""

    @computed_field
    @property
    def gain_over_seeds(self) -> OverSeeds | None:
        """Student minus baseline; None unless several seeds gave both."""
        return _over([row.gain and row.gain.difference for row in self.seeds])

    @computed_field
    @property
    def baseline_over_seeds(self) -> OverSeeds | None:
        """The baseline's top-1; None unless several seeds gave it."""
        return _over([row.baseline_top1 for row in self.seeds])

    @computed_field
    @property
    def student_over_seeds(self) -> OverSeeds | None:
        """The student's top-1; None unless several seeds gave it."""
        return _over([row.student_top1 for row in self.seeds])

    @property
    def rows(self) -> tuple[ModelRow | ArtifactRow, ...]:
        """Models, then artifacts."""
        return (*self.models, *self.artifacts)

    def model(self, role: Role) -> ModelRow | None:
        """The model of that role."""
        return next((row for row in self.models if row.role == role), None)

    def with_phones(self, folder: Path) -> "Report":
        """With what phones measured of its files, as that lies in the run's folder."""
        found = phones.read(folder, [row.sha256 for row in self.artifacts])
        return self.model_copy(update={"phones": found})

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
    file = path if path.suffix == ".json" and not path.is_dir() else path / FILE
    run = file.parent.name
    again = f"Write it anew: python -m pipeline run, with the settings of '{run}'."
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        why = references.told(file.parent)
        raise StoreError(
            f"run '{run}' has no report: {why} ({file})",
            f"A run has one at its end: python -m pipeline run, with the settings of '{run}'.",
        ) from error
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
