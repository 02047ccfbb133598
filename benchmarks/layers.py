"""Which layer of the student an operator that ONNX Runtime ran belongs to.

ONNX Runtime fuses operators, and calls the result by the name or by the output of one of them, with
an ending of its own. The file's own graph tells the rest: a layer is where its weight is.
"""

import re
from pathlib import Path
from typing import Any

ENDINGS = re.compile(r"(_kernel_time|_nchwc|_token_\d+|_quantized|_nhwc)+$")
"""What ONNX Runtime puts behind a name."""
LAYER = re.compile(r"^(?:network\.)?(.*)\.weight(?:_quantized|_scaled)?$")
FOLLOW = {"Clip", "Relu", "BatchNormalization", "HardSwish", "HardSigmoid", "Sigmoid", "Add"}
FOLLOW |= {"QuantizeLinear", "DequantizeLinear", "LeakyRelu"}
"""Operators that a layer's convolution is fused with."""


def names_of(path: Path) -> dict[str, str]:
    """Layer by name of a node, or of what it gives, for the .onnx file at `path`.

    What follows a layer's weighted operator, and is used by nothing else, is the layer's, too.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in graph.node:
        layer = _layer(node)
        while layer and node is not None:
            found.update(dict.fromkeys(filter(None, (node.name, node.output[0])), layer))
            after = users.get(node.output[0], [])
            node = after[0] if len(after) == 1 and after[0].op_type in FOLLOW else None
    return found


def _layer(node: Any) -> str | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    named = [match[1] for name in node.input if (match := LAYER.match(name))]
    if named:
        return named[0]
    return node.name if "." in node.name or node.name == "classifier" else None


def layer_of(event: str, names: dict[str, str]) -> str:
    """The layer of a profiler's event, or what the event calls its operator."""
    own = ENDINGS.sub("", event)
    return names.get(own, own)
