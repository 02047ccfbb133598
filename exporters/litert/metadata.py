"""What a .tflite file says of itself.

Twice: as LiteRT's own metadata, a flatbuffer of a public schema (metadata_schema.fbs, 1.5.0) that
Android Studio and MediaPipe read, with the labels in a zip archive behind the model; and each fact
of `pipeline.contract` as an entry of its own, which `runtime.litert.read_metadata` reads.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np

from exporters import Output
from exporters.litert.graph import INPUT, schema, write
from pipeline.contract import Facts

LABELS = "labels.txt"
STANDARD = "TFLITE_METADATA"
IDENTIFIER = b"M001"
PARSER = "1.0.0"
"""Oldest version of the schema that has all that is used here."""
IMAGE_PROPERTIES, RGB, GREY, AXIS_LABELS = 2, 1, 2, 2
"""Numbers of ContentProperties, ColorSpaceType and AssociatedFileType."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)


def pack(model: Any, facts: Facts, output: Output) -> bytes:
    """The file of `model` with metadata; labels with line breaks have blanks in their archive."""
    model.description = _title(facts)
    _add_entry(model, STANDARD, _standard(facts, output))
    for name, text in facts.texts(output).items():
        _add_entry(model, name, text.encode())
    file = io.BytesIO(write(model))
    with zipfile.ZipFile(file, "a") as archive:  # not compressed: readers map it into memory
        about = zipfile.ZipInfo(LABELS, LONG_AGO)
        about.create_system = 3  # else the system that it is made on
        lines = (" ".join(label.splitlines()) for label in facts.labels)
        archive.writestr(about, "".join(f"{line}\n" for line in lines).encode())
    return file.getvalue()


def _title(facts: Facts) -> str:
    return f"{facts.arch}: names one of {len(facts.labels)} classes of an image"


def _add_entry(model: Any, name: str, content: bytes) -> None:
    classes = schema()
    buffer, entry = classes.BufferT(), classes.MetadataT()
    buffer.data = np.frombuffer(content, np.uint8)
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)


def _standard(facts: Facts, output: Output) -> bytes:
    """ModelMetadata. In a table, a field's key is its place in the schema; a union takes two."""
    import flatbuffers

    spec = facts.input
    size = {0: np.uint32(spec.size), 1: np.uint32(spec.size)}
    image = {0: np.uint8(GREY if spec.channels == 1 else RGB), 1: size}
    colour = "grey" if spec.channels == 1 else "RGB"
    told = f"{colour}, uint8 [1, {spec.size}, {spec.size}, {spec.channels}]; normalised inside"
    taken = {0: INPUT, 1: told, 3: {0: np.uint8(IMAGE_PROPERTIES), 1: image}}
    labels = {0: LABELS, 1: "one label a line", 2: np.uint8(AXIS_LABELS)}
    given = {0: output, 1: f"float32 {output} by class", 6: [labels]}
    subgraph = {2: [taken], 3: [given]}
    model = {
        **{0: facts.arch, 1: _title(facts), 2: facts.student, 3: [subgraph]},
        **{4: f"Pocket Distillery {facts.version}", 5: facts.licence, 7: PARSER},
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_offset(builder, model), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _offset(builder: Any, value: str | list[Any] | dict[int, Any]) -> int:
    """Write a string, a vector of what can be written here, or a table, and tell where it is."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        offsets = [_offset(builder, each) for each in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    fields = {
        slot: each if isinstance(each, np.generic) else _offset(builder, each)
        for slot, each in value.items()
    }
    builder.StartObject(max(fields) + 1)
    for slot, each in fields.items():
        if not isinstance(each, np.generic):
            builder.PrependUOffsetTRelativeSlot(slot, each, 0)
        elif each.itemsize == 1:
            builder.PrependUint8Slot(slot, int(each), 0)
        else:
            builder.PrependUint32Slot(slot, int(each), 0)
    return builder.EndObject()
