"""ONNX: the student's graph in float32, in float16 for GPUs and NPUs, and in int8, for shipping.

Every graph takes uint8 NHWC images and gives float32 logits; labels, input contract and run key
are in its metadata_props. `write_float_graph` is also what the quantize stage starts from.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from exporters import Exported, Variant
from pipeline import settings
from pipeline.errors import ExportError
from pipeline.machine import package_version
from pipeline.quantized import Quantized
from pipeline.records import Artifact, Checkpoint, Result
from runtime import Availability

if TYPE_CHECKING:
    import onnx

VERSION = 3
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
EXTRA = None
EXECUTED = ""
INPUT = "image"
OUTPUT = "logits"
LARGEST_HALF = 65504.0


class Settings(settings.Settings):
    """The table [export.onnx]."""

    opset: int = Field(default=18, ge=18, le=23)
    """Version of the ONNX operator set."""
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    """Which files to write; fp16 is made from the fp32 file, int8 needs the quantize stage."""


def availability() -> Availability:
    """Plain dependencies: always there."""
    return Availability(True, f"onnx {package_version('onnx')}")


def variants(settings: Settings) -> Sequence[Variant]:
    """fp32 from the student, fp16 from that file; int8, plain and symmetric, from quantizing."""
    offered = (
        Variant("fp32"),
        Variant("fp16", source="onnx fp32"),
        Variant("int8", source="quantized"),
        Variant("int8", "symmetric", source="quantized"),
    )
    return [variant for variant in offered if variant.precision in settings.precisions]


def export(source: Result, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.onnx``. Raises `ExportError` where the network cannot be written as ONNX."""
    import onnx

    path = folder / "model.onnx"
    if variant.precision == "fp16":
        if not isinstance(source, Artifact):
            raise TypeError(f"fp16 is made from the ONNX Artifact of fp32, not {type(source)}")
        onnx.save(in_half(onnx.load(source.path)), path)
        return Exported(path.name)
    if isinstance(source, Checkpoint):
        write_float_graph(source, path, settings.opset)
        return Exported(path.name)
    if not isinstance(source, Quantized):
        raise TypeError(f"ONNX is made from a Checkpoint or a Quantized, not {type(source)}")
    graph = source.int8_symmetric if variant.variant == "symmetric" else source.int8
    model = compact(onnx.load(source.folder / graph))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return Exported(path.name)


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with short names of values, which nobody reads; layers keep theirs.

    In a Q/DQ graph of a small student the long ones are a tenth of the file.
    """
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    values = [tensor.name for tensor in graph.initializer]
    values += [name for node in graph.node for name in node.output]
    short = {name: f"{number:x}" for number, name in enumerate(values) if name not in kept}
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""
    del graph.value_info[:]
    return model


def write_float_graph(checkpoint: Checkpoint, path: Path, opset: int = 18) -> None:
    """Write the float32 graph of `checkpoint` with BatchNorm folded and a free batch dimension.

    Raises `ExportError` naming the operator or layer that ONNX cannot hold.
    """
    import onnx
    import torch

    import models

    classifier = models.load(checkpoint)
    spec = checkpoint.input
    image = torch.zeros(2, spec.size, spec.size, spec.channels, dtype=torch.uint8)
    with quiet():
        try:
            program = torch.onnx.export(
                classifier,
                (image,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except Exception as error:  # the exporter has no public base class for its errors
            raise ExportError(
                f"{checkpoint.arch} cannot be written as ONNX: {_first_line(error)}",
                remedy="Choose another network, or another opset with export.onnx.opset.",
            ) from error
    assert program is not None
    model = program.model_proto
    _strip_traces(model)
    describe(model, checkpoint)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph `model` with weights and arithmetic in float16, and float32 logits.

    On x86, ONNX Runtime computes such a graph in float32 with the rounded weights: what is measured
    there says nothing of a GPU's speed, and does not show an activation that float16 cannot hold.

    Raises `ExportError` naming the first weight that float16 cannot hold.
    """
    import onnx

    from runtime.onnx_runtime import quiet_import

    quiet_import()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    _check_range(model)
    # The normalisation is converted too: a graph of one float type is what NPUs take. That moves a
    # pixel by at most 0.34 grey levels whatever mean and std are, less than its own rounding, where
    # float32 would move it by 0.12. On three students and 10,000 test images each, with every
    # node's output rounded to float16, the logits (standard deviation 2 to 4) were off by 0.0016 to
    # 0.0053, root mean square, and by 0.0014 to 0.0049 with a float32 normalisation; the top-1
    # moved by two images at most either way.
    half = convert_float_to_float16(model, keep_io_types=True)  # of float ones: images stay uint8
    onnx.checker.check_model(half, full_check=True)
    return half


def _check_range(model: onnx.ModelProto) -> None:
    """Refuse what the converter would clip. (It lifts what is nearer to 0 than 6e-8 to that.)"""
    import numpy as np
    import onnx

    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or not values.size:
            continue
        if (largest := np.abs(values).max()) > LARGEST_HALF:
            raise ExportError(
                f"float16 ends at {LARGEST_HALF:g}, and `{tensor.name}` reaches {largest:g}",
                remedy='Leave "fp16" out of export.onnx.precisions.',
            )


def describe(model: object, checkpoint: Checkpoint) -> None:
    """Write labels, input contract and run key into `model`'s metadata_props."""
    import onnx

    assert isinstance(model, onnx.ModelProto)
    onnx.helper.set_model_props(
        model,
        {
            "labels": json.dumps(checkpoint.labels, ensure_ascii=False),
            "input": checkpoint.input.model_dump_json(),
            "student": checkpoint.key,
            "arch": checkpoint.arch,
        },
    )
    model.producer_name, model.producer_version = "pocket-distillery", ""


def _strip_traces(model: object) -> None:
    """Drop the exporter's stack traces: they name the builder's folders and change the bytes."""
    import onnx

    assert isinstance(model, onnx.ModelProto)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the exporter's chatter; errors still come through as exceptions."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
