"""Where an exported file stops computing what the student computes: the first layer that departs.

The student's layers are compared with the file's intermediate values *by value*: no converter keeps
names, and each fuses, transposes and leaves out other things. A layer of the student is found where
the file computes, anywhere, as many numbers that are the same. The first that is not found, where
those behind it are off, too, is the guilty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

import models
import runtime
from pipeline.errors import CannotRunHereError, UnavailableError
from pipeline.records import Artifact, Checkpoint, Precision

if TYPE_CHECKING:
    from models.classifier import Classifier
    from models.landmarks import Landmark

Floats = NDArray[np.float32]

LIMITS: Mapping[Precision, float] = {
    # Rounding alone: up to 2e-6 and 6e-3 in healthy files of the three kinds of students.
    "fp32": 0.001,
    "fp16": 0.02,
    # Errors add up from layer to layer, to 0.22 in healthy int8 files of four trained students, so
    # these are wide; `JUMP` tells a fault from that.
    "int8": 0.25,
    "w8a16": 0.1,
    "w6a16": 0.2,
    "w4a16": 0.5,
}
"""Up to which relative error (root mean square, in standard deviations of the student's value) a
value of the file is the student's. An unrelated value is about 1 away or more."""
AT_INPUT = LIMITS["fp16"]
"""The same of the normalised pixels, in which no errors have added up yet."""
JUMP = 2.0
"""By how much an error exceeds all earlier ones where it is a fault, and no sum of small ones."""
BEHIND, QUIET = 3, 0.1
"""How many layers behind a fault are asked whether they are off, too; and the share of a limit up
to which none is."""
UNLIKE = 1e6
"""In place of the infinite error of what is in no form in a file."""
PIXELS = 16 * 64 * 64
"""Of the images that are looked at together: every value of all layers is held meanwhile."""
FEWEST = 4
OTHERWISE = "mean or std are other numbers"
INPUT, ANSWERS = "the input", "the answers"


class Departure(NamedTuple):
    """Where a file departs from the student."""

    layer: str
    """The student's module whose result is the first that differs; `INPUT` or `ANSWERS` where it
    is what comes before all layers, or after."""
    error: float
    """Relative error there."""
    before: float
    """Largest relative error of the layers before; 0 where there are none."""
    words: str
    """A sentence without its full stop."""


def sentence(
    student: Checkpoint, artifact: Artifact, images: NDArray[np.uint8], threads: int
) -> str:
    """What `first` finds, as a sentence for people, and what is to be said where that is nothing.

    Raises what `first` raises, but for `UnavailableError`.
    """
    try:
        found, otherwise = _look(student, artifact, images, threads)
    except UnavailableError as error:
        return f"Where it departs is not known: {error.message}."
    words = found.words if found else otherwise
    return f"{words[0].upper()}{words[1:]}."


def first(
    student: Checkpoint, artifact: Artifact, images: NDArray[np.uint8], threads: int
) -> Departure | None:
    """Where the file of `artifact` first departs from `student`; None where it does not.

    Where a compressed file's errors add up without a jump, its last layer is what departs, and the
    layer with the largest step is named.

    `images` are uint8 [n, size, size, channels]; a dozen tell enough, and of large ones fewer are
    looked at. Raises `CannotRunHereError` where the file's runtime does not tell what happens
    inside, and what that runtime raises for a file that it cannot open.
    """
    return _look(student, artifact, images, threads)[0]


def _look(
    student: Checkpoint, artifact: Artifact, images: NDArray[np.uint8], threads: int
) -> tuple[Departure | None, str]:
    """Where it departs, and what is to be said where it does not."""
    name = runtime.for_file(artifact.format, artifact.path.name)
    intermediates: Any = getattr(runtime.load(name), "intermediates", None) if name else None
    if name is None or intermediates is None:
        keeper = f"the runtime {name}" if name else "a format without a runtime here"
        raise CannotRunHereError(f"{keeper} keeps its intermediate values to itself")
    from models.landmarks import Landmark, layers_of

    images = images[: max(FEWEST, PIXELS // (images.shape[1] * images.shape[2]))]
    limit = LIMITS[artifact.precision]
    classifier = models.load(student)
    with _torch_threads(threads):
        pixels = _normalised(classifier, images)
        layers = layers_of(classifier.network, pixels)
    if not layers:
        return None, "the student answers the same to every image, so nothing departs"
    marks = [Landmark(INPUT, pixels), *layers]
    (at_input, *errors), alike = _nearest(marks, intermediates(artifact.path, images))
    departed = _judge(layers, errors, limit)
    if departed is None or departed.layer == layers[-1].layer:
        answers = runtime.load(name).open(artifact.path, threads).run(images)
        departed = _of_answers(layers[-1].value, answers, artifact, departed)
    elif departed.layer == layers[0].layer and at_input > AT_INPUT:
        tried = list(_inputs(pixels, alike, student))
        with _torch_threads(threads):
            given = [layers_of(classifier.network, value)[0] for _, value in tried]
        again, _ = _nearest(given, intermediates(artifact.path, images))
        found = [(words, error) for (words, _), error in zip(tried, again, strict=True)]
        departed = _of_input(found, departed, limit)
    return departed, _growth(layers, errors)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _normalised(classifier: Classifier, images: NDArray[np.uint8]) -> Floats:
    """What the first layer reads, float32 [n, channels, size, size]."""
    import torch

    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return (planes * classifier.scale + classifier.shift).contiguous().numpy()


def _nearest(
    marks: Sequence[Landmark], values: Iterable[tuple[str, Floats]]
) -> tuple[list[float], list[Floats]]:
    """For each of `marks` the error of the nearest of `values`; and those as large as the first."""
    errors: list[float] = [np.inf] * len(marks)
    alike: list[Floats] = []
    for _, value in values:
        if value.size == marks[0].value.size:
            alike.append(value)
        for at, mark in enumerate(marks):
            if value.size == mark.value.size:
                errors[at] = min(errors[at], mark.error(value))
    return errors, alike


def _judge(layers: Sequence[Landmark], errors: Sequence[float], limit: float) -> Departure | None:
    """The layer from which on the file is another; None where there is none."""
    at, before = _jump(errors, limit)
    if at is None:
        if errors[-1] <= limit:
            return None
        growth = _growth(layers, errors)
        return Departure(layers[_largest_step(errors)].layer, errors[-1], before, growth)
    layer, error = layers[at].layer, errors[at]
    words = f"it first departs at {layer} (relative error {error:.2g}"
    words += f"; the layers before it agree within {before:.2g})" if at else ")"
    return Departure(layer, error, before, words)


def _jump(errors: Sequence[float], limit: float) -> tuple[int | None, float]:
    """The first error beyond `limit` that stands out, and the largest before; None without one.

    The layers behind a fault are off, too, if less: one that saturates lets little of it through.
    Where they are not, the file only lacks a layer that was expected in it.
    """
    before = 0.0
    for at, error in enumerate(errors):
        if error <= limit or error < JUMP * before:
            before = max(before, error)
            continue
        behind = errors[at + 1 : at + 1 + BEHIND]
        if not behind or np.median(behind) >= JUMP * max(before, QUIET * limit):
            return at, before
    return None, before


def _largest_step(errors: Sequence[float]) -> int:
    return int(np.diff(_highest(errors)).argmax())


def _highest(errors: Sequence[float]) -> NDArray[np.float64]:
    """The largest error before each layer, and in the end of all."""
    return np.maximum.accumulate(np.minimum([0.0, *errors], UNLIKE))


def _growth(layers: Sequence[Landmark], errors: Sequence[float]) -> str:
    """How the errors grow from layer to layer, in words."""
    highest, at = _highest(errors), _largest_step(errors)
    return (
        f"no layer departs by itself: the error grows gradually, to {errors[-1]:.2g} at the last "
        f"layer; the largest step is at {layers[at].layer} ({highest[at]:.2g} to {errors[at]:.2g})"
    )


def _inputs(
    pixels: Floats, alike: Sequence[Floats], student: Checkpoint
) -> Iterator[tuple[str, Floats]]:
    """What the first layer may be given in place of the normalised `pixels`, in words and values.

    The file's own values, where it has any of that size; and common mistakes, since a file may
    have folded the normalisation into its first layer.
    """
    spec = student.input
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (spec.mean, spec.std))
    plain = pixels * std + mean
    if spec.channels == 3:
        yield "the colour channels are in reverse order", (plain[:, ::-1] - mean) / std
        yield (
            "mean and std are in the reverse order of the channels",
            (plain - mean[::-1]) / std[::-1],
        )
    yield "height and width are swapped", pixels.transpose(0, 1, 3, 2)
    yield "the pixels are not normalised, but 0 to 1", plain
    yield "the pixels are not normalised, but 0 to 255", plain * 255
    yield "the pixels are not normalised, but -1 to 1", plain * 2 - 1
    last = (len(pixels), spec.size, spec.size, spec.channels)
    for value in alike:
        if value.shape == last and value.shape != pixels.shape:
            value = value.transpose(0, 3, 1, 2)
        yield OTHERWISE, value.reshape(pixels.shape)


def _of_input(tried: Sequence[tuple[str, float]], departed: Departure, limit: float) -> Departure:
    """Whether the first layer is right, and was given what is not."""
    named = [each for each in tried if each[0] != OTHERWISE]
    for words, error in (min(each, key=itemgetter(1)) for each in (named, tried)):
        if error <= limit and JUMP * error < departed.error:
            said = f"at the input: normalisation, channel order or layout differ; {words}"
            return Departure(INPUT, departed.error, 0.0, said)
    said = f"{departed.words}: its weights, or how the pixels before it are normalised or laid out"
    return departed._replace(words=said)


def _of_answers(
    logits: Floats, answers: Floats, artifact: Artifact, departed: Departure | None
) -> Departure | None:
    """What is wrong with the answers, where no layer but perhaps the last departs."""
    limit = LIMITS[artifact.precision]
    forms = {"logits": logits, "probabilities": softmax(logits, axis=1)}
    wanted = forms.pop(artifact.output)
    error = _error(wanted, answers)
    if error <= limit:
        return None
    ((kind, other),) = forms.items()
    before = departed.before if departed else 0.0
    said = "its layers agree to the last, and the answers depart: "
    if answers.shape != wanted.shape:
        said += f"they are {list(answers.shape)} where {list(wanted.shape)} are expected"
    elif _error(other, answers) <= limit:
        said += f"they are {kind}, not {artifact.output}"
    elif _error(wanted, answers[:, _order(wanted, answers)]) <= limit:
        said += "the classes (the labels) are in another order"
    elif departed:
        return departed
    else:
        said += f"output, softmax or the order of the labels (relative error {error:.2g})"
    return Departure(ANSWERS, error, before, said)


def _error(wanted: Floats, answers: Floats) -> float:
    from models.landmarks import Landmark

    same = wanted.shape == answers.shape
    return Landmark(ANSWERS, wanted).error(answers) if same else np.inf


def _order(wanted: Floats, answers: Floats) -> NDArray[np.int64]:
    """For each class of `wanted` the class of `answers` that is most like it."""
    apart = np.abs(wanted[:, :, None] - answers[:, None, :]).mean(0)
    return apart.argmin(1)
