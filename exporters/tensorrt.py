"""TensorRT: an engine where this machine can build one, else the graph and a script that does.

An engine fits one TensorRT version and one kind of GPU, so it is built on the machine that has
them. Elsewhere the shipped file is ``model.onnx``, ready for TensorRT's parser, and
``build_engine.sh`` calls trtexec on it. Networks are strongly typed, the only kind TensorRT 11
knows: fp16 is a graph in float16, int8 one with explicit Q/DQ. ``engine.json`` beside an engine
says what it was built with and what it is; `runtime.tensorrt` reads it. `prepare` and
`build_engine` serve TensorRT for RTX too, whose Python API is the same under another name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from exporters import Exported, FormatSettings, Sources, Variant
from exporters.onnx import INPUT
from pipeline.errors import CannotRunHereError, ExportError, UnavailableError, require
from pipeline.machine import cuda_name, driver_version
from pipeline.records import Artifact
from runtime import Availability
from runtime.tensorrt import FACTS, TENSORRT, Stamp, logger, reason, stamp_of
from runtime.tensorrt import availability as can_run
from runtime.tensorrt_rtx import Reading, read_network

if TYPE_CHECKING:
    import onnx

VERSION = 2
PACKAGES = ("onnx", "tensorrt", "tensorrt-cu12", "tensorrt-cu13")
EXTRA = "tensorrt"
ISOLATED = True
VARIES = {"model.engine": "an engine's kernels are chosen by timing them on the GPU"}
"""Files that are not the same bytes in every export, and why."""

ENGINE = "model.engine"
DECODED = ("labels", "input", "accuracy")
"""Facts that are JSON even in a format's metadata."""

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


class Built(NamedTuple):
    """An engine, and what it was built from."""

    engine: bytes
    reading: Reading


class EngineSettings(FormatSettings):
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
    titles = {"fp32": "onnx fp32", "fp16": "onnx fp16", "int8": "onnx int8 (symmetric)"}
    return [
        Variant(precision, source=title, platforms=("nvidia",))
        for precision, title in titles.items()
        if precision in settings.precisions
    ]


def export(sources: Sources, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.engine`` and ``engine.json``, or ``model.onnx`` and ``build_engine.sh``.

    Raises `ExportError` where TensorRT refuses the graph.
    """
    source = sources.file(variant)
    model = prepare(source)
    missing = _missing()
    if missing is None:
        try:
            built = build_engine(require("tensorrt", EXTRA), model, settings)
            stamp = stamp_of(TENSORRT)
        except UnavailableError as error:  # an installation that does not fit driver or GPU
            missing = error.message
        else:
            write_engine(built, stamp, sources, source, settings, folder)
            note = f"It runs with {stamp}, and nowhere else."
            return Exported(ENGINE, extras=(FACTS,), notes=(note, built.reading.line))
    return _recipe(model, settings, folder, missing)


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


def prepare(source: Artifact) -> onnx.ModelProto:
    """The graph of an ONNX artifact in the form TensorRT's parser takes.

    TensorRT knows uint8 only as a type of inputs and lets nothing but a cast touch it, whereas
    the shipped ONNX file transposes first, which moves a quarter of the bytes on a CPU.
    """
    import onnx

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
) -> Built:
    """The engine of `model`, built by `trt`: tensorrt or tensorrt_rtx.

    `configure` gets the builder's configuration. Raises `ExportError` with what the parser or the
    builder said, `CannotRunHereError` where the builder does not start.
    """
    log = logger(trt)
    log.errors.clear()
    try:
        builder = trt.Builder(log)
    except (RuntimeError, TypeError) as error:  # pybind11's way to say that a factory gave null
        said = reason(log.errors or [str(error)])
        raise CannotRunHereError(
            f"{trt.__name__} {trt.__version__} does not start: {said}",
            remedy="Install the version that fits this machine's NVIDIA driver.",
        ) from error
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        said = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise _refusal(trt, "cannot read the graph", said)
    reading = read_network(trt, network)
    config = builder.create_builder_config()
    configure(config)
    profile = builder.create_optimization_profile()
    sizes = (settings.min_batch, settings.opt_batch, settings.max_batch)
    profile.set_shape(INPUT, *((size, *_image_shape(model)) for size in sizes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        refusal = _refusal(trt, "cannot build the engine", log.errors)
        _rinse(trt, configure)
        raise refusal
    return Built(bytes(engine), reading)


def _rinse(trt: ModuleType, configure: Callable[[Any], None]) -> None:
    """Build an engine of one layer, for nobody.

    After one that was refused for Turing, TensorRT for RTX 1.7 makes another engine than it makes
    else of the next network in this process, of twice the size.
    """
    builder = trt.Builder(logger(trt))
    network = builder.create_network(_strongly_typed(trt))
    value = network.add_input("value", trt.DataType.FLOAT, (1,))
    network.mark_output(network.add_activation(value, trt.ActivationType.RELU).get_output(0))
    config = builder.create_builder_config()
    configure(config)
    builder.build_serialized_network(network, config)


def write_engine(
    built: Built,
    stamp: Stamp,
    sources: Sources,
    source: Artifact,
    settings: EngineSettings,
    folder: Path,
) -> None:
    """Write ``model.engine``, and into ``engine.json`` its stamp and what it is."""
    (folder / ENGINE).write_bytes(built.engine)
    batch = {"min": settings.min_batch, "opt": settings.opt_batch, "max": settings.max_batch}
    texts = sources.facts.texts(source.output)
    facts = {
        "built": stamp.model_dump(mode="json"),
        "bytes": len(built.engine),
        "batch": batch,
        "network": built.reading._asdict(),
        **{key: json.loads(text) if key in DECODED else text for key, text in texts.items()},
    }
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    (folder / FACTS).write_text(text, encoding="utf-8", newline="\n")


def _missing() -> str | None:
    found = can_run()
    return None if found.ok else found.in_full


def _image_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims[1:])


def _strongly_typed(trt: Any) -> int:
    # TensorRT 11 is always strongly typed and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_error(error: Any) -> str:
    return f"{error.node_operator()} `{error.node_name()}`: {reason([error.desc()])}"


def _refusal(trt: ModuleType, what: str, said: Sequence[str]) -> ExportError:
    return ExportError(
        f"{trt.__name__} {trt.__version__} {what}: {reason(said)}",
        remedy=f"Choose another student.arch, or other keys in [export.{trt.__name__}].",
    )
