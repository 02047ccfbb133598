"""manifest.json: what is in the bundle, what it takes and answers, and how good it was found.

The file's own metadata can name the student's accuracy on the validation split only (see
`pipeline.contract`); what was measured of the file itself stands here, beside its checksum.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from pipeline.bundle.layout import extra_places, places
from pipeline.errors import StoreError
from pipeline.machine import package_version
from pipeline.records import Artifact, Dataset, InputSpec, Measurement, Precision
from pipeline.store import file_sha256
from pipeline.summary import LatencyRow, ParityRow, Part, Report

SCHEMA = 1
"""Version of manifest.json. Raised when a field changes its meaning."""
FILE = "manifest.json"
LABELS = "labels.txt"
HASHING = (
    "SHA-256, in hexadecimal. Of a folder (model.mlpackage): over one line a file, sorted by the "
    'parts of their paths, each line "<path>\\0<SHA-256 of the file>\\n" in UTF-8, where <path> is '
    "relative to the folder, with slashes."
)
TOOLS = (
    *("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "coremltools"),
    *("ai-edge-litert", "litert-torch", "executorch", "torchao"),
    *("tensorrt", "tensorrt-rtx-cu12", "numpy"),
)
"""Distributions that decide what the files are, or what they were found to answer."""


class InputFacts(Part):
    """What every file takes."""

    spec: InputSpec
    crop_fraction: float
    """Share of the centre square of a photo that is kept."""
    sentence: str


class OutputFacts(Part):
    """What files answer; each says by its own `output` whether with logits or probabilities."""

    classes: int
    sentence: str


class LabelFacts(Part):
    """The class names, in the order of the answers."""

    n: int
    file: str
    """One a line, in UTF-8; breaks of the line within a name are spaces there."""
    sha256: str
    names: tuple[str, ...]
    """As they are."""


class StudentFacts(Part):
    """The network that all files were made from."""

    key: str
    arch: str


class ExtraFile(Part):
    """A file that belongs to another one."""

    paths: tuple[str, ...]
    sha256: str


class BundledFile(Part):
    """One exported file, or why there is none: then it has no paths."""

    format: str
    precision: Precision
    variant: str | None
    paths: tuple[str, ...]
    """Relative to the bundle, one a platform: the same file in all of them."""
    bytes: int | None
    sha256: str | None
    output: str
    """"logits" or "probabilities"."""
    top1: float | None
    """Over `n` test images; None where it was not executed here."""
    top1_ci95: tuple[float, float] | None
    n: int | None
    evaluated_with: str | None
    """Runtime and version."""
    parity: ParityRow | None
    latency: LatencyRow | None
    """On the host that it names: not a phone's."""
    skipped: str | None
    """Why it is missing, or what could not be measured of it."""
    notes: tuple[str, ...]
    extras: tuple[ExtraFile, ...]


class Manifest(Part):
    """The whole of manifest.json."""

    model_config = ConfigDict(populate_by_name=True)

    schema_version: int = Field(
        default=SCHEMA, validation_alias="schema", serialization_alias="schema"
    )
    run: str
    created: str
    program: str
    """Version of Pocket Distillery."""
    hashing: str
    """How all the checksums here are computed."""
    input: InputFacts
    output: OutputFacts
    labels: LabelFacts
    licence: str
    """Terms of the images that it was trained on."""
    student: StudentFacts
    tools: dict[str, str]
    """Versions by package."""
    files: tuple[BundledFile, ...]
    others: dict[str, str]
    """SHA-256 of everything else in the bundle but this file, by path."""

    def checksums(self) -> Iterator[tuple[str, str]]:
        """Path and SHA-256 of everything in the bundle."""
        for file in self.files:
            for path in file.paths:
                yield path, file.sha256 or ""
            for extra in file.extras:
                yield from ((path, extra.sha256) for path in extra.paths)
        yield from self.others.items()


def build(
    report: Report, dataset: Dataset, artifacts: Sequence[tuple[Artifact, Measurement]]
) -> Manifest:
    """What is to be said of the bundle, before anything but files and labels is in it."""
    student = report.model("student")
    names = dataset.labels
    return Manifest(
        run=report.run,
        created=report.date,
        program=package_version("pocket-distillery") or "unknown",
        hashing=HASHING,
        input=InputFacts(
            spec=dataset.input,
            crop_fraction=dataset.crop_fraction,
            sentence=takes(dataset.input, dataset.crop_fraction),
        ),
        output=OutputFacts(classes=len(names), sentence=answers(len(names))),
        labels=LabelFacts(n=len(names), file=LABELS, sha256="", names=names),
        licence=dataset.licence,
        student=StudentFacts(
            key=student.key if student else "", arch=student.arch if student else ""
        ),
        tools=_tools(report.environment),
        files=tuple(_file(artifact, found) for artifact, found in artifacts),
        others={},
    )


