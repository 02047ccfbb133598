"""The installed ONNX Runtime on an emulated x86-64 CPU of 2013, which has no VNNI.

There sums of 8-bit products saturate at 16 bits: it shows whether a file keeps clear of that.
"""

from pathlib import Path

from pipeline import emulators
from pipeline.errors import UnavailableError
from runtime import Availability, Session

FORMATS = ()
VERSION = 1
TIMED = False
CAVEAT = ""


def availability() -> Availability:
    """Emulated where an emulator was fetched."""
    try:
        return Availability(True, emulators.haswell().name)
    except UnavailableError as error:
        return Availability(False, error.message, error.remedy)


def warm_import() -> None:
    """Nothing: what is needed is imported in the emulator."""


def open(path: Path, threads: int) -> Session:
    """Raises `UnavailableError` where `availability` says no, `ExportError` for no file."""
    return emulators.Session(emulators.haswell(), path, threads)
