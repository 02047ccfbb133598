"""ONNX: the student's graph in float32, in float16 for GPUs and NPUs, and in int8, for shipping.

Every graph takes uint8 NHWC images and gives float32 logits or probabilities; what it is stands in
its metadata_props. Two more forms of the float32 graph are for other hands: "mobile" for NNAPI and
Core ML under ONNX Runtime, "raw" for normalised float pixels. `write_float_graph` is also what the
quantize stage starts from.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import exporters
from exporters import QUANTIZED, Exported, Sources, Variant
from pipeline import mobile
from pipeline.contract import Facts
from pipeline.errors import ExportError, NotNeededError
from pipeline.machine import package_version
from pipeline.records import Checkpoint
from runtime import Availability

if TYPE_CHECKING:
    import onnx

VERSION = 4
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
EXTRA = None
ISOLATED = False
INPUT = "image"
RAW_INPUT = "pixels"
OUTPUT = "logits"
FILE = "model.onnx"
LARGEST_HALF = 65504.0
RAW_NOTE = (
    "Takes float32 pixels [batch, channels, height, width] that the app has normalised, unlike "
    "every other file: (x / 255 - mean) / std."
)


class Settings(exporters.FormatSettings):
    """The table [export.onnx]."""

    opset: int = Field(default=18, ge=18, le=23)
    """Version of the ONNX operator set."""
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    """Which files to write; fp16 is made from the fp32 file, int8 needs the quantize stage."""
    output: exporters.Output = "logits"
    """What the files answer; ORT's and TensorRT's, which are made of them, too."""
    batch: Literal["dynamic", 1] = "dynamic"
    """Images at once: any number, or one, which some compilers want to know."""
    mobile: bool = True
    """Write another float32 file where ONNX Runtime's mobile-usability check finds that NNAPI or
    Core ML would take the plain one in pieces."""
    raw: bool = False
    """Write another float32 file that takes normalised float32 pixels [batch, channels, size,
    size], for apps that have their own preprocessing."""


def availability() -> Availability:
    """Plain dependencies: always there."""
    return Availability(True, f"onnx {package_version('onnx')}")


def variants(settings: Settings) -> Sequence[Variant]:
    """fp32 from the student, its other forms from that; int8, both kinds, from quantizing."""
    offered = [
        Variant("fp32", platforms=("android", "web")),
        Variant("fp16", source="onnx fp32", platforms=("web", "nvidia")),
    ]
    if settings.mobile:
        offered.append(Variant("fp32", "mobile", "onnx fp32", ("android", "ios")))
    if settings.raw:
        offered.append(Variant("fp32", "raw", platforms=("android", "web")))
    offered += [
        Variant("int8", source=QUANTIZED, platforms=("android", "web")),
        Variant("int8", "symmetric", QUANTIZED, ("nvidia",)),
    ]
    return [variant for variant in offered if variant.precision in settings.precisions]


def export(sources: Sources, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.onnx``.

    Raises `ExportError` where the network cannot be written as ONNX, `NotNeededError` where a
    mobile form would be no better.
    """
    import onnx

    path, notes = folder / FILE, tuple[str, ...]()
    if variant.precision == "int8":
        quantized = sources.graphs()
        symmetric = variant.variant == "symmetric"
        graph = quantized.int8_symmetric if symmetric else quantized.int8
        model = dress(compact(onnx.load(quantized.folder / graph)), sources.facts, settings)
    elif variant.precision == "fp16":
        model = in_half(onnx.load(sources.file(variant).path))
    elif variant.variant == "mobile":
        model, notes = for_accelerators(onnx.load(sources.file(variant).path))
    else:
        raw = variant.variant == "raw"
        write_float_graph(sources.student, path, settings.opset, raw=raw)
        model = dress(onnx.load(path), sources.facts, settings, raw=raw)
        notes = (RAW_NOTE,) if raw else ()
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return Exported(FILE, notes=notes)


def dress(
    model: onnx.ModelProto, facts: Facts, settings: Settings, *, raw: bool = False
) -> onnx.ModelProto:
    """`model` as it ships: with the output and batch of `settings`, and what it is in words."""
    import onnx

    if settings.output == "probabilities":
        _end_in_probabilities(model)
    if settings.batch == 1:
        model = mobile.fix_batch(model)
    texts = facts.texts(settings.output)
    if raw:
        texts["raw"] = "float32 [batch, channels, size, size], already normalised by mean and std"
    onnx.helper.set_model_props(model, texts)
    model.producer_name, model.producer_version = "pocket-distillery", ""
    return model


def _end_in_probabilities(model: onnx.ModelProto) -> None:
    from onnx import helper

    answer = model.graph.output[0]
    answer.name = "probabilities"
    model.graph.node.append(
        helper.make_node("Softmax", [OUTPUT], [answer.name], name=answer.name, axis=1)
    )


def for_accelerators(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The form of the float32 graph `model` that NNAPI and Core ML take whole, and what to know.

    Raises `NotNeededError` where they take it in as few pieces as it is.
    """
    model = mobile.fix_batch(model)
    before = mobile.usability(model)
    changed = mobile.clip_form(model)
    after = mobile.usability(model)
    if sum(each.pieces for each in after) >= sum(each.pieces for each in before):
        raise NotNeededError(f"the plain file will do: {mobile.in_words(before).rstrip('.')}")
    note = (
        f"For ONNX Runtime with NNAPI or Core ML: batch fixed to 1, {changed} hard sigmoids "
        f"and hard swishes written with Clip. {mobile.in_words(before, after)}"
    )
    return model, (note,)


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


def write_float_graph(
    checkpoint: Checkpoint, path: Path, opset: int = 18, *, raw: bool = False
) -> None:
    """Write the float32 graph of `checkpoint` with a free batch dimension.

    A `raw` one takes normalised float32 pixels [batch, channels, size, size].
    Raises `ExportError` naming the operator or layer that ONNX cannot hold.
    """
    import onnx
    import torch

    import models

    network: torch.nn.Module = models.load(checkpoint)
    spec = checkpoint.input
    image = torch.zeros(2, spec.size, spec.size, spec.channels, dtype=torch.uint8)
    if raw:
        network = network.network.eval()
        image = torch.zeros(2, spec.channels, spec.size, spec.size)
    with quiet():
        try:
            program = torch.onnx.export(
                network,
                (image,),
                dynamo=True,
                opset_version=opset,
                input_names=[RAW_INPUT if raw else INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except Exception as error:  # the exporter has no public base class for its errors
            raise ExportError(
                f"{checkpoint.arch} cannot be written as ONNX: {_reason(error)}",
                remedy="Choose another network, or another opset with export.onnx.opset.",
            ) from error
    assert program is not None
    model = program.model_proto
    _strip_traces(model)
    onnx.save(model, path)


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 graph `model` with weights and arithmetic in float16, and float32 logits.

    On x86, ONNX Runtime computes such a graph in float32 with the rounded weights: what is measured
    there says nothing of a GPU's speed, and does not show an activation that float16 cannot hold.

    Raises `ExportError` naming the first weight that float16 cannot hold.
    """

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
    return convert_float_to_float16(model, keep_io_types=True)  # of float ones: images stay uint8


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


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of `error`: it names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
