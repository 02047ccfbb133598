"""A placed graph as a torch network that learns: what int8 does to values, in float.

It is built from the very Q/DQ graph that is shipped, node by node, so that a value is rounded here
exactly where it is there; only the float weights and biases are its own. Rounding passes the
gradient through where a value is inside its range (the straight-through estimator: Bengio et al.
2013; Jacob et al. 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ExportError
from pipeline.quantization.graph import (
    FLOAT_PIXELS,
    PIXEL_SCALE,
    PIXEL_ZERO_POINT,
    PIXELS,
    SHIFTED_PIXELS,
    UINT8_PIXELS,
    WEIGHTED,
    attribute,
    constants,
)
from pipeline.quantization.place import TINIEST_SCALE, WIDEST_BIAS, weight_levels
from pipeline.records import InputSpec, Scheme

Operator = Callable[..., Tensor]
"""The inputs of a node, then its parameters -> its output."""
PIXEL_NAMES = (PIXELS, UINT8_PIXELS)
"""What the normalised pixels are called in a placed graph that has a front, and in one without."""
FRONT = (UINT8_PIXELS, FLOAT_PIXELS, SHIFTED_PIXELS, PIXELS)
"""What is computed before the network; `Classifier` does it."""


class _Step(NamedTuple):
    operator: Operator
    inputs: tuple[str, ...]
    learned: tuple[str, ...]
    """Names of its parameters."""
    output: str
    spent: tuple[str, ...]
    """Values that nobody reads after it."""


class Simulated(nn.Module):
    """`placed` (see `place.place`) with the float weights of `ready`, both of `scheme`.

    Takes float32 [batch, channels, size, size], normalised as `graph.Front` says, which puts pixels
    on their int8 grid; gives logits [batch, classes]. Ranges of activations stay as they were
    placed; those of weights follow the weights, as `place.weight_scales` has them.

    Raises `ExportError` naming an operator that it does not know.
    """

    def __init__(
        self, placed: onnx.ModelProto, ready: onnx.ModelProto, scheme: Scheme = "u8s8"
    ) -> None:
        super().__init__()
        self._values = constants(placed)
        self._learned = _learned(ready)
        self._scheme: Scheme = scheme
        self._makers = {name: node for node in placed.graph.node for name in node.output}
        self._own: dict[str, str] = {}
        self._steps: list[_Step] = []
        self._output = placed.graph.output[0].name
        kept = [node for node in placed.graph.node if not self._is_silent(node)]
        last = {name: node.output[0] for node in kept for name in self._inputs(node)}
        for node in kept:
            inputs = self._inputs(node)
            spent = tuple(name for name in set(inputs) if last[name] == node.output[0])
            learned = self._parameters_of(node)
            self._steps.append(_Step(self._operator(node), inputs, learned, node.output[0], spent))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of normalised images."""
        values: dict[str, Tensor] = dict.fromkeys(PIXEL_NAMES, pixels)
        for step in self._steps:
            inputs = (values[name] for name in step.inputs)
            values[step.output] = step.operator(*inputs, *map(self.get_parameter, step.learned))
            for name in step.spent:  # what nobody reads any more would fill the memory
                del values[name]
        return values[self._output]

    def trained(self) -> dict[str, np.ndarray]:
        """The weights and biases by the names that they have in `ready`."""
        return {
            name: self.get_parameter(own).detach().cpu().contiguous().numpy()
            for name, own in self._own.items()
        }

    def _is_silent(self, node: onnx.NodeProto) -> bool:
        """Whether nothing is computed for `node`: the front, and reading a stored constant."""
        if node.output[0] in FRONT:
            return True
        return node.op_type == "DequantizeLinear" and node.input[0] in self._values

    def _inputs(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """The values that `node` is computed from; its constants are its own business."""
        silent = (
            self._is_silent(self._makers[name]) and name not in PIXEL_NAMES
            if name in self._makers
            else name in self._values
            for name in node.input
        )
        return tuple(name for name, skip in zip(node.input, silent, strict=True) if not skip)

    def _operator(self, node: onnx.NodeProto) -> Operator:
        if node.op_type in WEIGHTED:
            return self._weighted(node)
        if node.op_type == "QuantizeLinear":
            return self._rounding(node)
        if node.op_type == "DequantizeLinear":
            return self._reading(node)
        if node.op_type in ("Reshape", "Clip"):
            rest = [self._values[name].tolist() if name else None for name in node.input[1:]]
            return SIMPLE[node.op_type](node, *rest)
        if node.op_type not in SIMPLE:
            raise ExportError(
                f"{node.op_type} ({node.name}) is not known to the simulation",
                remedy="Set quantize.fine_tune.epochs to 0.",
            )
        return SIMPLE[node.op_type](node)

    def _grid(self, node: onnx.NodeProto) -> tuple[float, int, int]:
        """Scale, zero point and lowest integer of a quantizing or dequantizing node."""
        zero = self._values[node.input[2]]
        return float(self._values[node.input[1]]), int(zero), int(np.iinfo(zero.dtype).min)

    def _rounding(self, node: onnx.NodeProto) -> Operator:
        scale, zero, low = self._grid(node)
        return lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, low, low + 255)

    def _reading(self, node: onnx.NodeProto) -> Operator:
        """The values of integers that a node before this one rounded to, on that one's grid."""
        scale, zero, _ = self._grid(node)
        maker = self._makers.get(node.input[0])
        while maker is not None and maker.op_type != "QuantizeLinear":
            if maker.output[0] in PIXEL_NAMES:
                maker = None  # the pixels are on this node's grid
                break
            maker = self._makers.get(maker.input[0])
        if maker is None or self._grid(maker)[:2] == (scale, zero):
            return lambda x: x
        rounded, shifted, _ = self._grid(maker)
        factor, offset = scale / rounded, (shifted - zero) * scale
        return lambda x: x * factor + offset

    def _parameters_of(self, node: onnx.NodeProto) -> tuple[str, ...]:
        names = node.input[1:] if node.op_type in WEIGHTED else ()
        return tuple(self._parameter(self._constant(name)) for name in names)

    def _weighted(self, node: onnx.NodeProto) -> Operator:
        apply = F.linear if node.op_type == "Gemm" else _convolution(node)
        if node.input[1] not in self._makers:  # a layer that stays float
            return apply
        source, levels = self._source_scale(node), weight_levels(node, self._scheme)

        def operator(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return apply(x, *_rounded(weight, bias, source, levels))

        return operator

    def _source_scale(self, node: onnx.NodeProto) -> float:
        return self._grid(self._makers[node.input[0]])[0]

    def _constant(self, name: str) -> str:
        """What a weight or bias is called in the float graph."""
        maker = self._makers.get(name)
        return name if maker is None else maker.input[0].removesuffix("_quantized")

    def _parameter(self, name: str) -> str:
        """Own name of the parameter that was the constant `name` of the float graph."""
        if name not in self._own:
            self._own[name] = name.replace(".", "__")
            value = torch.from_numpy(self._learned[name].copy())
            self.register_parameter(self._own[name], nn.Parameter(value))
        return self._own[name]


def normalisation(placed: onnx.ModelProto, spec: InputSpec) -> InputSpec:
    """`spec` with the mean and deviation that the pixels of `placed` are normalised with."""
    values = constants(placed)
    reader = next(node for node in placed.graph.node if UINT8_PIXELS in node.input)
    if reader.op_type == "DequantizeLinear":
        scale, zero = values[reader.input[1]], values[reader.input[2]]
    else:
        scale, zero = values[PIXEL_SCALE], values[PIXEL_ZERO_POINT]
    mean, std = (float(zero) / 255,), (1 / (255 * float(scale)),)
    return spec.model_copy(update={"mean": mean * spec.channels, "std": std * spec.channels})


def _learned(ready: onnx.ModelProto) -> Mapping[str, np.ndarray]:
    values = constants(ready)
    names = [n for node in ready.graph.node if node.op_type in WEIGHTED for n in node.input[1:]]
    return {name: values[name] for name in names}


def _rounded(
    weight: Tensor, bias: Tensor | None, source: float, levels: int
) -> tuple[Tensor, Tensor | None]:
    """`weight` and `bias` on the grids that `place.weight_scales` gives them."""
    with torch.no_grad():
        scales = weight.flatten(1).abs().amax(1) / levels
        if bias is not None:
            scales = torch.maximum(scales, bias.abs() / (source * WIDEST_BIAS))
        scales = scales.clamp(min=TINIEST_SCALE)
        zeros = torch.zeros(len(scales), dtype=torch.int32, device=scales.device)
    weight = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -levels, levels)
    if bias is not None:
        steps = source * scales
        bias = bias + ((bias / steps).round() * steps - bias).detach()
    return weight, bias


