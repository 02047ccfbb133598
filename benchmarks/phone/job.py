"""What a phone is given to do: a run's ONNX files, images to run, and how long.

All of it is read when the server starts, files against their checksums: what is served later is
what was checked, whatever happens on the disk.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

import pipeline
from benchmarks import latency
from pipeline import summary
from pipeline.bundle import golden
from pipeline.errors import ConfigError, ExportError, StoreError
from pipeline.images import open_split, spread
from pipeline.records import Dataset, InputSpec
from pipeline.store import Store, file_sha256

SAMPLE = 256
"""Test images at the most that a phone is given."""
SAMPLE_BYTES = 24_000_000
"""As many bytes of them at the most."""
NEEDED = {"android", "ios", "web"}
"""A file for none of these platforms is none for phones."""
SELFTEST = Path(pipeline.__file__).with_name("templates") / "bundle" / "selftest.py"


class _Image(BaseModel):
    file: str = Field(pattern=r"^[0-9]+\.png$")


class _Answers(BaseModel):
    path: str
    tolerance: float | None = None
    answers: list[list[tuple[str, float | None]]] | None


class _Expected(BaseModel):
    """What is used of golden/expected.json."""

    images: list[_Image] = Field(min_length=1)
    files: list[_Answers]


@dataclass(frozen=True)
class File:
    """One ONNX file."""

    row: summary.ArtifactRow
    content: bytes = field(repr=False)
    expected: list[list[list[Any]]] | None
    """For each golden image the best labels with their scores; None where there are none."""
    tolerance: float
    """By how much a score may differ."""


@dataclass(frozen=True)
class Job:
    """For all phones alike."""

    run: Path
    report: summary.Report
    files: tuple[File, ...]
    empty: bytes = field(repr=False)
    """An ONNX file that does next to nothing: what measuring itself takes."""
    golden: NDArray[np.uint8] = field(repr=False)
    """[n, size, size, channels]."""
    sample: NDArray[np.uint8] = field(repr=False)
    """[n, size, size, channels] of the test split; n may be 0."""
    sample_labels: NDArray[np.int64]
    sample_rows: NDArray[np.int64]
    """Rows of the test split."""
    no_sample: str | None
    """Why there are no test images."""
    compare: Callable[..., tuple[float, str]]
    """The bundle's own comparison of an answer with the expected one."""
    steady_s: float
    sustain_s: float

    def told(self) -> dict[str, Any]:
        """What the page reads first."""
        return {
            "run": self.report.run,
            "input": [self.report.input.size, self.report.input.size, self.report.input.channels],
            "golden": len(self.golden),
            "sample": len(self.sample),
            "steady_s": self.steady_s,
            "sustain_s": self.sustain_s,
            "files": [{"title": file.row.title, "sha256": file.row.sha256} for file in self.files],
        }


def prepare(run: Path, store: Path, steady_s: float, sustain_s: float) -> Job:
    """Read all that phones need of the run in folder `run`.

    Raises `StoreError` for a damaged run, `ExportError` for an altered file, `ConfigError` where it
    has nothing that a browser can run.
    """
    report = summary.read(run)
    rows = [
        row
        for row in report.artifacts
        if row.format == "onnx" and row.path and NEEDED & set(row.platforms)
    ]
    if not rows:
        raise ConfigError(
            f"run '{report.run}' has no ONNX file for phones, and a browser runs no other",
            "Run it again with onnx among export.formats.",
        )
    bundle = run / summary.BUNDLE
    expected = _expected(bundle)
    images, sample_rows, why = _sample(report, store)
    return Job(
        run=run,
        report=report,
        files=tuple(_file(run, row, expected) for row in rows),
        empty=latency.empty_model(),
        golden=_golden(bundle, expected, report.input),
        sample=images[0],
        sample_labels=images[1],
        sample_rows=sample_rows,
        no_sample=why,
        compare=_compare(),
        steady_s=steady_s,
        sustain_s=sustain_s,
    )


def _file(run: Path, row: summary.ArtifactRow, expected: _Expected) -> File:
    assert row.path is not None
    path = run / row.path
    if not path.is_file():
        raise StoreError(f"{path} is gone", f"Run it again: python -m pipeline run, of {run.name}.")
    if file_sha256(path) != row.sha256:
        raise ExportError(
            f"{path} is not the file that was exported: its checksum is another",
            "Run the pipeline again; a phone is to run what ships.",
        )
    place = path.relative_to(run / summary.BUNDLE).as_posix()
    told = next((each for each in expected.files if each.path == place), None)
    if told is None or told.answers is None or told.tolerance is None:
        return File(row, path.read_bytes(), None, 0.0)
    return File(
        row, path.read_bytes(), [list(map(list, each)) for each in told.answers], told.tolerance
    )


def _expected(bundle: Path) -> _Expected:
    path = bundle / golden.EXPECTED
    try:
        return _Expected.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be used: {error}", "Run the pipeline again: it fills the bundle."
        ) from error


def _golden(bundle: Path, expected: _Expected, spec: InputSpec) -> NDArray[np.uint8]:
    found = []
    for name in (image.file for image in expected.images):
        path = bundle / golden.FOLDER / name
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image, np.uint8)
            found.append(pixels.reshape(spec.size, spec.size, spec.channels))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be used: {error}", "Run the pipeline again: it fills the bundle."
            ) from error
    return np.stack(found)


def _sample(
    report: summary.Report, store: Path
) -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.int64], str | None]:
    """Test images with labels, their rows, and why there are none."""
    size, channels = report.input.size, report.input.channels
    none = np.zeros((0, size, size, channels), np.uint8), np.zeros(0, np.int64)
    homes = sorted(path.parent for path in store.glob("data/*/record.json"))
    records = [record for home in homes if (record := Store.load(Dataset, home))]
    dataset = next((each for each in records if each.digest == report.dataset.digest), None)
    if dataset is None:
        why = f"the run's images are not in {store} (--store names the pipeline's store)"
        return none, none[1], why
    test = open_split(dataset, "test")
    most = max(1, SAMPLE_BYTES // (size * size * channels))
    rows = spread(min(SAMPLE, most), len(test.labels))
    return (np.ascontiguousarray(test[rows]), test.labels[rows]), rows, None


def _compare() -> Callable[..., tuple[float, str]]:
    """The function by which a bundle's selftest.py judges answers: a phone is held to the same.

    This clone's, for a run's folder may come from anywhere, and nothing of it is executed.
    """
    spec = importlib.util.spec_from_file_location("bundle_selftest", SELFTEST)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compare
