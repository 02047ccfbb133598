"""ORT: ONNX Runtime's own format, for mobile builds that hold only the operators it needs.

A mobile package of ONNX Runtime built with ``--minimal_build`` reads nothing else, and
``required_operators.config`` beside the file is what ``--include_ops_by_config`` takes. The graph
in it is optimized by rules that hold on every CPU ("arm" leaves out those for x86 alone).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import exporters
from exporters import Exported, Sources, Variant
from exporters.onnx import quiet
from pipeline.errors import ExportError
from pipeline.machine import package_version
from runtime import Availability

VERSION = 2
PACKAGES = ("onnx", "onnxruntime")
EXTRA = None
ISOLATED = False
FILE, OPERATORS = "model.ort", "required_operators.config"
VARIES = {FILE: "ONNX Runtime writes weights in the order of a hash table, another one each time"}
"""Files that are not the same bytes in every export, and why."""
LAYOUTS = (
    "without the memory layout of one CPU family's kernels (NCHWc) that an ONNX file is given when "
    "it is loaded: on x86 it is slower than that"
)


class Settings(exporters.FormatSettings):
    """The table [export.ort]; what the files answer is export.onnx.output."""

    precisions: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    """Which files to write, each from the ONNX file of that precision."""
    optimization: Literal["basic", "extended", "all"] = "all"
    """How far the graph is optimized beforehand; a minimal build does no more of it."""


def availability() -> Availability:
    """Plain dependencies: always there."""
    return Availability(True, f"onnxruntime {package_version('onnxruntime')}")


def variants(settings: Settings) -> Sequence[Variant]:
    """fp32 and int8, from the ONNX file of the same precision."""
    return [
        Variant(precision, source=f"onnx {precision}", platforms=("android", "ios"))
        for precision in settings.precisions
    ]


def export(sources: Sources, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.ort`` and ``required_operators.config``.

    Raises `ExportError` where ONNX Runtime does not convert the graph.
    """
    source = sources.file(variant).path
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, FILE)
        try:
            _convert(source, made, settings)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ExportError(
                f"ONNX Runtime cannot write {source.name} in the ORT format: {error}",
                remedy='Leave "ort" out of export.formats.',
            ) from error
        (folder / FILE).write_bytes(made.read_bytes())
        _write_operators(made, folder / OPERATORS)
    slower = variant.precision == "fp32" and settings.optimization == "all"
    return Exported(FILE, extras=(OPERATORS,), notes=(LAYOUTS,) if slower else ())


def _convert(source: Path, target: Path, settings: Settings) -> None:
    from onnxruntime.tools.onnx_model_utils import get_optimization_level

    from runtime.onnx_runtime import PROVIDER, quiet_import

    ort = quiet_import()
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = get_optimization_level(settings.optimization)
    options.add_session_config_entry("session.save_model_format", "ORT")
    # For phones: int8 stays int8, where on x86 it would be rewritten as uint8.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.log_severity_level = 3
    # As onnxruntime.tools.convert_onnx_models_to_ort does for phones: layouts that only x86's
    # kernels know are left out.
    others = ["NchwcTransformer"] if settings.optimization == "all" else []
    ort.InferenceSession(str(source), options, providers=[PROVIDER], disabled_optimizers=others)


def _write_operators(model: Path, target: Path) -> None:
    """What a minimal build must hold for `model`, without the name of a folder in it."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with quiet():
        create_config_from_models([model], target, enable_type_reduction=False)
    lines = target.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.strip() and str(model.parent) not in line]
    target.write_text("\n".join(kept) + "\n", encoding="utf-8")
