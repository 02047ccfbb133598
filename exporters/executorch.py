"""ExecuTorch: a .pte program for PyTorch's own runtime on the phone, computed by XNNPACK.

Both files take the uint8 NHWC image as the phone has it. One operator stays outside XNNPACK, the
cast of the pixels to float; transposing and normalising are inside. What the file says of itself
is in methods of the program that take nothing and give a text: `module.execute("labels")`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import exporters
from exporters import QUANTIZED, Exported, Output, Sources, Variant
from pipeline.contract import Facts
from pipeline.errors import ExportError, PipelineError, install, require
from pipeline.machine import package_version
from pipeline.records import InputSpec
from runtime import Availability, silence
from runtime.executorch import EXTRA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from models.classifier import Classifier

VERSION = 1
PACKAGES = ("executorch", "torch", "torchao", "torchvision", "timm")
ISOLATED = True
FILE = "model.pte"
BATCH = 32
"""Calibration images at once."""
UNCOUNTED = (
    *("permute_copy", "view_copy", "clone", "_to_copy", "_to_dim_order_copy", "_clone_dim_order"),
    "_native_batch_norm_legit_no_training",
)
"""Operators within XNNPACK that only copy, or become part of the convolution before them."""
CLAMPS = ("hardtanh", "relu", "clamp")
"""Operators that XNNPACK takes into the one before them, in int8 where that is."""


class Settings(exporters.FormatSettings):
    """The table [export.executorch]."""

    precisions: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    """Which files to write; int8 needs the calibration images of the quantize stage."""
    output: Output = "logits"
    """What the files answer."""


def availability() -> Availability:
    """Whether ExecuTorch and torchao, which quantizes for it, are installed."""
    for package in ("executorch", "torchao"):
        if importlib.util.find_spec(package) is None:
            return Availability(False, f"{package} is not installed", remedy=install(EXTRA))
    return Availability(True, f"executorch {package_version('executorch')}")


def variants(settings: Settings) -> Sequence[Variant]:
    """fp32 and int8, both from the float student; int8 also from calibration images."""
    offered = (
        Variant("fp32", platforms=("android", "ios")),
        Variant("int8", source=QUANTIZED, platforms=("android", "ios")),
    )
    return [variant for variant in offered if variant.precision in settings.precisions]


def export(sources: Sources, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.pte``.

    Raises `NotInstalledError` without ExecuTorch, `ExportError` where it lacks an operator,
    TypeError where int8 is asked for and nothing was quantized.
    """
    images = None
    if variant.source == QUANTIZED:
        import numpy as np

        quantized = sources.graphs()
        images = np.load(quantized.folder / quantized.images)
    require("executorch", EXTRA)
    import models

    student = models.load(sources.student)
    program, census = convert(student, sources.facts, settings.output, images)
    (folder / FILE).write_bytes(program)
    return Exported(FILE, notes=census.notes)


class Census(NamedTuple):
    """Which operators run where: types, and how often each stands in the program."""

    integers: Counter[str]  # inside XNNPACK, computed in int8
    floats: Counter[str]  # inside XNNPACK, computed in float; conversions and copies left out
    portable: Counter[str]  # outside, in ExecuTorch's own kernels

    @property
    def notes(self) -> tuple[str, ...]:
        """In sentences."""
        inside, outside = self.integers.total() + self.floats.total(), self.portable.total()
        where = f"XNNPACK runs {inside} of {inside + outside} operators"
        notes = [f"{where}; in ExecuTorch's own kernels: {_listed(self.portable)}."]
        if self.integers:
            count = self.integers.total()
            notes.append(f"{count} of these run in int8; in float: {_listed(self.floats)}.")
        return tuple(notes)


def convert(
    classifier: Classifier,
    facts: Facts,
    output: Output = "logits",
    images: NDArray[np.uint8] | None = None,
) -> tuple[bytes, Census]:
    """The program of `classifier` and what is in it; in int8 where `images` are given.

    They calibrate it, uint8 [n, size, size, channels]; `facts` is what the program says of itself.
    Raises `ExportError` naming operator and layer.
    """
    from models.classifier import Answering

    with _undisturbed():
        exir = require("executorch.exir", EXTRA)
        partition = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        partitioner = require(partition, EXTRA).XnnpackPartitioner()
        network = Answering(classifier, output, _logits)
        program = None
        try:
            program = _exported(network, facts.input, images)
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[partitioner], constant_methods=facts.texts(output)
            )
            census = _census(edge.exported_program().graph_module)
            return bytes(edge.to_executorch().buffer), census
        except (MemoryError, OSError, PipelineError):  # no refusal
            raise
        except Exception as error:  # neither torch.export nor ExecuTorch has a base for its errors
            raise _refusal(error, program) from error


def _logits(classifier: Classifier, images: Tensor) -> Tensor:
    """Logits of uint8 NHWC `images`, cast before they are transposed: XNNPACK gets the latter."""
    import torch

    return classifier.from_pixels(images.to(torch.float32).permute(0, 3, 1, 2).contiguous())


