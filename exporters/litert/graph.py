"""LiteRT's model as an object: named, counted, quantized, and written again.

A .tflite file is a flatbuffer; LiteRT's packages bring the classes of its schema, which are what is
called a model here (ModelT, with subgraphs, operators, tensors and buffers).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporters import Output
from pipeline.errors import ExportError, require
from pipeline.records import InputSpec
from runtime.litert import EXTRA, watch

if TYPE_CHECKING:
    from torch import nn

INPUT = "image"
ROLES = ("", "weight", "bias")
"""What the inputs of an operator with weights are."""
NARROWEST = 1e-6
"""Width of a range at least. Where a signal has died away, the ratio of two scales would else be
more than LiteRT's kernels have room for, and they would refuse the file."""
CHANNELS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
"""The operators with weights, and the axis of their output channels."""
WIDEST_BIAS = 2**30
"""Largest quantized bias, in steps; an int32 holds twice as many."""
BEFORE = ("pad", "padv2")
"""Operators that the converter puts before a layer, and names after it."""


class Front(NamedTuple):
    """How int8 takes pixels: (pixel - zero_point) · scale, one for all channels."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, spec: InputSpec) -> Front:
        """That of the ONNX int8 graphs, too (`pipeline.quantization.graph`)."""
        scale = float(np.float32(1 / (255 * np.mean(spec.std))))
        return cls(scale, round(255 * float(np.mean(spec.mean))))

    def shifted(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What `pixels`, of any shape, stand for."""
        return (pixels.astype(np.float32) - self.zero_point) * np.float32(self.scale)


def schema() -> ModuleType:
    """The classes of a .tflite file. Raises `NotInstalledError` without LiteRT."""
    return require("ai_edge_litert.schema_py_generated", EXTRA)


def read(content: bytes) -> Any:
    """The model in `content`, without what the converter noted for itself."""
    tools = require("ai_edge_litert.tools.flatbuffer_utils", EXTRA)
    model = tools.read_model_from_bytearray(content)
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
    model.metadata = []
    return model


def write(model: Any) -> bytes:
    """The .tflite file of `model`."""
    import flatbuffers

    class Builder(flatbuffers.Builder):
        # The schema wants the buffers aligned to 16 bytes; its Python classes forget that.
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803
            return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)

    builder = Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def name(model: Any, network: nn.Module, output: Output) -> None:
    """Name input and output, each value after the layer that it ends, and constants after that.

    The converter's names tell of each value the layers around its operator, with their classes.
    """
    layers, taken = dict(_layers(network)), {INPUT, output}
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    names = {graph.inputs[0]: INPUT, graph.outputs[0]: output}

    def free(*wanted: str) -> str:
        numbered = (f"{wanted[-1]}{number}" for number in range(2, len(graph.tensors) + 2))
        found = next(each for each in (*wanted, *numbered) if each not in taken)
        taken.add(found)
        return found

    for op in reversed(graph.operators):  # a layer's last value has its name
        kind = operator(model, op).lower()
        spelled = graph.tensors[op.outputs[0]].name.decode().split(";")[0]
        layer = layers.get(spelled) or kind
        own = free(*([] if kind in BEFORE else [layer]), f"{layer}/{kind}")
        names.setdefault(op.outputs[0], own)
        for place, index in enumerate(op.inputs):
            if index >= 0 and index not in names and _is_constant(model, index):
                role = ROLES[place] if len(op.inputs) == len(ROLES) else "constant"
                names[index] = free(f"{own}/{role}")
    for index, found in names.items():
        graph.tensors[index].name = found.encode()
    signature.inputs[0].name, signature.outputs[0].name = INPUT.encode(), output.encode()


