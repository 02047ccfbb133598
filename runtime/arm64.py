"""ONNX Runtime's build for arm64, a phone's kind of CPU: emulated, or this machine's own.

It times nothing and is no format's own runtime: it is asked whether a file answers the same there.
"""

import platform
from importlib.metadata import version
from pathlib import Path

from pipeline import emulators
from pipeline.errors import UnavailableError
from runtime import Availability, Session, onnx_runtime

FORMATS = ()
VERSION = 1
TIMED = False
CAVEAT = ""
NATIVE = ("arm64", "aarch64")


def availability() -> Availability:
    """Native on arm64; emulated where an emulator was fetched."""
    if platform.machine() in NATIVE:
        return Availability(True, f"onnxruntime {version('onnxruntime')} on arm64 (native)")
    try:
        return Availability(True, emulators.arm64().name)
    except UnavailableError as error:
        return Availability(False, error.message, error.remedy)


def warm_import() -> None:
    """Nothing: what is needed is imported in the emulator."""


def open(path: Path, threads: int) -> Session:
    """Raises `UnavailableError` where `availability` says no, `ExportError` for no file."""
    if platform.machine() in NATIVE:
        session = onnx_runtime.open(path, threads)
        session.name += " on arm64 (native)"
        return session
    return emulators.Session(emulators.arm64(), path, threads)