def _exported(
    network: nn.Module, spec: InputSpec, images: NDArray[np.uint8] | None
) -> ExportedProgram:
    """`network` as a graph of batch 1, quantized where there are `images`."""
    import torch

    image = torch.zeros(1, spec.size, spec.size, spec.channels, dtype=torch.uint8)
    if images is not None:
        network = _quantized(network, images)
    program = torch.export.export(network, (image,))
    _rewrite(program.graph)
    return program


def _rewrite(graph: Any) -> None:
    """Replace what would be decomposed into more than XNNPACK has.

    Pooling would end with an as_strided where the image has shrunk to one pixel, and a hard sigmoid
    would cast its integer constants in each run.
    """
    import torch

    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target == aten.adaptive_avg_pool2d.default and tuple(node.args[1]) == (1, 1):
            node.target, node.args = aten.mean.dim, (node.args[0], [2, 3], True)
        elif node.target in (aten.hardsigmoid.default, aten.hardsigmoid_.default):
            with graph.inserting_before(node):
                scaled = graph.call_function(aten.mul.Tensor, (node.args[0], 1 / 6))
                shifted = graph.call_function(aten.add.Tensor, (scaled, 0.5))
            scaled.meta, shifted.meta = node.meta.copy(), node.meta.copy()
            node.target, node.args = aten.hardtanh.default, (shifted, 0.0, 1.0)


def _quantized(network: nn.Module, images: NDArray[np.uint8]) -> nn.Module:
    """`network` with int8 weights, one scale a channel, and int8 activations as in `images`."""
    import torch

    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", EXTRA)
    xnnpack = require("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", EXTRA)
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(config).set_filter_function(_may_be_int8)
    batches = [torch.from_numpy(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
    free = ({0: torch.export.Dim("batch")},)
    example = torch.zeros(2, *images.shape[1:], dtype=torch.uint8)
    graph = torch.export.export(network, (example,), dynamic_shapes=free).module()
    prepared = pt2e.prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return pt2e.convert_pt2e(prepared)


def _may_be_int8(node: Any) -> bool:
    """Whether the quantizer may have `node`: not the normalisation, which it would round twice."""
    import torch

    arithmetic = (torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor)
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return node.target not in arithmetic or any(path.endswith("network") for path in modules)


def _census(graph: Any) -> Census:
    """Count the operators of a lowered graph."""
    lowered = require("executorch.exir.lowered_backend_module", EXTRA).get_lowered_submodules
    tagged = require("executorch.backends.xnnpack.utils.quant_utils", EXTRA)
    integers, floats = Counter[str](), Counter[str]()
    for _, module, _ in lowered(graph):
        whole = set()
        for node in module.original_module.graph.nodes:
            if (name := _operator(node)) is None or "quantize" in name or name in UNCOUNTED:
                continue
            before = node.all_input_nodes
            # A conversion that XNNPACK takes into the operator behind it makes that an integer one.
            implicit = any(tagged.is_tagged_as_implicit_q_dq(each) for each in before)
            if implicit or (name in CLAMPS and before[0] in whole):
                whole.add(node)
            (integers if node in whole else floats)[name] += 1
    names = (_operator(node) for node in graph.graph.nodes)
    return Census(integers, floats, Counter(name for name in names if name is not None))


def _operator(node: Any) -> str | None:
    """The name of the operator that `node` calls, without its namespace; None for no operator."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return schema.name.split("::")[-1] if schema is not None else None


def _listed(counts: Counter[str]) -> str:
    plain = {name: name.strip("_") for name in counts} | {"_to_dim_order_copy": "cast"}
    return ", ".join(f"{count} {plain[name]}" for name, count in sorted(counts.items())) or "none"


def _refusal(error: Exception, program: ExportedProgram | None) -> ExportError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    layer = _layer(program, str(error)) if program is not None else None
    who = "torch.export" if program is None else "ExecuTorch"
    return ExportError(
        f"{who} refuses the student{f' at layer {layer}' if layer else ''}: {text}",
        remedy="Choose another student.arch, or leave executorch out of [export].",
    )


def _layer(program: ExportedProgram, text: str) -> str | None:
    """The dotted name of the layer whose operator `text` speaks of."""
    words = set(re.findall(r"aten(?:\.|::)(\w+)", text))
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and _operator(node) in words:
            return list(stack.values())[-1][0].removeprefix("classifier.")
    return None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back warnings, logs and what libraries write past Python; errors come through.

    Garbage is left, too: lowering makes millions of objects, and searching them for it takes a
    third of the time.
    """
    disabled, collects = logging.root.manager.disable, gc.isenabled()
    with silence():
        logging.disable(logging.WARNING)
        gc.disable()
        try:
            yield
        finally:
            logging.disable(disabled)
            if collects:
                gc.enable()
