"""Whether an ONNX graph suits a phone's accelerators, and the form of it that does.

ONNX Runtime hands a graph to NNAPI or Core ML in pieces; each operator that the accelerator lacks
cuts it once more, and the copies between pieces soon cost more than is won. MobileNetV3's hard
sigmoid and hard swish are such operators. With Clip they are none, but then each is three or four
on a CPU, so that one graph cannot be the best for both.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import onnx

LACKED = ("HardSigmoid", "HardSwish")


class Partitions(NamedTuple):
    """What ONNX Runtime's mobile-usability check says of one accelerator."""

    accelerator: str
    pieces: int
    """In how many pieces it would take the graph; 0 where it takes no node."""
    supported: int
    """Nodes it takes."""
    nodes: int

    @property
    def words(self) -> str:
        """As "NNAPI: 3 pieces, 50 of 60 nodes"."""
        pieces = f"{self.pieces} piece{'s' * (self.pieces != 1)}"
        return f"{self.accelerator}: {pieces}, {self.supported} of {self.nodes} nodes"


def usability(model: onnx.ModelProto) -> list[Partitions]:
    """How NNAPI and Core ML (ML program) would take `model`, whose shapes must be fixed."""
    import onnx
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    inferred = onnx.shape_inference.infer_shapes(model)
    with contextlib.redirect_stdout(io.StringIO()):
        found = {
            "NNAPI": checker.check_nnapi_partitions(inferred, True),
            "Core ML": checker.check_coreml_partitions(
                inferred, True, "coreml_supported_mlprogram_ops.md"
            ),
        }
    return [
        Partitions(name, each.num_partitions, each.num_supported_nodes, each.num_nodes)
        for name, each in found.items()
    ]


def in_words(before: list[Partitions], after: list[Partitions] | None = None) -> str:
    """One sentence on what the check found."""
    told = "; ".join(each.words for each in before)
    if after is None:
        return f"ONNX Runtime's mobile-usability check: {told}."
    better = "; ".join(each.words for each in after)
    return f"ONNX Runtime's mobile-usability check: {better} (as exported for CPUs: {told})."


def fix_batch(model: onnx.ModelProto, batch: int = 1) -> onnx.ModelProto:
    """`model` for so many images at once; accelerators want every shape known."""
    import onnx

    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def clip_form(model: onnx.ModelProto) -> int:
    """Write every hard sigmoid and hard swish of `model` with Clip; returns how many there were."""
    from onnx import helper, numpy_helper

    nodes, found = [], 0
    for node in model.graph.node:
        if node.op_type not in LACKED:
            nodes.append(node)
            continue
        found += 1
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        slope, offset = (given.get("alpha", 0.2), given.get("beta", 0.5))
        if node.op_type == "HardSwish":  # x · max(0, min(1, x / 6 + 0.5))
            slope, offset = 1 / 6, 0.5
        (taken,), (out,), name = node.input, node.output, node.name or node.output[0]
        values = {"slope": slope, "offset": offset, "low": 0.0, "high": 1.0}
        keys = [f"{out}_{key}" for key in values]
        for key, value in zip(keys, values.values(), strict=True):
            tensor = numpy_helper.from_array(np.array(value, np.float32), key)
            model.graph.initializer.append(tensor)
        steep, shifted, gate = (f"{out}_{part}" for part in ("steep", "shifted", "gate"))
        clipped = gate if node.op_type == "HardSwish" else out
        nodes += [
            helper.make_node("Mul", [taken, keys[0]], [steep], name=f"{name}/slope"),
            helper.make_node("Add", [steep, keys[1]], [shifted], name=f"{name}/offset"),
            helper.make_node("Clip", [shifted, *keys[2:]], [clipped], name=f"{name}/clip"),
        ]
        if clipped == gate:
            nodes.append(helper.make_node("Mul", [taken, gate], [out], name=f"{name}/mul"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return found
