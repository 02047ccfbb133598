"""Core ML: an ML program that takes the camera's image as it is; weights of 16, 8, 6 or 4 bits.

The package takes an image of 0..255 (grey or RGB), normalises it inside, and answers with the
label and a number for every label. Labels, input contract and run key are in its metadata.

coremltools leaves in a package what changes from run to run: random identifiers in
``Manifest.json``, the date, its own version and the source's. All of it is rewritten or dropped,
so that exporting twice gives the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import platform
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import exporters
from exporters import Exported, Sources, Variant
from exporters.onnx import quiet
from pipeline.contract import Facts
from pipeline.errors import ExportError, install, require
from pipeline.machine import package_version
from pipeline.records import InputSpec
from runtime import Availability

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from models.classifier import Classifier

VERSION = 2
PACKAGES = ("coremltools", "torch", "torchvision", "timm", "scikit-learn")
EXTRA = "coreml"
ISOLATED = True
NEEDED = {"coremltools": "coremltools", "sklearn": "scikit-learn"}
"""Modules and their distributions; the second finds the palettes."""
WHEEL = ("linux", "x86_64")
"""Where it can write files, beside macOS."""
INPUT = "image"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "pocket-distillery")
"""Of the identifiers in Manifest.json, which must be unique within a package only."""
Kind = Literal["fp16", "w8a16", "w6a16", "w4a16"]


class Settings(exporters.FormatSettings):
    """The table [export.coreml]."""

    precisions: tuple[Kind, ...] = ("fp16", "w8a16", "w6a16", "w4a16")
    """Which files to write. Arithmetic is float16 in all of them; weights are float16, int8 with a
    scale for each channel, or palettized: 6 or 4 bits that point into a table (k-means)."""
    minimum_target: Literal["iOS15", "iOS16", "iOS17", "iOS18", "iOS26"] = "iOS16"
    """Oldest system that can run the file; ML programs begin with iOS15 (macOS12)."""
    output: exporters.Output = "probabilities"
    """What the file gives for every label. Vision shows probabilities as confidences."""


def availability() -> Availability:
    """Whether coremltools and scikit-learn are installed; they convert on macOS and Linux alike."""
    for module, name in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            if sys.platform != "darwin" and (sys.platform, platform.machine()) != WHEEL:
                here = f"{platform.system()} on {platform.machine()}"
                return Availability(False, f"coremltools has no package for {here}")
            return Availability(False, f"{name} is not installed", install(EXTRA))
    return Availability(True, f"coremltools {package_version('coremltools')}")


def variants(settings: Settings) -> Sequence[Variant]:
    """Float16, which is what Apple's GPU and Neural Engine compute in, and smaller weights."""
    return [Variant(kind, platforms=("ios",)) for kind in settings.precisions]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back import notices and progress bars; failures still come as exceptions."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield


