"""LiteRT (once TensorFlow Lite) on the CPU, with XNNPACK: what runs the .tflite files on Android.

Its library writes to file descriptor 2, past Python; `silence` holds that back.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ExportError, install, require
from pipeline.machine import package_version
from runtime import Availability, silence

FORMATS = ("litert",)
VERSION = 1
TIMED = True
CAVEAT = ""
EXTRA = "litert"
FOREIGN = ("TFLITE_METADATA", "min_runtime_version")
"""Entries of a file's metadata that are no texts."""


def availability() -> Availability:
    """Whether LiteRT is installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        return Availability(False, "ai-edge-litert is not installed", remedy=install(EXTRA))
    return Availability(True, f"ai-edge-litert {package_version('ai-edge-litert')}, XNNPACK")


@silence()
def warm_import() -> None:
    """Import LiteRT, so that a load time does not count it."""
    require("ai_edge_litert.interpreter", EXTRA)


class LiteRTSession:
    """One .tflite file of batch 1 in LiteRT, uint8 NHWC images in, float32 answers out."""

    def __init__(self, path: Path, threads: int) -> None:
        self._interpreter = _interpreter(path, threads)
        (self._taken,) = self._interpreter.get_input_details()
        (self._given,) = self._interpreter.get_output_details()
        self.name = f"ai-edge-litert {package_version('ai-edge-litert')} (XNNPACK)"

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answers [batch, classes] of uint8 `images` [batch, height, width, channels]."""
        answers = np.empty((len(images), self._given["shape"][-1]), np.float32)
        for number, image in enumerate(images):
            self._interpreter.set_tensor(self._taken["index"], image[None])
            self._interpreter.invoke()
            answers[number] = self._interpreter.get_tensor(self._given["index"])[0]
        return answers


def open(path: Path, threads: int) -> LiteRTSession:
    """Load `path`, to be run with `threads` threads.

    Raises `ExportError` if it cannot be loaded, `NotInstalledError` without LiteRT.
    """
    return LiteRTSession(path, threads)


@silence()
def _interpreter(path: Path, threads: int = 1, content: bytes | None = None, **options: Any) -> Any:
    """An interpreter of the file at `path`, or of its `content`, ready to run."""
    library = require("ai_edge_litert.interpreter", EXTRA)
    resolver = library.OpResolverType
    if options.get("experimental_preserve_all_tensors"):
        # XNNPACK would run several operators as one, and not show what is between them.
        options["experimental_op_resolver_type"] = resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = library.Interpreter(
            model_path=None if content else str(path),
            model_content=content,
            num_threads=threads,
            **options,
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"LiteRT cannot load {path}: {error}", remedy="Export the file again."
        ) from error
    return interpreter


def watch(
    path: Path, inputs: Iterable[NDArray[Any]], content: bytes | None = None
) -> Iterator[list[tuple[Mapping[str, Any], NDArray[Any]]]]:
    """For each of `inputs`, of the shape and type that the file takes, all that is computed of it.

    That is the outputs of all operators in the order of execution: LiteRT's details of the tensor
    ("name", "quantization", ...), and a copy of its values as they are. They are computed by
    LiteRT's own kernels, whose int8 rounds a little differently from XNNPACK's.

    Raises `ExportError` if `path`, or its `content`, cannot be loaded.
    """
    interpreter = _interpreter(path, content=content, experimental_preserve_all_tensors=True)
    (taken,) = interpreter.get_input_details()
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    order = [index for op in interpreter._get_ops_details() for index in op["outputs"]]
    for values in inputs:
        interpreter.set_tensor(taken["index"], values)
        interpreter.invoke()
        yield [(details[index], interpreter.get_tensor(index)) for index in order]


def intermediates(
    path: Path, images: NDArray[np.uint8]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and value [batch, ...] of each operator's output, in the order of execution.

    `images` are uint8 [batch, height, width, channels]; int8 values are dequantized, and maps
    are NHWC. A name is that of the layer that ends there, such as "features.1.conv.0.2", with an
    operator behind a slash where it does not end yet. All values of all images are held at once.
    Raises `ExportError` if the file cannot be loaded.
    """
    runs = list(watch(path, (image[None] for image in images)))
    for outputs in zip(*runs, strict=True):
        details = outputs[0][0]
        yield details["name"], _as_float(np.concatenate([each for _, each in outputs]), details)


def _as_float(values: NDArray[Any], details: Mapping[str, Any]) -> NDArray[np.float32]:
    scale, zero_point = details["quantization"]
    if scale and values.dtype.kind in "iu":
        return ((values.astype(np.float32) - zero_point) * scale).astype(np.float32)
    return values.astype(np.float32)


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says of itself: the texts among its metadata, by name.

    Raises `ExportError` where it is no .tflite file, `NotInstalledError` without LiteRT, whose
    schema it needs, not its interpreter.
    """
    with silence():
        schema = require("ai_edge_litert.schema_py_generated", EXTRA)
    content = path.read_bytes()
    try:
        if not schema.Model.ModelBufferHasIdentifier(content, 0):
            raise ValueError("it is no .tflite file")
        model = schema.Model.GetRootAs(content, 0)
        entries = [model.Metadata(number) for number in range(model.MetadataLength())]
        return {
            entry.Name().decode(): model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().decode()
            for entry in entries
            if entry.Name().decode() not in FOREIGN
        }
    except (AttributeError, IndexError, struct.error, TypeError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read: {error}", remedy="Export the file again."
        ) from error
