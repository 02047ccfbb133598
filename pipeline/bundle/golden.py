"""Test images with the answers to expect, so that an app can be checked without the data set.

Sixteen images, spread over the classes, lie in ``golden/`` as lossless PNG of exactly the input
size; ``expected.json`` has, for every file that was executed here, its top-5 for each of them.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.bundle.layout import place
from pipeline.images import Images, open_split, spread
from pipeline.records import Artifact, Dataset, Measurement, Precision

FOLDER = "golden"
EXPECTED = f"{FOLDER}/expected.json"
COUNT = 16
TOP = 5
MOST = 0.1
"""By how much a probability may differ at the most: else nothing could be told from one."""
SHARE: dict[Precision, float] = {
    # Of the standard deviation of a file's logits, as found on 400 images between three CPUs
    # (AVX512-VNNI, emulated Haswell and cortex-a76): at most 1.2e-6 in float32, where sums are
    # taken in another order, and 0.27 in int8, where kernels round halves differently and the
    # older x86 adds with saturation.
    "fp32": 0.001,
    # Also the sums may be rounded to 11 bits, and GPUs and NPUs differ in when they do it.
    **dict.fromkeys(("fp16", "w8a16", "w6a16", "w4a16"), 0.05),
    "int8": 0.4,
}
TOLERANCE = (
    "A score may be off by `tolerance`, and the best label must be the same, unless the two best "
    "expected scores are closer to each other than that. The same file answers a little "
    "differently on another processor: float32 sums are taken in another order (allowed: 0.001 "
    "standard deviations of the file's logits over the test images), 16-bit arithmetic rounds at "
    "other places (0.05), and int8 kernels of other CPUs round or saturate differently, which "
    "moves whole steps of the activations (0.4). Where a file answers with probabilities, half of "
    "that holds, as a probability moves by at most half of what its logits do, and 0.1 at the most."
)
TINY = 1e-7
"""Probabilities below this are rounding."""


def rows(labels: NDArray[np.int64], count: int = COUNT) -> NDArray[np.int64]:
    """Rows of `count` images: of every class as many as of the others, or one each of some."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    rank = np.arange(len(order)) - starts  # which image of its class it is
    firsts = order[rank == 0]
    if len(firsts) >= count:
        return firsts[spread(count, len(firsts))]
    return order[np.argsort(rank, kind="stable")][:count]


def write(
    dataset: Dataset, artifacts: Sequence[tuple[Artifact, Measurement]], bundle: Path
) -> None:
    """Write the images and what each file answers to them."""
    test = open_split(dataset, "test")
    chosen = rows(test.labels)
    (bundle / FOLDER).mkdir()
    body = {
        "schema": 1,
        "top": min(TOP, len(dataset.labels)),
        "tolerance_of_what": TOLERANCE,
        "images": _images(test, chosen, dataset, bundle),
        "files": [
            _expected(artifact, found, chosen, dataset.labels)
            for artifact, found in artifacts
            if artifact.file is not None
        ],
    }
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
    (bundle / EXPECTED).write_text(f"{text}\n", encoding="utf-8", newline="\n")


def _images(
    test: Images, chosen: NDArray[np.int64], dataset: Dataset, bundle: Path
) -> list[dict[str, Any]]:
    told = []
    for number, (row, pixels) in enumerate(zip(chosen, test[chosen], strict=True)):
        file = f"{number:02}.png"
        picture = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        Image.fromarray(np.ascontiguousarray(picture)).save(bundle / FOLDER / file)
        label = dataset.labels[test.labels[row]]
        told.append({"file": file, "test_image": int(row), "label": label})
    return told


def _expected(
    artifact: Artifact, found: Measurement, chosen: NDArray[np.int64], labels: Sequence[str]
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "path": place(artifact),
        "format": artifact.format,
        "output": artifact.output,
    }
    if found.accuracy is None:
        why = found.skipped or artifact.skipped or "it was not executed here"
        return {**facts, "answers": None, "reason": why}
    scores = np.load(found.folder / found.accuracy.predictions, mmap_mode="r")
    return {
        **facts,
        "computed_with": found.accuracy.evaluated_with,
        "tolerance": tolerance(scores, artifact.output, artifact.precision),
        "answers": [_best(scores[row], labels) for row in chosen],
    }


def _best(scores: NDArray[np.float32], labels: Sequence[str]) -> list[list[Any]]:
    """The best labels with their scores; None for a score that is no number."""
    best = np.argsort(-scores, kind="stable")[:TOP]
    return [[labels[i], _number(float(scores[i]))] for i in best]


def _number(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def tolerance(scores: NDArray[np.float32], output: str, precision: Precision) -> float | None:
    """By how much an answer may differ on another machine; None where answers are no numbers."""
    values = np.asarray(scores, np.float64)
    if output == "probabilities":  # back to logits, up to a constant an image
        values = np.log(np.maximum(values, TINY))
        values -= values.mean(axis=1, keepdims=True)
    share = SHARE[precision] * (0.5 if output == "probabilities" else 1)
    found = share * float(values.std())
    if output == "probabilities":
        found = min(found, MOST)
    return float(f"{found:.3g}") if math.isfinite(found) else None
