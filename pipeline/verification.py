"""Whether every exported file answers as the student does, and if not, from which layer on.

The measure stage finds out how far the answers are apart; here that is held against the format's
tolerance. A file beyond it ends the run: it must not reach a phone as one of several to choose
from. What was measured is in the store, so that a run with other settings goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import models
from benchmarks.stats import paired_difference
from pipeline import departure
from pipeline.context import Context
from pipeline.errors import PipelineError, VerificationError
from pipeline.images import Images, open_split, spread
from pipeline.machine import cores
from pipeline.records import Artifact, Checkpoint, Dataset, Measurement
from pipeline.stages.export import Export
from pipeline.stages.measure import answers, relative_difference
from pipeline.tolerances import Tolerance

LOOKED_INTO = 16
"""Test images whose way through the layers is followed."""
SWAPPED = 64
"""Test images that the student is shown with red and blue swapped, too."""


class _Fault(NamedTuple):
    told: str
    key: Literal["max_difference", "max_drop"] | None = None
    """The setting that allows more of it; None for what no setting allows."""


def verify(
    context: Context,
    export: Export,
    student: tuple[Checkpoint, Measurement],
    files: Iterable[tuple[Artifact, Measurement]],
    dataset: Dataset,
    *,
    labelled: bool = True,
) -> None:
    """Raise `VerificationError` naming every file beyond its tolerance, and where it departs.

    A file that takes red for blue is named whatever its tolerance. Accuracy counts only where the
    images are `labelled`.
    """
    test = open_split(dataset, "test")
    reference = answers(student[1])
    swapped = _Swapped(student[0], test) if dataset.input.channels == 3 else None
    beyond, told = [], []
    for artifact, found in files:
        if found.parity is None:
            continue
        tolerance = export.settings_of(artifact.format).tolerance(artifact.precision)
        labels = test.labels if labelled else None
        faults = list(_faults(found, reference, labels, tolerance))
        if swapped is not None:
            faults += swapped.fault(answers(found), reference, artifact.output)
        if faults:
            pixels = test[spread(min(LOOKED_INTO, len(test)), len(test))]
            where = _where(context, student[0], artifact, pixels)
            beyond.append((artifact, faults))
            told.append(f"{artifact.title}: {'; '.join(fault.told for fault in faults)}. {where}")
    if beyond:
        raise VerificationError(
            "exported files do not answer as the student does:\n" + "\n".join(told),
            remedy=_remedy(beyond),
        )


def _remedy(beyond: list[tuple[Artifact, list[_Fault]]]) -> str:
    """Tolerances are named for files all of whose faults have one."""
    keys = dict[str, None]()
    hopeless = []
    for artifact, faults in beyond:
        if any(fault.key is None for fault in faults):
            hopeless.append(artifact.title)
        else:
            keys |= dict.fromkeys(f"export.{artifact.format}.{fault.key}" for fault in faults)
    more = f", or allow more with {', '.join(keys)}" if keys else ""
    none = f" No setting lets {', '.join(hopeless)} pass." if hopeless else ""
    return (
        f"Leave the file out (`precisions` of its format){more}.{none} Everything measured is kept."
    )


def _faults(
    found: Measurement,
    reference: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    tolerance: Tolerance,
) -> Iterator[_Fault]:
    """What is beyond `tolerance`."""
    parity = found.parity
    assert parity is not None
    if not isfinite(parity.mean_abs_diff) or not isfinite(parity.relative):
        yield _Fault("some answers are not numbers")
        return
    if parity.relative > tolerance.difference:
        yield _Fault(
            f"its answers are {parity.relative:.3g} of the student's standard deviation away on "
            f"average, allowed are {tolerance.difference:g}",
            "max_difference",
        )
    if labels is None:
        return
    right = answers(found).argmax(1) == labels
    change = paired_difference(reference.argmax(1) == labels, right)
    if -100 * change.ci95[1] > tolerance.drop:
        yield _Fault(
            f"it loses {-100 * change.difference:.2f} points of top-1 (at least "
            f"{-100 * change.ci95[1]:.2f} for certain), allowed are {tolerance.drop:g}",
            "max_drop",
        )


class _Swapped:
    """The commonest fault of all: red taken for blue, which moves a student's answers by less than
    int8 may."""

    def __init__(self, student: Checkpoint, test: Images) -> None:
        import torch

        self._rows = spread(SWAPPED, len(test))
        images = np.ascontiguousarray(test[self._rows][..., ::-1])
        with torch.inference_mode():
            self._logits = models.load(student)(torch.from_numpy(images)).numpy()

    def fault(
        self, given: NDArray[np.float32], reference: NDArray[np.float32], output: str
    ) -> list[_Fault]:
        """The fault, if the answers `given` to all test images have it."""
        given = given[self._rows]
        right = relative_difference(given, reference[self._rows], output)
        wrong = relative_difference(given, self._logits, output)
        # Where the images are nearly grey the two are one, and rounding decides between them.
        if not wrong < right / 2:
            return []
        told = (
            "it takes red for blue: the student's answers to images with the two swapped are "
            f"{wrong:.2g} of a standard deviation from its own, those to the images {right:.2g}"
        )
        return [_Fault(told)]


def _where(
    context: Context, student: Checkpoint, artifact: Artifact, pixels: NDArray[np.uint8]
) -> str:
    try:
        return departure.sentence(student, artifact, pixels, context.threads or cores())
    except Exception as error:  # what is looked into is broken: anything may come of it
        reason = error.message if isinstance(error, PipelineError) else repr(error)
        return f"Where it departs could not be found: {reason}."
