"""What a page posts, checked before anything is believed; and the figures that follow from it.

Statistics, and the comparison of golden answers, are those of every other measurement: the page
only sends what it saw.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from benchmarks.phone.job import File, Job
from benchmarks.stats import percentiles, wilson
from benchmarks.steadiness import half_width
from pipeline.phones import PhoneFile

MOST_SAMPLES = 20_000
"""Timed inferences that a page sends of one file."""
MOST_WINDOWS = 200
UNSURE = 0.05
"""Half an interval of p50, as a share of it, from which on that is told."""
COARSE = 20
"""A median of fewer steps of the clock than this is told to be coarse."""
NEVER_MS = 1e8
"""A day: no duration of a measurement is longer."""

CONTROL = "\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069"
"""Characters that steer a terminal, break lines, or turn the direction of writing."""
Text = Annotated[str, StringConstraints(max_length=200, pattern=f"^[^{CONTROL}]*$")]
Milliseconds = Annotated[float, Field(ge=0, le=NEVER_MS)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
PhoneId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class UnfitError(ValueError):
    """Something that was posted does not fit what was to be done."""


class _Posted(BaseModel):
    """Strict: a page of this version sends exactly this."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Hello(_Posted):
    """A page that was opened says on what."""

    phone: PhoneId
    device: Text
    system: Text
    browser: Text
    facts: tuple[Text, ...] = Field(max_length=12)
    ways: int = Field(ge=0, le=8)
    """In how many ways it will run each file."""


class Progress(_Posted):
    """Sign of life."""

    phone: PhoneId
    doing: Text
    share: float = Field(ge=0, le=1)


class Goodbye(_Posted):
    """It is through."""

    phone: PhoneId


class Figures(_Posted):
    """One file in one way, or why it did not run."""

    phone: PhoneId
    file: int = Field(ge=0, le=99)
    how: Text
    kind: Literal["wasm", "webgpu"]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    error: Text | None
    start_ms: Milliseconds | None
    load_ms: Milliseconds | None
    first_ms: Milliseconds | None
    samples_ms: tuple[Milliseconds, ...] = Field(max_length=MOST_SAMPLES)
    overhead_ms: tuple[Milliseconds, ...] = Field(max_length=MOST_SAMPLES)
    """Samples of the empty file."""
    clock_ms: Milliseconds | None
    curve_ms: tuple[Milliseconds, ...] = Field(max_length=MOST_WINDOWS)
    """Medians of windows."""
    curve_s: tuple[Seconds, ...] = Field(max_length=MOST_WINDOWS)
    """When each window ended, from the first's start on."""
    golden: tuple[tuple[float | None, ...], ...] = Field(max_length=64)
    """Logits [n, classes]; None for one that is no finite number."""
    named: tuple[int, ...] = Field(max_length=4096)
    """Class of each sample image."""
    hidden: bool
    """Whether the page was in the background meanwhile."""


def figures(told: Figures, job: Job) -> PhoneFile:
    """What the report says of it.

    Raises `UnfitError` where it does not fit the job: another file, another number of answers.
    """
    if told.file >= len(job.files):
        raise UnfitError(f"there is no file {told.file}")
    file = job.files[told.file]
    assert file.row.sha256 is not None
    if told.sha256 != file.row.sha256:
        raise UnfitError(f"the phone ran other bytes than those of {file.row.title}")
    plain = PhoneFile(title=file.row.title, sha256=told.sha256, how=told.how)
    if told.error is not None:
        return plain.model_copy(update={"skipped": told.error})
    if len(told.curve_ms) != len(told.curve_s):
        raise UnfitError("a curve whose windows have no end")
    if not told.samples_ms:
        raise UnfitError("neither latencies nor a reason why there are none")
    p50, p90, p99 = percentiles(np.array(told.samples_ms) * 1e6)
    half = half_width([round(1e6 * ms) for ms in told.samples_ms])
    interval = (p50 * (1 - half), p50 * (1 + half)) if half < 1 else None
    overhead = float(np.median(told.overhead_ms)) if told.overhead_ms else None
    return plain.model_copy(
        update={
            "start_ms": told.start_ms,
            "load_ms": told.load_ms,
            "first_ms": told.first_ms,
            **{"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "p50_ci95": interval},
            "n": len(told.samples_ms),
            "overhead_ms": overhead,
            "clock_ms": told.clock_ms,
            "curve_ms": told.curve_ms,
            "curve_s": told.curve_s,
            "doubts": tuple(_doubts(told, p50, half)),
            **_golden(told.golden, file, job),
            **_accuracy(told.named, file, job),
        }
    )


def _doubts(told: Figures, p50: float, half: float) -> list[str]:
    found = []
    if half > UNSURE:
        found.append(f"p50 is known to ±{half:.0%} only" if half < 1 else "p50 is of few samples")
    if len(told.samples_ms) == MOST_SAMPLES:
        found.append(f"latencies are of its first {MOST_SAMPLES:,} inferences")
    if told.hidden:
        found.append("the page was in the background meanwhile, where browsers run slower")
    if told.clock_ms and p50 < COARSE * told.clock_ms:
        found.append(f"the browser's clock has steps of {told.clock_ms:.3g} ms")
    return found


def _golden(
    answers: Sequence[Sequence[float | None]], file: File, job: Job
) -> dict[str, tuple[int, int] | str | None]:
    if file.expected is None:
        return {}
    expected, labels = file.expected, list(job.report.labels)
    if len(answers) != len(expected):
        raise UnfitError(f"{len(answers)} golden answers, not {len(expected)}")
    faults = []
    for number, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        values = np.array([np.nan if x is None else x for x in answer], np.float64)
        _, fault = job.compare(values, wanted, labels, file.tolerance)
        if fault:
            faults.append(f"{number:02}.png: {fault}")
    right = len(expected) - len(faults)
    return {"golden": (right, len(expected)), "golden_fault": next(iter(faults), None)}


def _accuracy(named: Sequence[int], file: File, job: Job) -> dict[str, object]:
    labels: NDArray[np.int64] = job.sample_labels
    if len(named) != len(labels):
        raise UnfitError(f"{len(named)} classes for {len(labels)} images")
    if any(not 0 <= each < len(job.report.labels) for each in named):
        raise UnfitError("a class that is none")
    if not named:
        return {}
    right = int(np.count_nonzero(np.array(named) == labels))
    here = file.row.correctness()
    return {
        "top1": right / len(labels),
        "top1_ci95": wilson(right, len(labels)),
        "images": len(labels),
        "here_top1": None if here is None else float(here[job.sample_rows].mean()),
    }
