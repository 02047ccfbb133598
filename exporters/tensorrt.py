"""TensorRT: an engine where this machine can build one, else the graph and a script that does.

An engine fits one TensorRT version and one kind of GPU, so it is built on the machine that has
them. Elsewhere the shipped file is ``model.onnx``, ready for TensorRT's parser, and
``build_engine.sh`` calls trtexec on it. Networks are strongly typed, the only kind TensorRT 11
knows: fp16 is a graph in float16, int8 one with explicit Q/DQ. `prepare` and `build_engine` serve
TensorRT for RTX too, whose Python API is the same under another name.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from exporters import Exported, Variant
from exporters.onnx import INPUT
from pipeline import settings
from pipeline.errors import CannotRunHereError, ExportError, UnavailableError, require
from pipeline.machine import cuda_devices, cuda_name, driver_version
from pipeline.records import Artifact, Result
from runtime import Availability

if TYPE_CHECKING:
    import onnx

VERSION = 1
PACKAGES = ("onnx", "tensorrt", "tensorrt-cu12", "tensorrt-cu13")
EXTRA = "tensorrt"
EXECUTED = "needs an NVIDIA GPU, and a runtime that this project has not yet"
VARIES = {"model.engine": "an engine's kernels are chosen by timing them on the GPU"}
"""Files that are not the same bytes in every export, and why."""

SCRIPT = """\
#!/bin/sh
# Builds model.engine from the model.onnx beside this script, for the GPU of this machine.
# Further arguments are passed to trtexec.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if ! command -v trtexec >/dev/null 2>&1; then
    echo "build_engine.sh: trtexec is not on PATH. It comes with TensorRT 10 or later: in bin/ of
the archive, in /usr/src/tensorrt/bin of the Debian package. Add that folder to PATH." >&2
    exit 127
fi
# TensorRT 10 has to be told to keep the types of the graph; TensorRT 11 always does.
typed=
if trtexec --help 2>&1 | grep -e --stronglyTyped >/dev/null; then
    typed=--stronglyTyped
fi
exec trtexec --onnx="$here/model.onnx" --saveEngine="$here/model.engine" --skipInference \\
    --minShapes={minimum} --optShapes={optimum} --maxShapes={maximum} $typed "$@"
"""


class EngineSettings(settings.Settings):
    """What engines of either kind share: the batch sizes they take, and the files to write."""

    min_batch: int = Field(default=1, ge=1)
    """Fewest images at once."""
    opt_batch: int = Field(default=1, ge=1)
    """The number the engine is made fastest for."""
    max_batch: int = Field(default=1, ge=1)
    """Most images at once."""
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    """Which files to write, each from the ONNX file of that precision."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError("must hold: min_batch <= opt_batch <= max_batch")
        return self


class Settings(EngineSettings):
    """The table [export.tensorrt]."""


def availability() -> Availability:
    """Always there; `detail` says what would be made."""
    if missing := _missing():
        return Availability(True, f"graph and trtexec script only: {missing}")
    # The driver's version is part of the store's key: with another one a build may succeed.
    return Availability(True, f"an engine for the {cuda_name()}, driver {driver_version()}")


def variants(settings: EngineSettings) -> Sequence[Variant]:
    """fp32, fp16 and int8, each from the ONNX file of that precision."""
    offered = (
        Variant("fp32", source="onnx fp32"),
        Variant("fp16", source="onnx fp16"),
        Variant("int8", source="onnx int8 (symmetric)"),
    )
    return [variant for variant in offered if variant.precision in settings.precisions]


