"""What an ONNX file costs wherever it runs: counted in its graph, so the same from run to run.

Multiply-adds, parameters and activations are those of the file as it is written, for one image; a
runtime may fuse operators and hold less.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ExportError

BOOKKEEPING = {"QuantizeLinear", "DequantizeLinear", "Constant", "Identity"}
"""Operators that say of which type a value is: runtimes fuse them into their neighbours."""
SHARING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DequantizeLinear"}
"""Operators that only look at the memory of their input in another way."""
IN_PLACE = {"Clip", "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish"}
"""Those that may write where they read."""
STORED = {"QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", *SHARING}
"""Operators after which a weight is still as many stored numbers."""


class Operands(NamedTuple):
    """Where a multiply-add operator has what it multiplies, among its inputs."""

    factors: tuple[int, int]
    """The second is the kernel of a convolution."""
    bias: int | None = None


COUNTED = {
    "Conv": Operands((0, 1), 2),
    "QLinearConv": Operands((0, 3), 8),
    "Gemm": Operands((0, 1), 2),
    "MatMul": Operands((0, 1)),
}
NOT_COUNTED = frozenset(
    (
        *("ConvTranspose", "ConvInteger", "DeformConv", "QLinearMatMul", "MatMulInteger"),
        *("Einsum", "Attention", "RNN", "GRU", "LSTM"),
        # Of com.microsoft: what ONNX Runtime writes into files that it has optimized.
        *("FusedConv", "NhwcFusedConv", "QLinearConvTranspose", "FusedGemm", "QGemm"),
        *("FusedMatMul", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        *("MultiHeadAttention", "GroupQueryAttention", "QAttention", "DynamicQuantizeLSTM"),
    )
)
"""Operators that multiply and add, too, and have no formula here."""


class GraphCost(BaseModel):
    """Counts for one image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense_macs: int
    """Multiply-adds of convolutions and matrix products in which inputs are shared."""
    depthwise_macs: int
    """Those of convolutions with as many groups as input channels."""
    parameters: int
    """Numbers in the weights and biases of these; scales and zero points are none."""
    parameter_bytes: int
    """As they are stored."""
    peak_activation_bytes: int
    """Most memory of values that are needed at one time, in the order of the file; each value in
    the type that it is kept in, int8 where it is quantized."""
    nodes: int
    """Operators, without those that say of which type a value is."""
    operators: dict[str, int]
    """How often each type stands there, the most frequent first."""

    @property
    def memory_bytes(self) -> int:
        """Weights and most activations at one time, without the runtime itself."""
        return self.parameter_bytes + self.peak_activation_bytes


def cost(path: Path) -> GraphCost:
    """Count the .onnx file at `path`.

    Raises `ExportError` for no ONNX file, for one whose shapes do not follow from its input, for
    one that takes several images at once, and for one with an operator of `NOT_COUNTED`.
    """
    import onnx
    import onnx.inliner

    try:
        model = onnx.load(path)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:  # protobuf's and onnx's errors have no common base
        raise _uncountable(path, error) from error
    _refuse(model.graph.node, path)
    _fix_batch(model, path)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise _uncountable(path, error) from error
    return _Counter(inferred.graph, path).cost()


def _uncountable(path: Path, error: Exception) -> ExportError:
    return ExportError(
        f"{path} is no ONNX file that can be counted: {error}", remedy="Export it again."
    )


def _fix_batch(model: Any, path: Path) -> None:
    """One image: a first dimension without a number becomes 1.

    Raises `ExportError` where it is a number, and another.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = [value for value in model.graph.input if value.name not in weights]
    for value in (*taken, *model.graph.output):
        shape = value.type.tensor_type.shape
        if shape.dim and not shape.dim[0].HasField("dim_value"):
            shape.dim[0].dim_value = 1
    for value in taken[:1]:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(dims) > 1 and dims[0] > 1:
            raise ExportError(
                f"{path}: `{value.name}` is {dims[0]} images at once, and costs are those of one",
                remedy="Export it for any number of images, or for one (export.onnx.batch).",
            )
    del model.graph.value_info[:]  # they may name the batch


def _refuse(nodes: Iterable[Any], path: Path) -> None:
    """Raise `ExportError` naming an operator that multiplies and adds and cannot be counted."""
    for node in nodes:
        inner = {kind for kind in _inside(node) if kind in NOT_COUNTED or kind in COUNTED}
        if node.op_type in NOT_COUNTED or inner:
            within = f" with {', '.join(sorted(inner))} in it" if inner else ""
            raise ExportError(
                f"{path}: the multiply-adds of {node.op_type}{within} (`{node.output[0]}`) cannot "
                "be counted",
                remedy="Count a file without it, or teach it to benchmarks/graph_cost.py.",
            )


def _inside(node: Any) -> Iterator[str]:
    """Types of the operators in the branches or the loop that `node` holds."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for each in graph.node:
                yield each.op_type
                yield from _inside(each)


