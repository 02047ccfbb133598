"""What of a graph decides how long a phone takes: `graph_cost`, and what has to be moved.

Counted so that a network's float file and its Q/DQ int8 file give the same: in elements, not in
bytes, and without what every phone runtime fuses into its neighbour (activation functions, views,
quantization).
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks import graph_cost
from pipeline import mobile
from pipeline.errors import ExportError

FUSED = graph_cost.BOOKKEEPING | graph_cost.SHARING | graph_cost.IN_PLACE
"""Operators that a runtime computes within the one before, or only in name."""


class Workload(BaseModel):
    """Counts for one image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense_macs: int
    """As in `GraphCost`, grouped convolutions among them."""
    depthwise_macs: int
    parameters: int
    moved_elements: int
    """Numbers that kernels read and write, weights apart."""
    peak_elements: int
    """Most numbers needed at one time: `GraphCost.peak_activation_bytes` by the size of one."""
    kernels: int
    """Operators without the `FUSED` ones and without the product x · σ(x) of a swish."""


def of(path: Path) -> Workload:
    """Count the .onnx file at `path`, float32 or Q/DQ int8.

    Raises `ExportError` where `graph_cost.cost` does.
    """
    import onnx

    cost = graph_cost.cost(path)
    model = mobile.fix_batch(onnx.load(path))
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.node)
    kernels = _kernels(graph)
    return Workload(
        dense_macs=cost.dense_macs,
        depthwise_macs=cost.depthwise_macs,
        parameters=cost.parameters,
        moved_elements=_moved(graph, kernels, path),
        peak_elements=cost.peak_activation_bytes // (1 if quantized else 4),
        kernels=len(kernels),
    )


def _kernels(graph: Any) -> list[Any]:
    makers = {name: node for node in graph.node for name in node.output}

    def root(name: str) -> str:
        """The value that `name` is a fused function of."""
        while (maker := makers.get(name)) is not None and maker.op_type in FUSED and maker.input:
            name = maker.input[0]
        return name

    def swish(node: Any) -> bool:
        return node.op_type == "Mul" and len({root(name) for name in node.input}) == 1

    return [node for node in graph.node if node.op_type not in FUSED and not swish(node)]


def _moved(graph: Any, kernels: list[Any], path: Path) -> int:
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # weights may be written as int8 and a DequantizeLinear
        if node.op_type == "Constant" or (node.input and stored.issuperset(node.input)):
            stored.update(node.output)
    sizes = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        sizes[value.name] = prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    total = 0
    for node in kernels:
        for name in {*node.input, *node.output} - stored - {""}:
            if not sizes.get(name):
                raise ExportError(
                    f"{path}: the shape of `{name}` does not follow from the input's",
                    remedy="Export the file with a fixed image size.",
                )
            total += sizes[name]
    return total
