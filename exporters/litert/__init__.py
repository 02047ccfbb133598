"""LiteRT (once TensorFlow Lite): .tflite files for Android's most common runtime.

Both take the uint8 NHWC image as the phone has it. In the int8 file those pixels are the int8
values themselves: nothing is computed before the first convolution, whose weights and bias hold the
normalisation. Layers keep their names; labels and facts lie where the readers of Android and
MediaPipe look for them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import exporters
from exporters import QUANTIZED, Exported, Output, Sources, Variant
from exporters.onnx import quiet
from pipeline.contract import Facts
from pipeline.errors import ExportError, install, require
from pipeline.machine import package_version
from pipeline.records import InputSpec
from runtime import Availability, silence
from runtime.litert import EXTRA

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from models.classifier import Classifier

VERSION = 1
PACKAGES = (
    *("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer"),
    *("torch", "torchvision", "timm"),
)
ISOLATED = True
NEEDED = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")
WHEELS = (("linux", "x86_64"), ("darwin", "arm64"))
"""Systems and processors that litert-converter 0.5 is built for."""
FILE = "model.tflite"


class Settings(exporters.FormatSettings):
    """The table [export.litert]."""

    precisions: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    """Which files to write; int8 needs the calibration images of the quantize stage."""
    output: Output = "logits"
    """What the files answer."""


def availability() -> Availability:
    """Whether the converter and the quantizer are installed."""
    for module in NEEDED:
        if importlib.util.find_spec(module) is None:
            lacking = f"{module.replace('_', '-')} is not installed"
            if (sys.platform, platform.machine()) not in WHEELS:
                return Availability(
                    False, f"{lacking}, and its converter has no wheel for this system"
                )
            return Availability(False, lacking, install(EXTRA))
    return Availability(True, f"litert-torch {package_version('litert-torch')}")


def variants(settings: Settings) -> Sequence[Variant]:
    """fp32 and int8, both from the float student; int8 also from calibration images."""
    offered = (
        Variant("fp32", platforms=("android",)),
        Variant("int8", source=QUANTIZED, platforms=("android",)),
    )
    return [variant for variant in offered if variant.precision in settings.precisions]


def export(sources: Sources, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.tflite``.

    Raises `NotInstalledError` without LiteRT's packages, `ExportError` where it lacks an operator,
    TypeError where int8 is asked for and nothing was quantized.
    """
    images = None
    if variant.source == QUANTIZED:
        import numpy as np

        quantized = sources.graphs()
        images = np.load(quantized.folder / quantized.images)
    with _quiet():
        for module in NEEDED:
            require(module, EXTRA)
    import models
    from exporters.litert import metadata

    model = convert(models.load(sources.student), sources.facts, settings.output, images)
    (folder / FILE).write_bytes(metadata.pack(model, sources.facts, settings.output))
    return Exported(FILE, notes=() if images is None else _notes(model))


def _notes(model: Any) -> tuple[str, ...]:
    from exporters.litert import graph

    floats, total = graph.floats(model), len(model.subgraphs[0].operators)
    listed = ", ".join(f"{name} ({count}×)" for name, count in sorted(floats.items()))
    return (
        f"{total - floats.total()} of {total} operators are integer; float: {listed}.",
        "The pixels are the int8 values themselves: the first convolution holds the normalisation. "
        "What it pads with stands for the mean of all channels.",
    )


def convert(
    classifier: Classifier,
    facts: Facts,
    output: Output = "logits",
    images: NDArray[np.uint8] | None = None,
) -> Any:
    """The model of `classifier` (LiteRT's ModelT), in int8 where there are `images` to calibrate.

    `images` are uint8 [n, size, size, channels]. Raises `ExportError` naming operator and layer.
    """
    import torch

    from exporters.litert import graph
    from models.classifier import Answering

    spec = facts.input
    shape = (1, spec.size, spec.size, spec.channels)
    with _quiet():
        if images is None:
            example = torch.zeros(shape, dtype=torch.uint8)
            network = Answering(classifier, output, lambda own, image: own(image))
            return _converted(network, example, output)
        model = _converted(_of_shifted(classifier, spec), torch.zeros(shape), "logits")
        model = graph.in_int8(model, images, graph.Front.of(spec))
        graph.add_ends(model, output)
        return model


def _of_shifted(classifier: Classifier, spec: InputSpec) -> nn.Module:
    """`classifier` for float NHWC images of (pixel - zero point) · scale.

    The first convolution takes the rest of the normalisation: the differences of the scales into
    its weights, those of the means into its bias. That is exact but for padding, which now stands
    for the mean of all channels. Raises `ExportError` where the network begins otherwise.
    """
    import torch
    from torch import Tensor, nn

    from exporters.litert.graph import Front

    class OfShifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(classifier.network)

        def forward(self, shifted: Tensor) -> Tensor:
            return self.network(shifted.permute(0, 3, 1, 2).contiguous())

    shifted, front = OfShifted().eval(), Front.of(spec)
    first = next((each for each in shifted.modules() if isinstance(each, nn.Conv2d)), None)
    if first is None or first.in_channels != spec.channels:
        raise ExportError(
            "int8 needs a student that begins with a convolution",
            remedy='Choose another student.arch, or leave "int8" out of export.litert.precisions.',
        )
    mean, std = (255 * torch.tensor(each, dtype=torch.float64) for each in (spec.mean, spec.std))
    weight = first.weight.detach().double()
    bias = torch.einsum("oiyx,i->o", weight, (front.zero_point - mean) / std)
    if first.bias is not None:
        bias += first.bias.detach()
    first.weight = nn.Parameter((weight / (std * front.scale)[:, None, None]).float())
    first.bias = nn.Parameter(bias.float())
    return shifted


def _converted(network: nn.Module, example: torch.Tensor, output: Output) -> Any:
    """LiteRT's model of `network`, named. Raises `ExportError` naming operator and layer."""
    from exporters.litert import graph

    converter = require("litert_torch", EXTRA)
    try:
        content = converter.convert(network, (example,)).model_content()
    except (MemoryError, OSError):  # no refusal
        raise
    except Exception as error:  # neither torch.export nor the converter has a base for its errors
        raise _refusal(error, network, example) from error
    model = graph.read(content)
    graph.name(model, network, output)
    return model


def _refusal(error: Exception, network: nn.Module, example: torch.Tensor) -> ExportError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    layer = _layer(network, example, str(error))
    return ExportError(
        f"LiteRT refuses the student{f' at layer {layer}' if layer else ''}: "
        f"{lines[0] if lines else type(error).__name__}",
        remedy="Choose another student.arch, or leave litert out of [export].",
    )


def _layer(network: nn.Module, example: torch.Tensor, text: str) -> str | None:
    """The dotted name of the layer whose operator `text` speaks of."""
    import torch

    words = set(re.findall(r"aten\.(\w+)", text))
    try:
        nodes = torch.export.export(network, (example,)).graph.nodes
    except Exception:  # then it was torch.export that failed, and `text` is what it says
        return None
    for node in nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and str(node.target).removeprefix("aten.").split(".")[0] in words:
            return list(stack.values())[-1][0].removeprefix("classifier.")
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back progress, warnings, logs and what libraries write past Python; not exceptions."""
    with quiet(), silence():
        yield
