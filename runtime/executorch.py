"""ExecuTorch on the CPU, with the XNNPACK backend: what runs the .pte files on a phone, too.

Its library writes to file descriptor 2, past Python; `silence` holds that back.
"""

from __future__ import annotations

import importlib.util
import weakref
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CannotRunHereError, ExportError, install, require
from pipeline.machine import package_version
from runtime import Availability, silence

FORMATS = ("executorch",)
VERSION = 1
TIMED = True
CAVEAT = "Peak memory includes torch, which ExecuTorch's Python package loads."
EXTRA = "executorch"
BACKEND = "XnnpackBackend"
FORWARD = "forward"


def availability() -> Availability:
    """Whether ExecuTorch is installed."""
    if importlib.util.find_spec("executorch") is None:
        return Availability(False, "executorch is not installed", remedy=install(EXTRA))
    return Availability(True, f"executorch {package_version('executorch')}, XNNPACK on the CPU")


@silence()
def warm_import() -> None:
    """Import ExecuTorch and torch, and start its threads, so that a load time counts neither."""
    require("executorch.runtime", EXTRA)
    threads()


def threads() -> int:
    """How many threads run what is loaded, the caller's included."""
    return _library()._threadpool_get_thread_count()


@cache
@silence()
def _library() -> ModuleType:
    library = require("executorch.extension.pybindings.portable_lib", EXTRA)
    library._threadpool_get_thread_count()  # the first call starts them, with notices
    return library


@silence()
def _load(path: Path) -> Any:
    """The program in the file at `path`. Raises `ExportError` where there is none."""
    library = require("executorch.runtime", EXTRA)
    found = library.Runtime.get()
    if not found.backend_registry.is_available(BACKEND):
        raise CannotRunHereError(f"the executorch installed here was built without {BACKEND}")
    try:
        _check_header(path)
        return found.load_program(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(
            f"ExecuTorch cannot load {path}: {error}", remedy="Export the file again."
        ) from error


def _check_header(path: Path) -> None:
    """Refuse what the library would end the process over (foreign bytes) or only number.

    Raises ValueError. The layout is that of "extended_header.cpp": file identifier "ET??" at 4,
    then "eh00", its own length, and three sizes of 8 bytes, little-endian.
    """
    with path.open("rb") as file:
        head = file.read(40)
    if head[4:6] != b"ET" or head[8:12] != b"eh00" or len(head) < 40:
        raise ValueError("it is no ExecuTorch program")
    program, base, segments = (int.from_bytes(head[at : at + 8], "little") for at in (16, 24, 32))
    there, needed = path.stat().st_size, max(program, base + segments)
    if there < needed:
        raise ValueError(f"it ends after {there} of {needed} bytes")


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says of itself: each of its methods that takes nothing and gives a text.

    Raises `ExportError` if it cannot be loaded, `NotInstalledError` without ExecuTorch.
    """
    program = _load(path)
    with silence():
        names = sorted(program.method_names - {FORWARD})
        values = {name: program.load_method(name).execute([])[0] for name in names}
    return {name: value for name, value in values.items() if isinstance(value, str)}


class ExecuTorchSession:
    """One .pte file of batch 1 in ExecuTorch, uint8 NHWC images in, float32 answers out."""

    _loaded: ClassVar[weakref.WeakSet[ExecuTorchSession]] = weakref.WeakSet()

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self._threads = threads
        self._method: Any = None
        self._ready()
        self._classes = int(self._method.metadata.output_tensor_meta(0).sizes()[-1])
        self.name = f"executorch {package_version('executorch')} (XNNPACK)"

    def _ready(self) -> None:
        """Load the file, unless it is loaded and the threads are as many as it is to have.

        The library has one pool of threads, and what is loaded keeps a pointer to it: whoever
        changes their number lets go of everything first.
        """
        other = threads() != self._threads
        if self._method is not None and not other:
            return  # before `silence`, which would be timed with each run
        with silence():
            if other:
                for session in list(self._loaded):
                    session._method = None
                self._loaded.clear()
                _library()._unsafe_reset_threadpool(self._threads)
        if self._method is None:
            program = _load(self._path)
            with silence():
                self._method = self._start(program)
            self._loaded.add(self)

    def _start(self, program: Any) -> Any:
        try:
            return program.load_method(FORWARD)
        except (KeyError, RuntimeError) as error:
            raise ExportError(
                f"ExecuTorch cannot start {self._path}: {error}", remedy="Export the file again."
            ) from error

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answers [batch, classes] of uint8 `images` [batch, height, width, channels]."""
        import torch

        self._ready()
        answers = np.empty((len(images), self._classes), np.float32)
        for number, image in enumerate(images):
            # A copy, because torch takes no array that is read-only.
            (answer,) = self._method.execute([torch.from_numpy(image[None].copy())])
            answers[number] = answer.numpy()[0]
        return answers


def open(path: Path, threads: int) -> ExecuTorchSession:
    """Load `path`, to be run with `threads` threads.

    Raises `ExportError` if it cannot be loaded, `NotInstalledError` without ExecuTorch.
    """
    return ExecuTorchSession(path, threads)
