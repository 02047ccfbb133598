"""Test images on which teacher, student and int8 name different classes, small enough for a page.

A difference of a tenth of a point says little until somebody has seen the images behind it.
"""

import base64
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict

from pipeline import confidence
from pipeline.confidence import Output
from pipeline.errors import DataError
from pipeline.images import Images, Pixels
from pipeline.records import Record

SHOWN = 12
SMALL = 32
"""Pixels a side up to which an image is kept as it is, as PNG."""
SIDE = 96
"""Pixels a side that larger ones are brought to, as JPEG: a dozen stay below 150 kB."""
QUALITY = 80


class Answers(NamedTuple):
    """What a network or file said of the whole test split."""

    values: NDArray[np.floating]
    """[n, classes]."""
    output: Output = "logits"


class Said(Record):
    """What one of them said of an image."""

    model_config = ConfigDict(extra="ignore")

    named: int
    """Index of the class."""
    confidence: float | None = None
    """Its probability; None where that is no number."""


class Pictured(Record):
    """One image, and what was said of it."""

    model_config = ConfigDict(extra="ignore")

    index: int
    """Place in the test split, from 0."""
    truth: int
    """Index of the true class."""
    said: dict[str, Said]
    """By "teacher", "student" and "int8", as far as there are such."""
    image: str | None = None
    """A data URL; None where the image could not be read any more."""


class Disagreements(Record):
    """Images on which not all name the same class."""

    model_config = ConfigDict(extra="ignore")

    n: int
    """All there are."""
    int8: str | None = None
    """Which file "int8" is."""
    shown: tuple[Pictured, ...] = ()
    """First those of which int8 thinks otherwise than the student, then those of which the teacher
    does; in both the surest of the student first."""


def find(
    said: Mapping[str, Answers],
    labels: NDArray[np.integer],
    int8: str | None,
    images: Images | None,
) -> Disagreements | None:
    """The disagreements of `said`, by "student" and "teacher" or "int8" or both.

    None where there is nobody to disagree with the student. Only the images that are shown are
    decoded, from `images`, the test split.
    """
    if "student" not in said or len(said) < 2:
        return None
    named = {name: np.argmax(each.values, axis=1) for name, each in said.items()}
    apart = {name: each != named["student"] for name, each in named.items() if name != "student"}
    shown = _order(apart, _margin(said["student"].values))
    return Disagreements(
        n=int(np.count_nonzero(np.any(list(apart.values()), axis=0))),
        int8=int8 if "int8" in said else None,
        shown=tuple(
            Pictured(
                index=int(row),
                truth=int(labels[row]),
                said={name: _said(each, int(row)) for name, each in said.items()},
                image=_picture(images, int(row)),
            )
            for row in shown
        ),
    )


def _order(
    apart: Mapping[str, NDArray[np.bool_]], margin: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The images to show: where int8 is apart before the teacher, the largest margin first."""
    groups = [apart[name] for name in ("int8", "teacher") if name in apart]
    # The last key decides first; of equal margins the earlier image comes first.
    rank = np.select(groups, range(len(groups)), len(groups))
    order = np.lexsort((-margin, rank))
    return order[rank[order] < len(groups)][:SHOWN]


def _margin(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """By how much the largest answer exceeds the second; 0 where it cannot be told."""
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    two = np.partition(logits, -2, axis=1)[:, -2:].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(two[:, 1] - two[:, 0])


def _said(answers: Answers, row: int) -> Said:
    named = int(np.argmax(answers.values[row]))
    sure = float(confidence.probabilities(answers.values[row : row + 1], answers.output)[0, named])
    return Said(named=named, confidence=sure if np.isfinite(sure) else None)


def _picture(images: Images | None, row: int) -> str | None:
    if images is None:
        return None
    try:
        return data_url(images[np.array([row])][0])
    except (DataError, OSError):
        # The file may have gone since it was measured: the figures are no worse for it.
        return None


def data_url(pixels: Pixels) -> str:
    """The image [size, size, channels], uint8, as text that a page can show."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    file = io.BytesIO()
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    if kind == "png":
        image.save(file, "PNG", optimize=True)
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
