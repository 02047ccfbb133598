"""Where values are quantized: explicit Q/DQ pairs, put there by ONNX Runtime's quantizer.

Weights and ranges are handed to it as overrides, so that what `simulate` trains with is what the
file holds. Schemes, activations first:

- ``u8s8``: uint8 with zero points, per-channel int8 weights: ONNX Runtime's fast path.
- ``u8s8-reduced``: the same with weights of 7 bits, up to 64 steps, in all but depthwise layers.
  An x86 processor without VNNI adds two products of 8 bits in 16, which cannot overflow then
  (2 · 255 · 64 < 2 ** 15); depthwise layers are computed otherwise there.
- ``u8u8``: the weights of u8s8 plus 128 as uint8: the same values by other instructions.
- ``s8s8``: int8 activations with zero points.
- ``symmetric``: int8 with zero point 0 and float biases, which TensorRT reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.errors import ExportError
from pipeline.quantization.graph import (
    FLOAT_PIXELS,
    HARD_SIGMOID,
    KNOWN,
    PIXELS,
    SHIFTED_PIXELS,
    UINT8_PIXELS,
    WEIGHTED,
    Front,
    attribute,
    check_layers,
    constants,
    open_hard_sigmoids,
    set_nodes,
)
from pipeline.records import Scheme
from runtime.onnx_runtime import quiet_import

Floats = NDArray[np.float32]
Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value of each activation."""
WIDEST_BIAS = 2.0**30
"""Largest quantized bias, in steps; an int32 holds 2 ** 31."""
TINIEST_SCALE = float(np.finfo(np.float32).tiny) * 1e4
"""Of weights; the reciprocal of a smaller one is lost."""


class _Types(NamedTuple):
    activation: np.dtype[Any]
    weight: np.dtype[Any]
    dense_levels: int = 127
    """Steps from zero to the largest weight, but for depthwise layers, which have 127."""


U8, S8 = np.dtype(np.uint8), np.dtype(np.int8)
SCHEMES: dict[Scheme | Literal["symmetric"], _Types] = {
    "u8s8": _Types(U8, S8),
    "u8s8-reduced": _Types(U8, S8, 64),
    "u8u8": _Types(U8, U8),
    "s8s8": _Types(S8, S8),
    "symmetric": _Types(S8, S8),
}


def weight_levels(node: onnx.NodeProto, scheme: Scheme | Literal["symmetric"]) -> int:
    """Steps from zero to the largest weight of each channel of a layer."""
    return 127 if attribute(node, "group", 1) > 1 else SCHEMES[scheme].dense_levels


class Placed(NamedTuple):
    """A graph with Q/DQ pairs."""

    model: onnx.ModelProto
    notes: tuple[str, ...]
    """What had to be mended, in words."""


def place(
    ready: onnx.ModelProto,
    front: Front,
    ranges: Ranges,
    scheme: Scheme | Literal["symmetric"] = "u8s8",
    float_layers: Collection[str] = (),
) -> Placed:
    """`ready` (see `graph.prepare`) with Q/DQ pairs around every operator but `float_layers`.

    Raises `ExportError` where a layer named in `float_layers` is not there.
    """
    quiet_import()
    model = onnx.ModelProto.FromString(ready.SerializeToString())
    check_layers(model, float_layers)
    symmetric = scheme == "symmetric"
    if not symmetric:
        open_hard_sigmoids(model)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    grids = _grids(model, front, ranges, scheme)
    overrides: dict[str, list[dict[str, Any]]] = {name: [grid] for name, grid in grids.items()}
    notes = _set_weight_scales(model, grids, overrides, scheme, float_layers)
    excluded = [*_front_nodes(model), *float_layers]
    excluded += _hard_sigmoids(model) if symmetric else []
    placed = _with_pairs(model, _tensors_data(ranges, grids), overrides, excluded, scheme)
    if not symmetric:
        _read_clips_directly(placed)
    if SCHEMES[scheme].activation == U8:
        _read_pixels_directly(placed)
    _keep_float(placed, float_layers)
    _sort(placed)
    return Placed(placed, notes)


