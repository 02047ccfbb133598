"""What lies on disk in an .mlpackage: its manifest, its specification and its weights.

Everything is read from the saved bytes, weights included, by code that shares nothing with the
code that wrote them: a fault of coremltools' own reader would otherwise hide the same fault of its
writer. Only the protobuf classes are coremltools', since they are the published schema.

The weights are a "MIL blob storage", version 2 (coremltools, mlmodel/src/MILBlob/Blob/
StorageFormat.hpp): a header of 64 bytes, then for each tensor a record of 64 bytes (a sentinel,
its type, its size and where its data begins, the bits left over) and the data, 64-byte aligned.
"""

import contextlib
import io
import json
import logging
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ExportError, require

EXTRA = "coreml"
AGAIN = "The file is damaged or incomplete: copy or export it again."
SENTINEL = 0xDEADBEEF
STORAGE_VERSION = 2
RECORD = 64
"""Bytes of the storage's header and of a tensor's record."""
HERE = "@model_path/"
"""How a specification names its own folder."""


class ElementType(NamedTuple):
    """Of a tensor's elements."""

    name: str
    """As MIL's text form and coremltools spell it."""
    dtype: np.dtype
    """What holds one element once it is unpacked."""
    bits: int
    """Of one element in a file; below 8, elements are packed."""


def _types(**numbers: int) -> dict[int, ElementType]:
    held = {"fp16": "f2", "fp32": "f4", "fp64": "f8", "bool": "?", "int4": "i1"}
    sub_byte = dict.fromkeys(("uint1", "uint2", "uint3", "uint4", "uint6"), "u1")
    found = {}
    for name, number in numbers.items():
        dtype = np.dtype({**held, **sub_byte}.get(name, name))
        width = name.removeprefix("u").removeprefix("int")
        bits = int(width) if name in sub_byte or name == "int4" else 8 * dtype.itemsize
        found[number] = ElementType(name, dtype.newbyteorder("<"), bits)
    return found


TYPES = _types(
    **{"bool": 1, "fp16": 10, "fp32": 11, "fp64": 12},
    **{"int8": 21, "int16": 22, "int32": 23, "int64": 24, "int4": 25},
    **{"uint8": 31, "uint16": 32, "uint32": 33, "uint64": 34},
    **{"uint4": 35, "uint2": 36, "uint1": 37, "uint6": 38, "uint3": 39},
)
"""By their numbers in a specification (MIL.proto, `DataType`), text left out."""
STORED = _types(
    **{"fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "int16": 6, "uint16": 7, "int4": 8},
    **{"uint1": 9, "uint2": 10, "uint4": 11, "uint3": 12, "uint6": 13, "int32": 14, "uint32": 15},
)
"""By their numbers in a weights file (BlobDataType.hpp)."""


def unpack(data: bytes | NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """`count` numbers of `bits` bits each, packed from the lowest bit of each byte upward.

    Raises ValueError where there are too few.
    """
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(flat) < count * bits:
        raise ValueError(f"{count} numbers of {bits} bits do not fit into {len(flat) // 8} bytes")
    places = (1 << np.arange(bits)).astype(np.uint8)
    return flat[: count * bits].reshape(count, bits) @ places


def decode(data: bytes, kind: ElementType, shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of `shape` whose little-endian bytes are `data`. Raises ValueError if it is not."""
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) != -(-count * kind.bits // 8):
        raise ValueError(f"{list(shape)} of {kind.name} does not take {len(data)} bytes")
    if kind.bits >= 8:
        return np.frombuffer(data, kind.dtype).reshape(shape)
    values = unpack(data, kind.bits, count)
    if kind.name == "int4":  # two's complement
        values = ((values ^ 8).astype(np.int8) - 8).astype(np.int8)
    return values.reshape(shape)


@dataclass(frozen=True)
class Package:
    """An .mlpackage: what it says (a protobuf `Model`), and where its weights lie."""

    path: Path
    spec: Any
    folder: Path
    """Of the specification; weights are named relative to it."""
    _files: dict[str, bytes] = field(default_factory=dict)

    def fault(self, what: str) -> ExportError:
        """An error that names this package."""
        return ExportError(f"{self.path}: {what}", AGAIN)

    def tensor(
        self, file: str, offset: int, kind: ElementType, shape: tuple[int, ...]
    ) -> NDArray[Any]:
        """The tensor whose record begins at byte `offset` of `file`.

        Raises `ExportError` where there is none such or it is another than the program says.
        """
        data = self._file(file)
        if offset + RECORD > len(data):
            raise self.fault(
                f"{file} ends after {len(data)} bytes, and a tensor's record is to begin at "
                f"{offset}"
            )
        sentinel, number, size, start = struct.unpack_from("<IIQQ", data, offset)
        if sentinel != SENTINEL:
            raise self.fault(f"{file} has no tensor's record at byte {offset}")
        if number not in STORED or STORED[number].name != kind.name:
            known = STORED[number].name if number in STORED else f"type {number}"
            raise self.fault(
                f"{file} holds {known} at byte {offset}, and the program says {kind.name}"
            )
        if start + size > len(data):
            raise self.fault(
                f"{file} ends after {len(data)} bytes, and the tensor of byte {offset} after "
                f"{start + size}"
            )
        try:
            return decode(data[start : start + size], kind, shape)
        except ValueError as error:
            raise self.fault(f"{file}, byte {offset}: {error}") from error

    def _file(self, name: str) -> bytes:
        if name not in self._files:
            path = (self.folder / name.removeprefix(HERE)).resolve()
            if not path.is_relative_to(self.path.resolve()):
                raise self.fault(f"its weights are to lie outside of it, in {name}")
            data = self._read(path)
            version = struct.unpack_from("<I", data, 4)[0] if len(data) >= RECORD else None
            if version != STORAGE_VERSION:
                said = "too short" if version is None else f"of version {version}"
                raise self.fault(f"{name} is no MIL blob storage of version 2: it is {said}")
            self._files[name] = data
        return self._files[name]

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self.fault(f"{path.name} cannot be read: {error}") from error


def read(path: Path) -> Package:
    """The package at `path`. Raises `ExportError` where it is none, or is no ML program."""
    manifest = path / "Manifest.json"
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        root = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
        file = path / "Data" / root
    except OSError as error:
        raise ExportError(f"{path}: Manifest.json cannot be read: {error}", AGAIN) from error
    except (ValueError, KeyError, TypeError) as error:
        said = f"Manifest.json does not say which file the model is ({error!r})"
        raise ExportError(f"{path}: {said}", AGAIN) from error
    spec = schema().Model()
    package = Package(path, spec, file.parent)
    data = package._read(file)
    try:
        spec.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, a class of another module for each version
        raise package.fault(f"{file.name} is no Core ML specification: {error}") from error
    if (kind := spec.WhichOneof("Type")) != "mlProgram":
        raise ExportError(
            f"{path}: {file.name} holds {kind or 'no model'}, and only ML programs are executed",
            "Export it with a minimum target of iOS15 or newer.",
        )
    return package


def schema() -> ModuleType:
    """The protobuf classes of a specification. Raises `NotInstalledError` without coremltools."""
    with _silence():
        return require("coremltools.proto.Model_pb2", EXTRA)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back what coremltools says of other packages' versions when it is imported."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
