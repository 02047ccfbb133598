"""What ONNX Runtime makes of an int8 file on this CPU: which part of it really runs in integers.

A Q/DQ pair only says where values are quantized. ONNX Runtime turns an operator between two pairs
into an integer kernel if it has one and types and constants suit it; all else it runs in float,
with a conversion before and one after. Nothing but the optimized graph tells which it was.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from onnx import helper

from pipeline.errors import ExportError
from pipeline.quantized import Fused, Island
from runtime.onnx_runtime import PROVIDER, quiet_import

CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Which input holds the weights, [outputs, inputs / group, height, width]."""
PRODUCTS = {
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"), 1),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), 1),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), 3),
}
"""Which input holds the second factor."""
INTEGER = frozenset(
    ("QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
)
"""Integer kernels whose names do not begin with QLinear."""
QUANTIZE = frozenset(("QuantizeLinear", "DynamicQuantizeLinear"))
MOVES = frozenset(
    {
        *("Cast", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape"),
        *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that compute nothing."""
EIGHT_BIT = frozenset(
    {
        *("Add", "AveragePool", "Concat", "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm"),
        *("GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool", "Mul", "ReduceMax", "ReduceMin"),
        *("Resize", "Sigmoid", "Softmax", "Where"),
    }
)
"""Operators that ONNX Runtime can run on 8-bit values, under the names they have in float.

Relu and Clip are not among them: it folds them into what is before them, or runs them in float.
"""

KEPT = "kept in float by quantize.max_drop or quantize.float_layers"
REQUANTIZED = "only requantized: what reads the values wants another scale or type"
NOT_QUANTIZED = "its inputs or outputs are not quantized"
DECLINED = "ONNX Runtime has an 8-bit kernel, but these scales, types or zero points do not suit it"


class _Value(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Graph:
    """An optimized graph, and what each value in it is for one image."""

    def __init__(self, model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> None:
        self.nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.inputs = {each.name for each in model.graph.input}
        self.values = _values(model, image_shape)
        # Dequantized weights are constants as much as the weights: no image is converted there.
        self.constants = {each.name for each in model.graph.initializer} | {""}
        self.constants |= {
            name for node in model.graph.node if node.op_type == "Constant" for name in node.output
        }
        for node in self.nodes:
            if self.constants.issuperset(node.input):
                self.constants.update(node.output)
        self.nodes = [node for node in self.nodes if node.output[0] not in self.constants]

    def before(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes that make its inputs, but for constants."""
        for name in node.input:
            if name not in self.constants and name in self.makers:
                yield self.makers[name]

    def after(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes that read its outputs."""
        for name in node.output:
            yield from self.readers.get(name, ())

    def is_float(self, node: onnx.NodeProto) -> bool:
        """Whether it is run in float: no integer kernel, and no conversion to or from integers."""
        converts = node.op_type == "DequantizeLinear" or node.op_type in QUANTIZE
        value = self.values[node.output[0]]
        return not converts and not is_integer(node) and value.dtype.kind == "f"

    def leaves_integers(self, node: onnx.NodeProto) -> bool:
        """Whether it gives float values made of integers that something computed.

        Dequantized pixels are none: the file is fed with them.
        """
        if node.op_type != "DequantizeLinear":
            return is_integer(node)
        name = node.input[0]
        while name in self.makers and self.makers[name].op_type in MOVES:
            name = self.makers[name].input[0]
        return name not in self.inputs


def examine(
    path: Path, image_shape: tuple[int, int, int], *, float_layers: Collection[str] = ()
) -> Fused:
    """What ONNX Runtime really runs of the file at `path` on this CPU.

    `image_shape` is (height, width, channels), the first two in pixels; `float_layers` are names of
    nodes that were kept in float on purpose. Raises `ExportError` if the file cannot be loaded.
    """
    run, plain = _optimized(path, "all"), _optimized(path, "extended")
    # Only the last passes set them apart, which lay values out anew for this CPU. They block and
    # pad the weights of float layers and rename these: neither could be counted or found there.
    graph = _Graph(plain, image_shape)
    macs = Counter[bool]()
    for node in graph.nodes:
        macs[is_integer(node)] += _macs(node, graph)
    return Fused(
        operators=dict(sorted(Counter(node.op_type for node in run.graph.node).items())),
        integer_macs=macs[True],
        float_macs=macs[False],
        islands=_islands(graph, frozenset(float_layers)),
    )


def is_integer(node: onnx.NodeProto) -> bool:
    """Whether it is an integer kernel."""
    return node.op_type.startswith("QLinear") or node.op_type in INTEGER


def _optimized(path: Path, passes: Literal["all", "extended"]) -> onnx.ModelProto:
    """What the given passes of ONNX Runtime make of a file; "all" is what is run by default."""
    ort = quiet_import()
    options = ort.SessionOptions()
    level = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED"}[passes]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "optimized.onnx")
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(str(path), options, providers=[PROVIDER])
        except Exception as error:  # ONNX Runtime has an exception class a status code, no base
            raise ExportError(
                f"ONNX Runtime cannot load {path}: {error}", remedy="Export the file again."
            ) from error
        return onnx.load(target)


def _values(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> dict[str, _Value]:
    """Type and shape of everything in `model` for one image, found out by running it.

    ONNX's shape inference does not know the operators that ONNX Runtime adds.
    """
    ort = quiet_import()
    probed = onnx.ModelProto.FromString(model.SerializeToString())
    given = {each.name for each in probed.graph.output}
    made = [
        name for node in probed.graph.node for name in node.output if name and name not in given
    ]
    probed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(probed.SerializeToString(), options, providers=[PROVIDER])
    (image,) = probed.graph.input
    pixels = helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    names = [each.name for each in session.get_outputs()]
    arrays = session.run(names, {image.name: np.zeros((1, *image_shape), pixels)})
    values = {
        each.name: _Value(helper.tensor_dtype_to_np_dtype(each.data_type), tuple(each.dims))
        for each in probed.graph.initializer
    }
    for name, array in zip(names, map(np.asarray, arrays), strict=True):
        values[name] = _Value(array.dtype, array.shape)
    return values


def _macs(node: onnx.NodeProto, graph: _Graph) -> int:
    """Multiply-adds of one image."""
    result = prod(graph.values[node.output[0]].shape)
    if node.op_type in CONVOLUTIONS:
        weight = graph.values[node.input[CONVOLUTIONS[node.op_type]]].shape
        return result * prod(weight[1:])
    if node.op_type in PRODUCTS:
        factor = graph.values[node.input[PRODUCTS[node.op_type]]].shape
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        return result * (factor[-1] if transposed or len(factor) == 1 else factor[-2])
    return 0


def _has_weights(node: onnx.NodeProto) -> bool:
    return node.op_type in CONVOLUTIONS or node.op_type in PRODUCTS


def _islands(graph: _Graph, float_layers: frozenset[str]) -> tuple[Island, ...]:
    """All of them, in the order of the graph."""
    found: list[tuple[int, Island]] = []
    for places in _groups(graph):
        group = [graph.nodes[place] for place in places]
        if island := _island(group, graph, float_layers):
            found.append((places[0], island))
    for place, node in enumerate(graph.nodes):
        if node.op_type == "DequantizeLinear" and graph.leaves_integers(node):
            pair = Island(operators=(node.op_type, "QuantizeLinear"), reason=REQUANTIZED)
            again = [each for each in graph.after(node) if each.op_type in QUANTIZE]
            found += [(place, pair)] * len(again)
    return tuple(island for _, island in sorted(found, key=lambda each: each[0]))


def _groups(graph: _Graph) -> list[list[int]]:
    """Places of the float nodes that hand each other their values, group by group."""
    groups: list[set[int]] = []
    places = {name: place for place, node in enumerate(graph.nodes) for name in node.output}
    for place, node in enumerate(graph.nodes):
        if graph.is_float(node):
            earlier = {places[name] for name in node.input if name in places}
            touching = [group for group in groups if group & earlier]
            groups = [group for group in groups if not group & earlier]
            groups.append({place}.union(*touching))
    return [sorted(group) for group in groups]


def _island(
    group: Sequence[onnx.NodeProto], graph: _Graph, float_layers: frozenset[str]
) -> Island | None:
    """The island that a group of float nodes is, or None for what every int8 graph has.

    That is the normalisation of the pixels before the first quantization, and a last
    dequantization into logits. A layer with weights that is float there is an island all the same.
    """
    entered = any(graph.leaves_integers(each) for node in group for each in graph.before(node))
    left = any(
        each.op_type in QUANTIZE or is_integer(each) for node in group for each in graph.after(node)
    )
    computing = [node for node in group if node.op_type not in MOVES]
    if entered and left and not computing:
        return Island(operators=("DequantizeLinear", "QuantizeLinear"), reason=REQUANTIZED)
    if not entered:
        computing = list(itertools.dropwhile(lambda node: not _has_weights(node), computing))
    if not computing or not (entered or left):
        return None
    operators = tuple(node.op_type for node in computing)
    return Island(operators=operators, reason=_reason(computing, graph, float_layers))


def _reason(group: Sequence[onnx.NodeProto], graph: _Graph, float_layers: frozenset[str]) -> str:
    """Why `group` was left in float, in words."""
    if any(_layer(node) in float_layers for node in group):
        return KEPT
    if unknown := dict.fromkeys(n.op_type for n in group if n.op_type not in EIGHT_BIT):
        return f"ONNX Runtime has no 8-bit kernel for {', '.join(unknown)}"
    return DECLINED if all(_surrounded(node, graph) for node in group) else NOT_QUANTIZED


def _layer(node: onnx.NodeProto) -> str:
    """Its name before ONNX Runtime fused it with what is after it, or made the name distinct."""
    return re.sub(r"^fused |(/MatMulAddFusion)?(_token_\d+)?$", "", node.name)


def _surrounded(node: onnx.NodeProto, graph: _Graph) -> bool:
    """Whether all its float inputs are dequantized, weights too, and its outputs quantized."""
    floats = [name for name in node.input if name and graph.values[name].dtype.kind == "f"]
    makers = [graph.makers.get(name) for name in floats]
    after = [each.op_type for each in graph.after(node)]
    return (
        all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
        and bool(after)
        and QUANTIZE.issuperset(after)
    )