def export(sources: Sources, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.mlpackage``.

    Raises `NotInstalledError` without coremltools, `ExportError` where Core ML lacks an operator.
    """
    import models

    student, facts = sources.student, sources.facts
    classifier = models.load(student)
    model = compress(convert(classifier, facts.input, facts.labels, settings), variant.precision)
    package = folder / "model.mlpackage"
    with _silence():
        model.save(str(package))
        spec = model.get_spec()
    _describe(spec, facts, settings)
    _freeze(package, spec)
    return Exported(package.name)


@_silence()
def compress(model: Any, precision: str) -> Any:
    """The coremltools `model` with weights of `precision`."""
    from coremltools.optimize import coreml as optimize

    if precision == "fp16":
        return model
    if precision == "w8a16":
        op = optimize.OpLinearQuantizerConfig(mode="linear_symmetric")
        return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op))
    bits = {"w6a16": 6, "w4a16": 4}[precision]
    op = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits)
    return optimize.palettize_weights(model, optimize.OptimizationConfig(op))


@_silence()
def convert(
    classifier: Classifier, spec: InputSpec, labels: Sequence[str], settings: Settings
) -> Any:
    """The coremltools model of `classifier`. Raises `ExportError` naming operator and layer."""
    ct = require("coremltools", EXTRA)
    import torch

    from models.classifier import Answering, Classifier

    shape = (1, spec.channels, spec.size, spec.size)
    network = Answering(classifier, settings.output, Classifier.from_pixels)
    try:
        program = torch.export.export(network, (torch.zeros(shape),)).run_decompositions({})
    except Exception as error:  # torch.export has no public base class for its errors
        raise _refusal("torch.export", error) from error
    layout = ct.colorlayout.GRAYSCALE if spec.channels == 1 else ct.colorlayout.RGB
    try:
        return ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[ct.ImageType(name=INPUT, shape=shape, color_layout=layout)],
            classifier_config=ct.ClassifierConfig(list(labels)),
            minimum_deployment_target=ct.target[settings.minimum_target],
            compute_precision=ct.precision.FLOAT16,
            skip_model_load=True,  # on macOS it would be compiled here, for nothing
        )
    except OSError:  # a full disk is no refusal
        raise
    except Exception as error:  # nor has coremltools
        raise _refusal("Core ML", error, program) from error


def _refusal(who: str, error: Exception, program: ExportedProgram | None = None) -> ExportError:
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    layer = _layer(program, text) if program is not None else None
    return ExportError(
        f"{who} refuses the student{f' at layer {layer}' if layer else ''}: {text}",
        remedy="Choose another student.arch, or a newer export.coreml.minimum_target.",
    )


def _layer(program: ExportedProgram, text: str) -> str | None:
    """The dotted name of the layer whose operator `text` speaks of."""
    words = set(re.findall(r"\w+", text))
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and node.name in words:
            return list(stack.values())[-1][0].removeprefix("classifier.")
    return None


def _describe(spec: Any, facts: Facts, settings: Settings) -> None:
    """Write what Xcode shows of a model, and what a program may want to read from it."""
    about, size = spec.description, facts.input.size
    colour = "grey" if facts.input.channels == 1 else "RGB"
    about.input[0].shortDescription = f"{colour}, {size} x {size}; normalised inside"
    for feature in about.output:
        most_likely = feature.name == about.predictedFeatureName
        feature.shortDescription = (
            "Most likely class" if most_likely else f"{settings.output} by class"
        )
    about.metadata.Clear()  # coremltools' own entries: date and versions
    about.metadata.shortDescription = (
        f"{facts.arch}: names one of {len(facts.labels)} classes of an image"
    )
    about.metadata.versionString = facts.student
    about.metadata.license = facts.licence
    about.metadata.userDefined.update(facts.texts(settings.output))


def _freeze(package: Path, spec: Any) -> None:
    """Take out of `package` what would differ in the next export of the same student."""
    manifest = json.loads((package / "Manifest.json").read_text(encoding="utf-8"))
    fixed = {
        old: str(uuid.uuid5(NAMESPACE, item["path"]))
        for old, item in manifest["itemInfoEntries"].items()
    }
    root = manifest["rootModelIdentifier"]
    model = package / "Data" / manifest["itemInfoEntries"][root]["path"]
    manifest["itemInfoEntries"] = {
        fixed[old]: item for old, item in manifest["itemInfoEntries"].items()
    }
    manifest["rootModelIdentifier"] = fixed[root]
    text = json.dumps(manifest, indent=4, sort_keys=True) + "\n"
    (package / "Manifest.json").write_text(text, encoding="utf-8")
    spec.mlProgram.attributes.pop("buildInfo", None)  # date and versions once more
    # Protobuf maps are otherwise written in an order that differs between processes.
    model.write_bytes(spec.SerializeToString(deterministic=True))
    # A by-product of converting from torch.export, which nothing on the phone reads.
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
