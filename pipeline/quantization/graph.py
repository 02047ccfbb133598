"""The float graph that int8 starts from: BatchNorm folded, and nothing in it that int8 cannot hold.

What is rewritten computes the same values (but where a docstring says otherwise), in operators for
which ONNX Runtime has integer kernels.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.onnx import INPUT, quiet, write_float_graph
from pipeline.errors import CheckpointError, ExportError
from pipeline.records import Checkpoint
from runtime.onnx_runtime import quiet_import

Array = NDArray[Any]
PIXELS = "pixels"
"""The normalised pixels, which the first layer reads."""
UINT8_PIXELS, FLOAT_PIXELS, SHIFTED_PIXELS = "uint8_pixels", "float_pixels", "shifted_pixels"
"""What they were before: as the phone has them, but in planes; as float; less their zero point."""
PIXEL_SCALE, PIXEL_ZERO_POINT = "pixel_scale", "pixel_zero_point"
"""Constants that they are normalised with."""
WEIGHTED = ("Conv", "Gemm")
"""Operators with weights: the layers."""
KNOWN = frozenset(
    {
        *WEIGHTED,
        *("Add", "Mul", "Clip", "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid"),
        *("GlobalAveragePool", "Flatten", "Reshape"),
    }
)
"""Operators that the placement knows how to quantize, so that ONNX Runtime computes in integers."""
HARD_SIGMOID = (1 / 6, 0.5)
"""Slope and offset of the hard sigmoid of MobileNetV3: clip(x / 6 + 1/2, 0, 1)."""


class Front(NamedTuple):
    """How the graph normalises: (pixel - zero_point) · scale, one for all channels."""

    scale: float
    zero_point: int


class Prepared(NamedTuple):
    """A student's float graph, twice."""

    plain: onnx.ModelProto
    """As it is exported."""
    ready: onnx.ModelProto
    """As quantization starts from it."""
    front: Front