class _Counter:
    def __init__(self, graph: Any, path: Path) -> None:
        from onnx import numpy_helper

        self._graph, self._path = graph, path
        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                value = numpy_helper.to_array(node.attribute[0].t)
                self._constants[node.output[0]] = value
        values = (*graph.input, *graph.output, *graph.value_info)
        self._types = {value.name: value.type.tensor_type for value in values}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers = defaultdict[str, list[Any]](list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def cost(self) -> GraphCost:
        macs, weights = {True: 0, False: 0}, dict[str, Any]()
        for node in self._graph.node:
            where = COUNTED.get(node.op_type)
            if where is None:
                continue
            names = [node.input[at] for at in where.factors]
            if where.bias is not None:
                names += node.input[where.bias : where.bias + 1]
            constants = {name: self._constant(name) for name in names}
            weights |= {name: value for name, value in constants.items() if value is not None}
            macs[self._is_depthwise(node, names[1])] += self._macs(node, names[0], names[1])
        own = [node for node in self._graph.node if node.op_type not in BOOKKEEPING]
        return GraphCost(
            dense_macs=macs[False],
            depthwise_macs=macs[True],
            parameters=sum(value.size for value in weights.values()),
            parameter_bytes=sum(value.nbytes for value in weights.values()),
            peak_activation_bytes=self._peak(),
            nodes=len(own),
            operators=dict(Counter(node.op_type for node in own).most_common()),
        )

    def _constant(self, name: str) -> Any:
        """The stored numbers behind `name`, quantized ones as they are; None for an activation."""
        if name in self._constants:
            return self._constants[name]
        maker = self._makers.get(name)
        if maker is not None and maker.op_type in STORED:
            return self._constant(maker.input[0])
        return None

    def _macs(self, node: Any, left: str, right: str) -> int:
        """Every output of a convolution takes one kernel; of a product one row of the left."""
        outputs = prod(self._shape(node.output[0]))
        if node.op_type.endswith("Conv"):
            return outputs * prod(self._shape(right)[1:])
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return outputs * self._shape(left)[0 if turned else -1]

    def _is_depthwise(self, node: Any, kernel: str) -> bool:
        if not node.op_type.endswith("Conv"):
            return False
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        return groups > 1 and self._shape(kernel)[1] == 1

    def _shape(self, name: str) -> list[int]:
        if name in self._constants:
            return list(self._constants[name].shape)
        found = self._types.get(name)
        dims = [] if found is None else [d.dim_value for d in found.shape.dim]
        if found is None or not found.HasField("shape") or not all(dims):
            raise ExportError(
                f"{self._path}: the shape of `{name}` does not follow from the input's",
                remedy="Export the file with a fixed image size.",
            )
        return dims

    def _bytes(self, name: str) -> int:
        from onnx import helper

        kind = self._types[name].elem_type
        return prod(self._shape(name)) * helper.tensor_dtype_to_np_dtype(kind).itemsize

    def _source(self, name: str) -> str:
        """The value whose memory `name` is. Views and int8 read as float have none of their own; an
        activation function writes where it read, if nothing else reads there."""
        maker = self._makers.get(name)
        if maker is None:
            return name
        alone = len(self._readers[maker.input[0]]) == 1 if maker.input else False
        if maker.op_type in SHARING or (maker.op_type in IN_PLACE and alone):
            return self._source(maker.input[0])
        return name

    def _peak(self) -> int:
        """By liveness: a value is held from the node that makes it to the last that reads it.

        A float value that is quantized at once is never held, for integer kernels write int8; what
        it is made from is held until that int8 is there.
        """
        last = {value.name: len(self._graph.node) for value in self._graph.output}
        passing = {
            node.input[0]
            for node in self._graph.node
            if node.op_type == "QuantizeLinear" and len(self._readers[node.input[0]]) == 1
        }
        for at, node in enumerate(self._graph.node):
            for name in node.input:
                source = self._source(name)
                last[source] = max(last.get(source, 0), at)
        passing = {self._source(name) for name in passing if name in self._makers}
        passing -= {n.output[0] for n in self._graph.node if n.op_type == "QuantizeLinear"}
        for node in self._graph.node:
            if node.output[0] in passing:
                for name in node.input:
                    source = self._source(name)
                    last[source] = max(last[source], last[node.output[0]])
        return self._most(last, passing)

    def _most(self, last: dict[str, int], passing: set[str]) -> int:
        """Most bytes held at one node, given the last node that reads each value."""
        taken = [value.name for value in self._graph.input if value.name not in self._constants]
        held = {name: self._bytes(name) for name in taken}
        most = sum(held.values())
        for at, node in enumerate(self._graph.node):
            for name in node.output:
                kept = name in last and name not in passing and self._source(name) == name
                if kept and self._constant(name) is None:
                    held[name] = self._bytes(name)
            most = max(most, sum(held.values()))
            held = {name: size for name, size in held.items() if last.get(name, -1) > at}
        return most