def takes(spec: InputSpec, crop_fraction: float = 1.0) -> str:
    """The input contract in words."""
    colour = "grey" if spec.channels == 1 else "RGB"
    crop = "" if crop_fraction == 1 else f"the middle {100 * crop_fraction:g} % of "
    return (
        f"Upright images, {spec.dtype} [1, {spec.size}, {spec.size}, {spec.channels}] "
        f"({spec.layout}, {colour}), values 0 to 255: {crop}the centre square of a photo, resized "
        f"to {spec.size} × {spec.size} pixels, bicubic, with what is transparent laid on white. "
        "Core ML files take the same as an image. Do not normalise: every file but a "
        "raw one computes (x ∕ 255 − mean) ∕ std by itself."
    )


def answers(classes: int) -> str:
    """The output contract in words."""
    return (
        f"float32 [1, {classes}], one number a class, in the order of {LABELS}; Core ML files "
        "answer with the names. `output` of a file says what they are: logits, of which softmax "
        "makes probabilities, or probabilities."
    )


def _tools(environment: Mapping[str, object]) -> dict[str, str]:
    found = ((name, environment.get(name) or package_version(name)) for name in TOOLS)
    return {name: str(version) for name, version in found if version}


def _file(artifact: Artifact, found: Measurement) -> BundledFile:
    accuracy, there = found.accuracy, artifact.file is not None
    reasons = dict.fromkeys(filter(None, (artifact.skipped, found.skipped)))
    same = ("format", "precision", "variant", "bytes", "sha256", "output", "notes")
    return BundledFile(
        **{name: getattr(artifact, name) for name in same},
        paths=places(artifact) if there else (),
        top1=accuracy and accuracy.top1,
        top1_ci95=accuracy and accuracy.top1_ci95,
        n=accuracy and accuracy.n,
        evaluated_with=accuracy and accuracy.evaluated_with,
        parity=found.parity and ParityRow(**found.parity.model_dump()),
        latency=found.latency and LatencyRow(**found.latency.model_dump(exclude={"raw"})),
        skipped="; ".join(reasons) or None,
        extras=tuple(
            ExtraFile(paths=paths, sha256=file_sha256(artifact.folder / name))
            for name, paths in (extra_places(artifact) if there else {}).items()
        ),
    )


def line_of(label: str) -> str:
    """`label` as one line of labels.txt."""
    return " ".join(label.splitlines())


def write(manifest: Manifest, bundle: Path) -> None:
    """Write the manifest, with the checksums of what is in `bundle` beside the exported files."""
    listed = {path for path, _ in manifest.checksums()}
    folders = tuple(f"{path}/" for path in listed)
    paths = sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())
    others = {
        path: file_sha256(bundle / path)
        for path in paths
        if path not in listed and not path.startswith(folders)
    }
    labels = manifest.labels.model_copy(update={"sha256": others[LABELS]})
    whole = manifest.model_copy(update={"others": others, "labels": labels})
    text = whole.model_dump_json(by_alias=True, indent=1)
    (bundle / FILE).write_text(f"{text}\n", encoding="utf-8", newline="\n")


def read(bundle: Path) -> Manifest:
    """The manifest of the bundle in that folder.

    Raises `StoreError` where it is missing, damaged, or of another schema than this code reads.
    """
    file = bundle / FILE
    again = "Write the bundle anew: python -m pipeline run, with the settings of its run."
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{bundle} is no bundle: it has no {FILE}", again) from error
    except ValueError as error:
        raise StoreError(f"the bundle's manifest is damaged: {file}: {error}", again) from error
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise StoreError(
            f"the manifest has the unknown schema {schema!r}; this version reads {SCHEMA}: {file}",
            "Read the bundle with the version that wrote it, or write it anew.",
        )
    try:
        return Manifest.model_validate_json(json.dumps(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise StoreError(
            f"the manifest of the bundle cannot be used: {file}: {where}: {first['msg']}", again
        ) from error


def check(bundle: Path) -> list[str]:
    """What is wrong with the bundle in that folder, one sentence a fault; [] where it is whole."""
    try:
        manifest = read(bundle)
    except StoreError as error:
        return [error.message]
    faults = []
    for path, expected in manifest.checksums():
        file = bundle / path
        if not file.exists():
            faults.append(f"{path} is missing")
        elif file_sha256(file) != expected:
            faults.append(f"{path} is not the file that was exported: its SHA-256 differs")
    return [*faults, *_label_faults(manifest, bundle)]


def _label_faults(manifest: Manifest, bundle: Path) -> Iterator[str]:
    told, classes = manifest.labels, manifest.output.classes
    if not told.n == len(told.names) == classes:
        yield f"{FILE} has {len(told.names)} labels for {classes} classes"
    try:
        lines = (bundle / told.file).read_bytes().decode("utf-8").split("\n")
    except OSError:
        return  # told as missing already
    except UnicodeDecodeError:
        yield f"{told.file} is not UTF-8"
        return
    if len(lines) - 1 != classes:
        yield f"{told.file} has {len(lines) - 1} labels, one a line, for {classes} classes"
