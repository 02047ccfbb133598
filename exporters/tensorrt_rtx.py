"""TensorRT for RTX: a real engine, built ahead of time on a machine that needs no GPU.

The engine holds the graph and its kernels' source for the named compute capabilities; the
driver's compiler finishes it where it is loaded. int8 is the explicit, symmetric Q/DQ of the ONNX
file. Building twice gives the same bytes: with no GPU there is nothing to time. For the same
reason no timing cache is used: it would make the builder look for a GPU. Nor can the engine be run
without one; what can be found out of it is in its notes.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from exporters import Exported, Sources, Variant, tensorrt
from pipeline.errors import install, require
from pipeline.machine import package_version
from runtime import Availability
from runtime.tensorrt import FACTS, stamp_of
from runtime.tensorrt_rtx import LIBRARY, inspect

VERSION = 2
DISTRIBUTION = "tensorrt-rtx-cu12"
PACKAGES = ("onnx", DISTRIBUTION)
EXTRA = "tensorrt-rtx"
ISOLATED = True

Capability = Literal["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"]


class Settings(tensorrt.EngineSettings):
    """The table [export.tensorrt_rtx]."""

    compute_capabilities: tuple[Capability, ...] = Field(default=("8.9",), min_length=1)
    """GPUs the engine is for: 7.5 Turing (no fp32 matrix product), 8.0 and 8.6 Ampere, 8.9 Ada
    (RTX 40), 12.0 and 12.1 Blackwell (RTX 50, GB10)."""

    @field_validator("compute_capabilities")
    @classmethod
    def _once_each(cls, value: tuple[Capability, ...]) -> tuple[Capability, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a compute capability twice")
        return value


def availability() -> Availability:
    """Whether the builder is installed; it needs no GPU."""
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return Availability(True, f"{DISTRIBUTION} {package_version(DISTRIBUTION)}")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        return Availability(
            False, f"the extra {EXTRA} has packages for Linux on x86_64, not {here}"
        )
    return Availability(
        False,
        f"{DISTRIBUTION} is not installed",
        remedy=install(EXTRA),
    )


def variants(settings: Settings) -> Sequence[Variant]:
    """The same as TensorRT's."""
    return tensorrt.variants(settings)


def export(sources: Sources, variant: Variant, settings: Settings, folder: Path) -> Exported:
    """Write ``model.engine`` and ``engine.json``.

    Raises `NotInstalledError` without the builder, `ExportError` where it refuses the graph.
    """
    source = sources.file(variant)
    trt = require("tensorrt_rtx", EXTRA)
    model = tensorrt.prepare(source)

    def configure(config: Any) -> None:
        config.num_compute_capabilities = len(settings.compute_capabilities)
        for index, capability in enumerate(settings.compute_capabilities):
            name = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)

    built = tensorrt.build_engine(trt, model, settings, configure)
    stamp = stamp_of(LIBRARY, settings.compute_capabilities)
    tensorrt.write_engine(built, stamp, sources, source, settings, folder)
    return Exported(
        tensorrt.ENGINE,
        extras=(FACTS,),
        notes=(
            f"It runs with {stamp}, and nowhere else.",
            built.reading.line,
            inspect(folder / tensorrt.ENGINE).line,
            *_on_size(folder / tensorrt.ENGINE, variant),
        ),
    )


def _on_size(engine: Path, variant: Variant) -> list[str]:
    if variant.precision != "int8":
        return []
    # Of 1.7 no builder flag or optimization level changes it, nor do scales per tensor, Relu for
    # Clip, or no biases; float16 between the layers saves 7 %.
    packed = len(zlib.compress(engine.read_bytes()))
    return [
        "What rescales between the layers of an int8 engine are kernels of their own, and it "
        "carries the source of each, 130 kB that are nearly the same every time: that, not its "
        f"weights, makes it large. Compressed it has {packed / 1e6:.1f} MB."
    ]