def prepare(
    checkpoint: Checkpoint, write: Callable[[Checkpoint, Path], None] | None = None
) -> Prepared:
    """The float graph of `checkpoint`, ready for quantization; `write` stands in for its exporter.

    Raises `CheckpointError` where a weight is not a number, `ExportError` where the network cannot
    be written as ONNX or has operators that the placement does not know.
    """
    quiet_import()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch, quiet():
        written, folded = Path(scratch, "plain.onnx"), Path(scratch, "folded.onnx")
        (write or write_float_graph)(checkpoint, written)
        plain = onnx.load(written)
        check_weights(plain)
        # Folds BatchNorm and constants; symbolic shapes would trip over the free batch size.
        quant_pre_process(written, folded, skip_symbolic_shape=True)
        model = onnx.load(folded)
    name_nodes(model)
    front = fold_normalisation(model, checkpoint)
    pool_globally(model)
    check_operators(model)
    return Prepared(plain, onnx.shape_inference.infer_shapes(model, strict_mode=True), front)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers by name."""
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def set_constants(model: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    """Replace or add initializers."""
    for each in list(model.graph.initializer):
        if each.name in values:
            model.graph.initializer.remove(each)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))


def with_constants(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of `model` with these initializers."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    set_constants(changed, values)
    return changed


def set_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace all nodes."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes with weights, in the order of the graph."""
    return [node.name for node in model.graph.node if node.op_type in WEIGHTED]


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute of `node`."""
    found = [helper.get_attribute_value(each) for each in node.attribute if each.name == name]
    return found[0] if found else default


def name_nodes(model: onnx.ModelProto) -> None:
    """Name each node after what it computes; layers after their weights, which people know."""
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type in WEIGHTED:
            name = node.input[1].removeprefix("network.").removesuffix(".weight")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"


def check_weights(model: onnx.ModelProto) -> None:
    """Raise `CheckpointError` naming the first tensor with a value that is no finite number."""
    for name, value in constants(model).items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            wrong = int((~np.isfinite(value)).sum())
            raise CheckpointError(
                f"the weights {name.removeprefix('network.')} hold {wrong} values that are NaN or "
                f"infinite, of {value.size}",
                remedy="The training diverged: lower its learning_rate, or set clip_norm.",
            )


def check_operators(model: onnx.ModelProto) -> None:
    """Raise `ExportError` naming the operators that the placement does not know."""
    unknown = Counter(node.op_type for node in _after_front(model) if node.op_type not in KNOWN)
    if unknown:
        listed = ", ".join(f"{name} ({count}×)" for name, count in unknown.items())
        raise ExportError(
            f"int8 is not known for these operators of the network: {listed}",
            remedy="Choose another student.arch, or set quantize.enabled to false.",
        )


def _after_front(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    seen = False
    for node in model.graph.node:
        if seen:
            yield node
        seen = seen or PIXELS in node.output


def fold_normalisation(model: onnx.ModelProto, checkpoint: Checkpoint) -> Front:
    """Normalise all channels alike, by a whole number and a scale; the first layer does the rest.

    The pixels of a phone, 0 to 255, then are the int8 values themselves: nothing is left to compute
    before the first convolution. That one's weights take the difference of the scales, its bias
    that of the means: exact but for padding, which now stands for the common mean. (Normalising in
    float cost a quarter of MobileNetV2's time at 224 px in ONNX Runtime 1.32, which computes three
    values at a time there.)
    """
    spec = checkpoint.input
    mean, std = 255 * np.array(spec.mean), 255 * np.array(spec.std)
    front = Front(scale=float(np.float32(1 / std.mean())), zero_point=round(float(mean.mean())))
    nodes = list(model.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in WEIGHTED)
    layer, values = nodes[first], constants(model)
    weight = values[layer.input[1]].astype(np.float64)
    own = weight / (std * front.scale)[None, :, None, None]
    bias = (weight * ((front.zero_point - mean) / std)[None, :, None, None]).sum((1, 2, 3))
    if len(layer.input) < 3:
        layer.input.append(f"{layer.input[1]}_bias")
    else:
        bias = bias + values[layer.input[2]]
    set_constants(
        model,
        {
            layer.input[1]: own.astype(np.float32),
            layer.input[2]: bias.astype(np.float32),
            PIXEL_ZERO_POINT: np.array(front.zero_point, np.float32),
            PIXEL_SCALE: np.array(front.scale, np.float32),
        },
    )
    layer.input[0] = PIXELS
    make = helper.make_node
    head = [
        make("Transpose", [INPUT], [UINT8_PIXELS], UINT8_PIXELS, perm=[0, 3, 1, 2]),
        make("Cast", [UINT8_PIXELS], [FLOAT_PIXELS], FLOAT_PIXELS, to=onnx.TensorProto.FLOAT),
        make("Sub", [FLOAT_PIXELS, PIXEL_ZERO_POINT], [SHIFTED_PIXELS], SHIFTED_PIXELS),
        make("Mul", [SHIFTED_PIXELS, PIXEL_SCALE], [PIXELS], PIXELS),
    ]
    _require_plain_front(nodes[:first])
    set_nodes(model, [*head, *nodes[first:]])
    del model.graph.value_info[:]
    return front


def _require_plain_front(nodes: Sequence[onnx.NodeProto]) -> None:
    """The rewriting is right only for what `Classifier` writes before the network."""
    found = sorted(node.op_type for node in nodes)
    if found != ["Add", "Cast", "Mul", "Transpose"]:
        raise ExportError(
            f"the graph does not begin with the normalisation alone, but with: {', '.join(found)}",
            remedy="Choose another student.arch, or set quantize.enabled to false.",
        )


def pool_globally(model: onnx.ModelProto) -> None:
    """Write means over height and width as GlobalAveragePool, which has an integer kernel."""
    values, nodes = constants(model), []
    for node in model.graph.node:
        axes = values.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type != "ReduceMean" or axes is None or sorted(axes % 4) != [2, 3]:
            nodes.append(node)
            continue
        keep = attribute(node, "keepdims", 1)
        out = node.output[0] if keep else f"{node.output[0]}_pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [out], out))
        if not keep:
            nodes.append(helper.make_node("Flatten", [out], node.output, node.name, axis=1))
    set_nodes(model, nodes)
    del model.graph.value_info[:]


def open_hard_sigmoids(model: onnx.ModelProto) -> None:
    """Give each hard sigmoid a value of its own to read, by a LeakyRelu of slope 1.

    Its input is to be quantized to [-3, 3), where it saturates; other readers of the same value
    need more. ONNX Runtime turns that LeakyRelu, which changes nothing, into a table look-up.
    """
    readers = Counter(name for node in model.graph.node for name in node.input)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "HardSigmoid" and readers[node.input[0]] > 1:
            own = f"{node.output[0]}_clipped"
            nodes.append(helper.make_node("LeakyRelu", [node.input[0]], [own], own, alpha=1.0))
            node.input[0] = own
        nodes.append(node)
    set_nodes(model, nodes)
    del model.graph.value_info[:]


def activations(model: onnx.ModelProto) -> list[str]:
    """Names of the float values that a placement may quantize, all but the normalised pixels."""
    return [name for node in _after_front(model) for name in node.output]


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shape of each value; 0 for the batch."""
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.output)
    }


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds of one image by layer, in the order of the graph, whose shapes are known."""
    sizes = shapes(model)
    weights = {each.name: list(each.dims) for each in model.graph.initializer}
    return {
        node.name: prod(weights[node.input[1]]) * prod(sizes[node.output[0]][2:])
        for node in model.graph.node
        if node.op_type in WEIGHTED
    }


def check_layers(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Raise `ExportError` naming those of `names` that are no layer of `model`."""
    known = layers(model)
    if unknown := sorted(set(names) - set(known)):
        raise ExportError(
            f"the network has no layer called {', '.join(unknown)}",
            remedy=f"Its layers: {', '.join(known)}.",
        )