def _convolution(node: onnx.NodeProto) -> Operator:
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    even = (top, left) == (bottom, right)
    settings: dict[str, Any] = {
        "stride": tuple(attribute(node, "strides", [1, 1])),
        "dilation": tuple(attribute(node, "dilations", [1, 1])),
        "groups": attribute(node, "group", 1),
        "padding": (top, left) if even else 0,
    }

    def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x if even else F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, **settings)

    return convolution


def _hard_sigmoid(node: onnx.NodeProto) -> Operator:
    slope, offset = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return lambda x: (x * slope + offset).clamp(0, 1)


def _leaky_relu(node: onnx.NodeProto) -> Operator:
    slope = attribute(node, "alpha", 0.01)
    return (lambda x: x) if slope == 1 else (lambda x: F.leaky_relu(x, slope))


SIMPLE: dict[str, Callable[..., Operator]] = {
    "Add": lambda node: torch.add,
    "Mul": lambda node: torch.mul,
    "Relu": lambda node: F.relu,
    "Clip": lambda node, low=None, high=None: lambda x: x.clamp(low, high),
    "Sigmoid": lambda node: torch.sigmoid,
    "LeakyRelu": _leaky_relu,
    "HardSigmoid": _hard_sigmoid,
    "GlobalAveragePool": lambda node: lambda x: x.mean((2, 3), keepdim=True),
    "Flatten": lambda node: lambda x: x.flatten(1),
    "Reshape": lambda node, shape: lambda x: x.reshape(len(x), *shape[1:]),
}
"""Operators without weights: (the node, its constants) -> what it computes."""
