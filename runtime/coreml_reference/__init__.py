"""Core ML's ML programs executed without a Mac: what the saved .mlpackage says, done step by step.

Core ML itself runs on Apple's systems only, and coremltools refuses to predict elsewhere. This
reference executor reads the saved file (`package`), makes its compressed weights dense
(`constants`), understands its program (`program`) and computes it in torch (`operators`,
`execution`), with every value rounded to float16 where the file says float16. It is written from
the published schema and documentation, not from the exporter, so a file that is wrong answers
wrong here too: swapped channels, a bad scale, an index into the wrong table.

It shows that the file is what it should be, and its accuracy. It does not show a phone's speed.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ExportError, install
from pipeline.machine import package_version
from runtime import Availability

if TYPE_CHECKING:
    from runtime.coreml_reference.execution import Executor
    from runtime.coreml_reference.program import Image

FORMATS = ("coreml",)
VERSION = 1
TIMED = False
CAVEAT = (
    "Executed by this project's reference executor, off a Mac: every value is rounded to float16 "
    "where the file says so, sums are float32, so the rounding within an operator of a Neural "
    "Engine or GPU, and their speed, are not shown."
)
PIXELS = 2**18
"""Pixels of the images that are executed at once: more would only leave the processor's caches."""


def availability() -> Availability:
    """It needs coremltools for the schema of the files."""
    if importlib.util.find_spec("coremltools") is None:
        return Availability(
            False,
            "coremltools is not installed",
            remedy=install("coreml"),
        )
    return Availability(
        True,
        f"reference executor, torch {package_version('torch')}, "
        f"coremltools {package_version('coremltools')}",
    )


def warm_import() -> None:
    """Import torch and the schema. Raises `NotInstalledError` without coremltools."""
    from runtime.coreml_reference import execution, package  # noqa: F401

    package.schema()


class ReferenceSession:
    """One .mlpackage: uint8 NHWC images in, a float32 number for every class out."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._executor, self._image = _load(path)
        self.labels = self._executor.program.labels
        """Of the classes, in the order of the numbers; None where the file names none."""
        self.name = f"coreml reference (torch {torch.__version__})"

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Numbers [batch, classes] of uint8 `images` [batch, height, width, channels].

        They are what the file gives for its labels, in that order: probabilities or logits.
        Raises `ExportError` where the images are not what the file takes.
        """
        at_once = max(1, PIXELS // (self._image.height * self._image.width))
        parts = [images[i : i + at_once] for i in range(0, len(images), at_once)]
        answers = [self._executor.answers(_feeds(self._image, part)) for part in parts]
        if not answers:
            return np.zeros((0, len(self.labels or ())), np.float32)
        return np.concatenate([each.reshape(len(each), -1) for each in answers])


def open(path: Path, threads: int) -> ReferenceSession:
    """Load `path` with `threads` threads.

    Raises `NotInstalledError` without coremltools, and `ExportError` where the package is damaged
    or its program cannot be executed, naming every operator that is unknown here.
    """
    return ReferenceSession(path, threads)


def intermediates(
    path: Path, images: NDArray[np.uint8]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and float32 value [batch, ...] of what each operator of `path` computes, in order.

    `images` is uint8 [batch, height, width, channels]; all of them are executed at once. Names
    are the program's own; constants are left out. Raises as `open` does.
    """
    executor, image = _load(path)
    for operation, values in executor.steps(_feeds(image, images)):
        for (name, _), value in zip(operation.outputs, values, strict=True):
            yield name, value.float().numpy()


def read_metadata(path: Path) -> dict[str, str]:
    """What the package says of itself. Raises as `open` does."""
    from runtime.coreml_reference import package

    return dict(package.read(path).spec.description.metadata.userDefined)


def _load(path: Path) -> "tuple[Executor, Image]":
    from runtime.coreml_reference import operators, package, program
    from runtime.coreml_reference.execution import Executor

    parsed = program.parse(package.read(path), operators.TABLE)
    image = parsed.image()
    executor = Executor(parsed)
    # One black image, so that whatever cannot be executed is told of now.
    black = np.zeros((1, image.height, image.width, image.channels), np.uint8)
    answer = executor.answers(_feeds(image, black))
    if parsed.labels is not None and answer.size != len(parsed.labels):
        raise ExportError(
            f"{path} names {len(parsed.labels)} classes and gives {answer.size} numbers",
            "Export it again.",
        )
    return executor, image


def _feeds(image: "Image", images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What Core ML makes of images: float32 [batch, channels, height, width] of 0..255."""
    shape = (image.height, image.width, image.channels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise ExportError(
            f"images are {images.dtype} {list(images.shape)}, and the file takes uint8 "
            f"[batch, {', '.join(map(str, shape))}]"
        )
    if image.colour == "BGR":
        images = images[..., ::-1]
    return {image.name: images.transpose(0, 3, 1, 2).astype(np.float32)}
