"""TensorRT for RTX: engines built ahead of time, finished by the driver's compiler on the GPU.

They are run as TensorRT's are. `inspect` is what can be said of one with no GPU, `read_network`
what can be said of its graph, for TensorRT too. Deserializing needs one, and so do the library's
checks behind the engine's header; but that header says which version wrote the engine, for which
GPUs and how long it is. NVIDIA does not document it: the places below were found by comparing
engines of version 1.7, and where they hold something else, that is said instead of guessing.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ExportError, require
from pipeline.machine import cuda_devices
from runtime import Availability, tensorrt

FORMATS = ("tensorrt_rtx",)
VERSION = 1
TIMED = True
CAVEAT = ""
read_metadata = tensorrt.read_metadata
LIBRARY = tensorrt.Library("tensorrt_rtx", "TensorRT for RTX", "tensorrt-rtx")

KINDS = {"FLOAT": "fp32", "HALF": "fp16"}
"""Names of types here; of others, their own in small letters."""

MAGIC = b"vtrt"
HEADER = struct.Struct("<4s4xQQ4B4sQ16xQ")
"""Magic, format, length of the file, version, magic, GPUs (one bit each), length of weights."""
SECTION = struct.Struct("<4s4xQQ")
"""Tag, place and length: first the program, then the weights."""
PROGRAM, WEIGHTS = b"NGNE", b"THGW"
GPUS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities by their bits, the lowest first."""
KERNEL = b"__global__"
"""Once in the source of each kernel that the program carries."""


class Reading(NamedTuple):
    """A network as TensorRT's parser read it."""

    layers: int
    takes: str
    """Type and shape of the input, where -1 is the batch."""
    gives: str
    products: dict[str, int]
    """Convolutions and matrix products by the types of what they multiply."""

    @property
    def line(self) -> str:
        """In one sentence."""
        kinds = ", ".join(f"{n} in {kind}" for kind, n in self.products.items())
        return (
            f"TensorRT's parser read {self.layers} layers from {self.takes} to {self.gives}; of "
            f"the {sum(self.products.values())} convolutions and matrix products, {kinds}."
        )


class Header(NamedTuple):
    """What an engine says of itself."""

    version: str
    """Of the library that wrote it."""
    compute_capabilities: tuple[str, ...]
    program_bytes: int
    weight_bytes: int
    kernels: int
    """Kernels whose source is in the program."""


class Inspection(NamedTuple):
    """What was found in an engine file with no GPU."""

    bytes: int
    verdict: str
    """What the library's own check says, in words."""
    header: Header | None
    """None where it is laid out in a way that is not known here."""

    @property
    def line(self) -> str:
        """In one sentence."""
        if self.header is None:
            return f"The engine's header is laid out in an unknown way; {self.verdict}."
        found = self.header
        return (
            f"The engine's header names version {found.version}, compute capability "
            f"{' and '.join(found.compute_capabilities)} and the file's own length, "
            f"{self.bytes:,} bytes: {found.weight_bytes:,} are weights and {found.program_bytes:,} "
            f"the program with the source of {found.kernels} kernels; {self.verdict}."
        )


def inspect(path: Path) -> Inspection:
    """What is in the engine at `path`.

    Raises `NotInstalledError` without the library, `ExportError` where it takes the file for no
    engine, or where the file is not as long as its header says.
    """
    trt = require(LIBRARY.module, LIBRARY.extra)
    content = path.read_bytes()
    verdict = _verdict(trt, content, path)
    magic, _, size, *version, again, gpus, weights = HEADER.unpack_from(content)
    program, section = (
        SECTION.unpack_from(content, HEADER.size + i * SECTION.size) for i in range(2)
    )
    layout = (magic, again, program[0], section[0]) == (MAGIC, MAGIC, PROGRAM, WEIGHTS)
    if not layout or section[2] != weights or gpus >= 1 << len(GPUS):
        return Inspection(len(content), verdict, None)
    if size != len(content):
        raise ExportError(
            f"{path} has {len(content):,} bytes, and by its header should have {size:,}",
            remedy=tensorrt.COPY,
        )
    header = Header(
        version=".".join(map(str, version)),
        compute_capabilities=tuple(name for bit, name in enumerate(GPUS) if gpus >> bit & 1),
        program_bytes=program[2],
        weight_bytes=weights,
        kernels=content[program[1] : program[1] + program[2]].count(KERNEL),
    )
    return Inspection(size, verdict, header)


def read_network(trt: Any, network: Any) -> Reading:
    """What the parser made of a graph."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    kinds = trt.LayerType

    def kind_of(tensor: Any) -> str:
        """The type of `tensor` before it was made a float one for the parser's sake."""
        maker = makers.get(tensor.name)
        if maker is not None and maker.type in (kinds.SHUFFLE, kinds.IDENTITY, kinds.DEQUANTIZE):
            return kind_of(maker.get_input(0))
        return _kind(tensor)

    products: Counter[str] = Counter()
    for layer in layers:
        if layer.type in (kinds.CONVOLUTION, kinds.MATRIX_MULTIPLY):
            inputs = (layer.get_input(i) for i in range(layer.num_inputs))
            found = {kind_of(tensor) for tensor in inputs if tensor is not None}
            products[" and ".join(sorted(found))] += 1
    ends = (network.get_input(0), network.get_output(0))
    takes, gives = (f"{_kind(end)} {list(end.shape)}" for end in ends)
    return Reading(len(layers), takes, gives, dict(products))


def _kind(tensor: Any) -> str:
    name = str(tensor.dtype.name)
    return KINDS.get(name, name.lower())


def _verdict(trt: Any, content: bytes, path: Path) -> str:
    """What the library says of the engine's header."""
    log = tensorrt.logger(trt)
    log.errors.clear()
    runtime = trt.Runtime(log)
    validity, found = runtime.get_engine_validity(content)
    kinds = trt.EngineInvalidityDiagnostics
    if int(found) & kinds.MALFORMED_ENGINE.value or len(content) < HEADER.size + 2 * SECTION.size:
        raise ExportError(
            f"{path} is no engine of {LIBRARY.title} {trt.__version__}, or is damaged",
            remedy=tensorrt.COPY,
        )
    if validity != trt.EngineValidity.INVALID:
        return f"the library finds it {validity.name.lower()} for the GPU here"
    if not cuda_devices():
        return "the library knows the header, and could check no more without a GPU"
    named = [name for name, kind in kinds.__members__.items() if int(found) & kind.value]
    said = ", ".join(named).lower().replace("_", " ") or tensorrt.reason(log.errors)
    return f"the library would not run it on the GPU here ({said})"


def availability() -> Availability:
    """Whether TensorRT for RTX and a GPU are here."""
    return tensorrt.availability_of(LIBRARY)


def warm_import() -> None:
    """Import the library and torch, and start CUDA, so that a load time does not count it."""
    tensorrt.warm_import_of(LIBRARY)


def open(path: Path, threads: int) -> tensorrt.EngineSession:
    """Load the engine at `path`, as `runtime.tensorrt.open` does; the same errors."""
    return tensorrt.open_engine(LIBRARY, path)