def _layers(module: nn.Module, spelled: str = "", path: str = "") -> Iterator[tuple[str, str]]:
    """Each layer's name as the converter spells it, with its dotted name in the network."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    spelled = f"{spelled}/{kind}_{path.split('.')[-1]}" if spelled else kind
    yield spelled, re.sub(r"^(classifier(\.|$))?(network(\.|$))?", "", path)
    for child_name, child in module.named_children():
        yield from _layers(child, spelled, f"{path}.{child_name}" if path else child_name)


def operator(model: Any, op: Any) -> str:
    """The type of an operator, as "CONV_2D"."""
    code = model.operatorCodes[op.opcodeIndex].builtinCode
    return next(name for name, number in vars(schema().BuiltinOperator).items() if number == code)


def _is_constant(model: Any, index: int) -> bool:
    return model.buffers[model.subgraphs[0].tensors[index].buffer].data is not None


def floats(model: Any) -> Counter[str]:
    """Types of the operators that take or give a float, and how often each stands in `model`."""
    (graph,), number = model.subgraphs, schema().TensorType.FLOAT32
    return Counter(
        operator(model, op)
        for op in graph.operators
        if any(graph.tensors[i].type == number for i in (*op.inputs, *op.outputs) if i >= 0)
    )


def in_int8(model: Any, images: NDArray[np.uint8], front: Front) -> Any:
    """The float `model` of shifted pixels with int8 weights, one scale a channel, and activations.

    The ranges are from the least to the greatest value of `images`, uint8 [n, size, size,
    channels]. LiteRT's own, a moving average of both ends, are too narrow: on the student of a
    Fashion-MNIST run the logits were off by five times as much (0.088 of their spread to 0.017);
    ranges by percentile and by least squared error were no better (0.017, 0.016).
    """
    recipe = require("ai_edge_quantizer.recipe", EXTRA).static_wi8_ai8()
    quantizer = require("ai_edge_quantizer.quantizer", EXTRA)
    ranges = _ranges(write(model), images, front)
    _widen(model, ranges)
    made = quantizer.Quantizer(write(model), recipe).quantize(
        {name: each.ends for name, each in ranges.items()},
        enable_progress_bar=False,
        enable_progress_report=False,
    )
    model = read(bytes(made.quantized_model))
    (graph,) = model.subgraphs
    (zero_point,) = graph.tensors[graph.inputs[0]].quantization.zeroPoint
    if zero_point != front.zero_point - 128:
        raise ExportError(
            f"ai-edge-quantizer put the pixels' zero point to {zero_point}, not to "
            f"{front.zero_point - 128}",
            remedy='Leave "int8" out of export.litert.precisions.',
        )
    return model


class _Range(NamedTuple):
    least: float
    most: float
    ndim: int

    @property
    def ends(self) -> dict[str, NDArray[np.float32]]:
        """As the quantizer wants to have them."""
        values = {"min": self.least, "max": max(self.most, self.least + NARROWEST)}
        return {end: np.full((1,) * self.ndim, each, np.float32) for end, each in values.items()}

    @property
    def step(self) -> float:
        """The scale that the quantizer makes of it."""
        return max(max(self.most, 0.0) - min(self.least, 0.0), NARROWEST) / 255


def _ranges(content: bytes, images: NDArray[np.uint8], front: Front) -> dict[str, _Range]:
    """Least and greatest value of each tensor of the float model in `content`, by name."""
    low, high = front.shifted(np.array([0, 255], np.uint8))
    found = {INPUT: _Range(float(low), float(high), images.ndim)}
    for outputs in watch(Path("model.tflite"), map(front.shifted, images[:, None]), content):
        for details, values in outputs:
            name, least, most = details["name"], float(values.min()), float(values.max())
            known = found.get(name, _Range(least, most, values.ndim))
            found[name] = known._replace(least=min(known.least, least), most=max(known.most, most))
    return found


def _widen(model: Any, ranges: dict[str, _Range]) -> None:
    """Let every bias of the float `model` fit into an int32, where the quantizer would clip it.

    Its step is that of the values times that of the channel's weights. Where these have all but
    died away it is too fine, and the largest of them is raised until it is not; what that adds to
    the output is less than 2e-5 of the bias.
    """
    (graph,) = model.subgraphs
    for op in graph.operators:
        kind = operator(model, op)
        if kind not in CHANNELS or len(op.inputs) < 3 or op.inputs[2] < 0:
            continue
        taken, weight, bias = (graph.tensors[index] for index in op.inputs)
        stored = model.buffers[weight.buffer]
        values = stored.data.view(np.float32).reshape(weight.shape).copy()
        channels = np.moveaxis(values, CHANNELS[kind], 0)
        rows = channels.reshape(len(channels), -1).copy()
        every, largest = np.arange(len(rows)), np.abs(rows).argmax(1)
        biases = np.abs(model.buffers[bias.buffer].data.view(np.float32))
        needed = 127 * biases / (ranges[taken.name.decode()].step * WIDEST_BIAS)
        rows[every, largest] = np.copysign(
            np.maximum(np.abs(rows[every, largest]), needed), rows[every, largest]
        )
        channels[...] = rows.reshape(channels.shape)
        stored.data = np.frombuffer(values.tobytes(), np.uint8)


def add_ends(model: Any, output: Output) -> None:
    """Let the int8 `model` take uint8 and give float32; probabilities from float32 logits."""
    types, (graph,), (signature,) = schema(), model.subgraphs, model.signatureDefs
    first, last = graph.inputs[0], graph.outputs[0]
    graph.tensors[first].name, graph.tensors[last].name = b"pixels", b"logits/int8"
    pixels = types.QuantizationParametersT()
    pixels.scale = graph.tensors[first].quantization.scale
    pixels.zeroPoint = [graph.tensors[first].quantization.zeroPoint[0] + 128]
    image = _add_tensor(graph, INPUT, types.TensorType.UINT8, graph.tensors[first].shape)
    graph.tensors[image].quantization = pixels
    graph.operators.insert(0, _operator(model, "QUANTIZE", 1, image, first))
    shape, number = graph.tensors[last].shape, types.TensorType.FLOAT32
    answer = _add_tensor(graph, "logits", number, shape)
    graph.operators.append(_operator(model, "DEQUANTIZE", 2, last, answer))
    if output == "probabilities":
        logits, answer = answer, _add_tensor(graph, output, number, shape)
        softmax = _operator(model, "SOFTMAX", 1, logits, answer)
        softmax.builtinOptionsType = types.BuiltinOptions.SoftmaxOptions
        softmax.builtinOptions = types.SoftmaxOptionsT(beta=1.0)
        graph.operators.append(softmax)
    graph.inputs, graph.outputs = [image], [answer]
    signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex = image, answer
    signature.outputs[0].name = output.encode()


def _add_tensor(graph: Any, called: str, number: int, shape: list[int]) -> int:
    tensor = schema().TensorT()
    tensor.name, tensor.type, tensor.shape, tensor.hasRank = called.encode(), number, shape, True
    tensor.buffer = 0  # the empty one: its values come with an image
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(model: Any, kind: str, version: int, taken: int, given: int) -> Any:
    """An operator of one input and one output, whose type is entered in `model`."""
    types = schema()
    number = getattr(types.BuiltinOperator, kind)
    codes = [code.builtinCode for code in model.operatorCodes]
    if number not in codes:
        code = types.OperatorCodeT()
        code.builtinCode, code.version = number, version
        code.deprecatedBuiltinCode = min(number, 127)
        model.operatorCodes.append(code)
        codes.append(number)
    op = types.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = codes.index(number), [taken], [given]
    return op