def _with_pairs(
    model: onnx.ModelProto,
    ranges: Any,
    overrides: dict[str, list[dict[str, Any]]],
    excluded: list[str],
    scheme: Scheme | Literal["symmetric"],
) -> onnx.ModelProto:
    """What ONNX Runtime's quantizer makes of `model`, all nodes but the `excluded`."""
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    symmetric, types = scheme == "symmetric", SCHEMES[scheme]
    quantizer = QDQQuantizer(
        model,
        True,
        False,
        _quant_type(types.weight),
        _quant_type(types.activation),
        ranges,
        [],
        excluded,
        sorted(KNOWN),
        {
            "TensorQuantOverrides": overrides,
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            # TensorRT's parser refuses the int32 biases that CPU kernels want.
            "QuantizeBias": not symmetric,
        },
    )
    return quantizer.quantize_model()


def _quant_type(kind: np.dtype[Any]) -> Any:
    from onnxruntime.quantization import QuantType

    return QuantType.QUInt8 if kind == U8 else QuantType.QInt8


def _front_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that normalise: they compute in float, or not at all."""
    nodes = list(model.graph.node)
    last = next(i for i, node in enumerate(nodes) if PIXELS in node.output)
    return [node.name for node in nodes[: last + 1]]


def _hard_sigmoids(model: onnx.ModelProto) -> list[str]:
    """Their trick needs zero points."""
    return [node.name for node in model.graph.node if node.op_type == "HardSigmoid"]


def _grids(
    model: onnx.ModelProto, front: Front, ranges: Ranges, scheme: Scheme | Literal["symmetric"]
) -> dict[str, dict[str, Any]]:
    """Scale and zero point of each activation."""
    kind = SCHEMES[scheme].activation
    lowest = int(np.iinfo(kind).min)

    def grid(scale: float, zero_point: int) -> dict[str, Any]:
        return {"scale": np.array(scale, np.float32), "zero_point": np.array(zero_point, kind)}

    if scheme == "symmetric":
        widest = {name: max(-low, high) for name, (low, high) in ranges.items()}
        widest[PIXELS] = max(front.zero_point, 255 - front.zero_point) * front.scale
        return {name: grid(value / 127 or 1.0, 0) for name, value in widest.items()}
    grids = {}
    for name, (low, high) in ranges.items():
        scale = (high - low) / 255 or 1.0
        grids[name] = grid(scale, lowest + round(min(max(-low / scale, 0), 255)))
    grids[PIXELS] = grid(front.scale, front.zero_point + lowest)
    for node in model.graph.node:
        if node.op_type == "HardSigmoid":
            slope, offset = HARD_SIGMOID
            _require_slope(node)
            grids[node.input[0]] = grid(1 / (255 * slope), lowest + round(255 * offset + 0.1))
            grids[node.output[0]] = grid(1 / 255, lowest)
    return grids


def _require_slope(node: onnx.NodeProto) -> None:
    found = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    if not np.allclose(found, HARD_SIGMOID):
        raise ExportError(
            f"{node.name} is a hard sigmoid of slope and offset {found}",
            remedy="Choose another student.arch, or set quantize.enabled to false.",
        )


def _tensors_data(ranges: Ranges, grids: Collection[str]) -> Any:
    """What the quantizer wants to know of every activation; the overrides decide."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    known = {name: ranges.get(name, (0.0, 1.0)) for name in grids}
    data: dict[str, Any] = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in known.items()
    }
    return TensorsData(CalibrationMethod.MinMax, data)


def _set_weight_scales(
    model: onnx.ModelProto,
    grids: Mapping[str, Mapping[str, Any]],
    overrides: dict[str, list[dict[str, Any]]],
    scheme: Scheme | Literal["symmetric"],
    float_layers: Collection[str],
) -> tuple[str, ...]:
    """Put the scales of all weights into `overrides`; return what had to be mended."""
    values, notes, types = constants(model), [], SCHEMES[scheme]
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.name in float_layers:
            continue
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            raise ExportError(
                f"{node.name} has its weights the other way round (transB = 0)",
                remedy="Choose another student.arch, or set quantize.enabled to false.",
            )
        weight = values[node.input[1]]
        bias = np.zeros(len(weight), np.float32)
        if len(node.input) > 2 and scheme != "symmetric":  # whose biases stay float
            bias = values[node.input[2]]
        source = float(grids[_grid_of(node.input[0], makers)]["scale"])
        scales, widened = weight_scales(weight, bias, source, weight_levels(node, scheme))
        if widened:
            notes.append(
                f"{node.name}: the bias of {len(widened)} of {len(weight)} channels would not fit "
                f"into 32 bits with so small weights (channels {_few(widened)}); their weights' "
                "steps are wider"
            )
        zero = np.array(128 if types.weight == U8 else 0, types.weight)
        kind = _quant_type(types.weight)
        overrides[node.input[1]] = [
            {"axis": 0, "scale": scale, "zero_point": zero, "quant_type": kind} for scale in scales
        ]
    return tuple(notes)