def export(source: Result, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.engine`` and ``engine.json``, or ``model.onnx`` and ``build_engine.sh``.

    Raises `ExportError` where TensorRT refuses the graph.
    """
    model = prepare(source)
    missing = _missing()
    if missing is None:
        try:
            return _engine(model, settings, folder)
        except UnavailableError as error:  # an installation that does not fit driver or GPU
            missing = error.message
    return _recipe(model, settings, folder, missing)


def _engine(model: onnx.ModelProto, settings: Settings, folder: Path) -> Exported:
    trt = require("tensorrt", EXTRA)
    engine = build_engine(trt, model, settings)
    (folder / "model.engine").write_bytes(engine)
    facts = {"tensorrt": trt.__version__, "gpu": cuda_name(), **describe(model, settings)}
    write_json(folder / "engine.json", facts)
    return Exported("model.engine", extras=("engine.json",))


def _recipe(model: onnx.ModelProto, settings: Settings, folder: Path, missing: str) -> Exported:
    import onnx

    onnx.save(model, folder / "model.onnx")
    script = folder / "build_engine.sh"
    script.write_text(trtexec_script(model, settings), encoding="utf-8", newline="\n")
    script.chmod(0o755)
    return Exported(
        "model.onnx",
        extras=(script.name,),
        skipped=f"no engine, because {missing}; {script.name} builds it where trtexec and the "
        "GPU are",
    )


def trtexec_script(model: onnx.ModelProto, settings: EngineSettings) -> str:
    """The text of build_engine.sh."""
    height, width, channels = _image_shape(model)
    return SCRIPT.format(
        **{
            name: f"{INPUT}:{batch}x{height}x{width}x{channels}"
            for name, batch in (
                ("minimum", settings.min_batch),
                ("optimum", settings.opt_batch),
                ("maximum", settings.max_batch),
            )
        }
    )


def prepare(source: Result) -> onnx.ModelProto:
    """The graph of an ONNX artifact in the form TensorRT's parser takes.

    TensorRT knows uint8 only as a type of inputs and lets nothing but a cast touch it, whereas
    the shipped ONNX file transposes first, which moves a quarter of the bytes on a CPU.
    """
    import onnx

    if not isinstance(source, Artifact):
        raise TypeError(f"an engine is made from an ONNX Artifact, not {type(source)}")
    model = onnx.load(source.path)
    graph = model.graph
    readers = [node for node in graph.node if INPUT in node.input]
    if all(node.op_type == "Cast" for node in readers):
        return model
    cast = f"{INPUT}_float"
    for node in readers:
        renamed = [cast if name == INPUT else name for name in node.input]
        node.ClearField("input")
        node.input.extend(renamed)
    own = next(node for node in graph.node if node.op_type == "Cast")
    kind = onnx.helper.get_node_attr_value(own, "to")
    head = onnx.helper.make_node("Cast", [INPUT], [cast], name=cast, to=kind)
    graph.node.insert(0, head)
    graph.ClearField("value_info")  # it still says uint8 of what follows
    return model


def build_engine(
    trt: ModuleType,
    model: onnx.ModelProto,
    settings: EngineSettings,
    configure: Callable[[Any], None] = lambda config: None,
) -> bytes:
    """The serialized engine of `model`, built by `trt`: tensorrt or tensorrt_rtx.

    `configure` gets the builder's configuration. Raises `ExportError` with what the parser or the
    builder said, `CannotRunHereError` where the builder does not start.
    """
    log = _logger(trt)
    log.errors.clear()
    try:
        builder = trt.Builder(log)
    except (RuntimeError, TypeError) as error:  # pybind11's way to say that a factory gave null
        raise CannotRunHereError(
            f"{trt.__name__} {trt.__version__} does not start: {_reason(log.errors) or error}",
            remedy="Install the version that fits this machine's NVIDIA driver.",
        ) from error
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        said = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise _refusal(trt, "cannot read the graph", said)
    config = builder.create_builder_config()
    configure(config)
    profile = builder.create_optimization_profile()
    sizes = (settings.min_batch, settings.opt_batch, settings.max_batch)
    profile.set_shape(INPUT, *((size, *_image_shape(model)) for size in sizes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refusal(trt, "cannot build the engine", log.errors)
    return bytes(engine)


def describe(model: onnx.ModelProto, settings: EngineSettings) -> dict[str, Any]:
    """What engine.json says besides the version: contract, labels and run key of the ONNX file."""
    facts = {prop.key: prop.value for prop in model.metadata_props}
    return {
        "batch": {"min": settings.min_batch, "opt": settings.opt_batch, "max": settings.max_batch},
        "input": json.loads(facts["input"]),
        "labels": json.loads(facts["labels"]),
        "student": facts["student"],
        "arch": facts["arch"],
    }


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write `facts` for people and programs."""
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _missing() -> str | None:
    if importlib.util.find_spec("tensorrt") is None:
        return f'tensorrt is not installed (the extra "{EXTRA}")'
    return None if cuda_devices() > 0 else "there is no NVIDIA GPU"


def _image_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims[1:])


def _strongly_typed(trt: Any) -> int:
    # TensorRT 11 is always strongly typed and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


@functools.cache  # the library keeps the first logger it meets, so that one must never be freed
def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Log()


def _parser_error(error: Any) -> str:
    return f"{error.node_operator()} `{error.node_name()}`: {_reason([error.desc()])}"


def _refusal(trt: ModuleType, what: str, said: Sequence[str]) -> ExportError:
    return ExportError(
        f"{trt.__name__} {trt.__version__} {what}: {_reason(said) or 'it gave no reason'}",
        remedy=f"Choose another student.arch, or other keys in [export.{trt.__name__}].",
    )


def _reason(messages: Sequence[str]) -> str:
    """`messages` without source positions and, if there is more, without that there is no GPU."""
    text = re.sub(r"\s*In \w+ at /[^\s)]+", "", "\n".join(messages))
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    return "; ".join([line for line in lines if "cudaError" not in line] or lines)