def _few(numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers[:5]))
    return f"{listed}, ..." if len(numbers) > 5 else listed


def _grid_of(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The activation whose grid `name` has: what only moves values shares that of its input."""
    moving = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "AveragePool")
    while name in makers and makers[name].op_type in moving:
        name = makers[name].input[0]
    return name


def weight_scales(
    weight: Floats, bias: Floats, input_scale: float, levels: int
) -> tuple[Floats, list[int]]:
    """Scale of each output channel (axis 0) of `weight`, and the channels where the bias decides.

    The largest weight of a channel is `levels` steps. The bias of an int8 layer is an int32 of
    steps ``input_scale · scale``: where weights are so small that it would overflow (channels that
    weight decay has silenced, say), the scale is as large as it must be.
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(1)
    own = largest / np.float32(levels)  # in float32, as `simulate` has it
    needed = np.abs(bias) / np.float32(input_scale * WIDEST_BIAS)
    widened = np.flatnonzero((needed > own) & (largest > 0)).tolist()
    return np.maximum(np.maximum(own, needed), np.float32(TINIEST_SCALE)), widened


def _read_clips_directly(model: onnx.ModelProto) -> None:
    """Take hard sigmoids out: the saturating quantization before each already is one.

    ``q = saturate(x · 255 / 6 + 128)`` read as ``q / 255`` is clip(x / 6 + 1/2, 0, 1), but for half
    a step.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    gone: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "HardSigmoid":
            continue
        before = makers[node.input[0]]
        after = [each for each in readers[node.output[0]] if each.op_type == "QuantizeLinear"]
        if before.op_type != "DequantizeLinear" or len(after) != len(readers[node.output[0]]):
            continue
        for quantize in after:
            for reader in readers[quantize.output[0]]:
                reader.input[0] = before.input[0]
        gone |= {before.output[0], node.output[0], *(each.output[0] for each in after)}
    _drop(model, gone)


def _read_pixels_directly(model: onnx.ModelProto) -> None:
    """Read the pixels as what they are: the quantized values of the normalised ones."""
    quantize = [node for node in model.graph.node if PIXELS in node.input]
    if [node.op_type for node in quantize] != ["QuantizeLinear"]:
        return  # the first layer is float
    for node in model.graph.node:
        if quantize[0].output[0] in node.input:
            node.input[0] = UINT8_PIXELS
    _drop(model, {FLOAT_PIXELS, SHIFTED_PIXELS, PIXELS, quantize[0].output[0]})


def _keep_float(model: onnx.ModelProto, float_layers: Collection[str]) -> None:
    """Put a LeakyRelu of slope 1, which changes nothing, behind each layer that stays float.

    Between Q/DQ pairs ONNX Runtime would quantize its weights by itself, all channels alike (its
    pull request 22969); it does not where something else follows, and folds this one in.
    """
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in WEIGHTED and node.name in float_layers:
            plain = f"{node.output[0]}_float"
            same = onnx.helper.make_node("LeakyRelu", [plain], [node.output[0]], plain, alpha=1.0)
            node.output[0] = plain
            nodes.append(same)
    set_nodes(model, nodes)
    del model.graph.value_info[:]


def _drop(model: onnx.ModelProto, outputs: Collection[str]) -> None:
    """Remove the nodes with these outputs, and the constants that only they read."""
    set_nodes(model, [node for node in model.graph.node if node.output[0] not in outputs])
    read = {name for node in model.graph.node for name in node.input}
    for each in list(model.graph.initializer):
        if each.name not in read:
            model.graph.initializer.remove(each)


def _sort(model: onnx.ModelProto) -> None:
    from onnxruntime.quantization.onnx_model import ONNXModel

    ONNXModel(model).topological_sort()
