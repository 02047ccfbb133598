"""TensorRT: engines, each on the kind of GPU and the TensorRT version that it was built for.

An engine says little of itself, and TensorRT's own words for one that does not fit are cryptic. So
the exporter leaves ``engine.json`` beside it, with a `Stamp` of what it was built with and for, and
that is compared with what is here before TensorRT sees the file. TensorRT for RTX has the same
Python API under another name; `runtime.tensorrt_rtx` opens its engines by what is here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CannotRunHereError, ExportError, install, require
from pipeline.machine import cuda_devices, cuda_name, driver_version
from pipeline.records import InputSpec, Record
from runtime import Availability

FORMATS = ("tensorrt",)
VERSION = 1
TIMED = True
CAVEAT = ""
FACTS = "engine.json"
AGAIN = "Build it again here: python -m pipeline run."
COPY = "Export it again, or copy it again with all that lies beside it."
Found = TypeVar("Found")


class Library(NamedTuple):
    """One of the two libraries that engines are for."""

    module: str
    """Of Python; also the name of the format."""
    title: str
    extra: str


TENSORRT = Library("tensorrt", "TensorRT", "tensorrt")


class Stamp(Record):
    """What an engine was built with and for, or what is here."""

    library: str
    """"TensorRT" or "TensorRT for RTX"."""
    version: str
    """All of it, such as "10.8.0.43": by default an engine fits no other."""
    gpu: str | None = None
    """The GPU that it was timed on; None where any of a compute capability will do."""
    compute_capabilities: tuple[str, ...] = ()
    """Such as "8.9"; of the GPU that is here, or of those that the engine is for."""
    cuda_driver: str | None = None
    """CUDA version of the driver."""

    def __str__(self) -> str:
        """In words: "TensorRT 10.8.0.43 for the NVIDIA L4 of compute capability 8.9"."""
        gpu = f"the {self.gpu}" if self.gpu else "GPUs"
        if self.compute_capabilities:
            gpu += f" of compute capability {' or '.join(self.compute_capabilities)}"
        return f"{self.library} {self.version} for {gpu}"


def check_stamp(stamp: Stamp, here: Stamp) -> None:
    """Raise `CannotRunHereError` where an engine of that `stamp` is not for what is `here`.

    A newer driver than the one it was built with is no hindrance, and an older one may do.
    """
    library = (stamp.library, stamp.version) == (here.library, here.version)
    gpu = stamp.gpu in (None, here.gpu)
    known = bool(stamp.compute_capabilities and here.compute_capabilities)
    kind = not known or set(here.compute_capabilities) <= set(stamp.compute_capabilities)
    if library and gpu and kind:
        return
    remedy = AGAIN
    if library and gpu and stamp.gpu is None:
        remedy = (
            f'Name "{here.compute_capabilities[0]}" in '
            "export.tensorrt_rtx.compute_capabilities and run the pipeline again."
        )
    raise CannotRunHereError(f"this engine was built with {stamp}; here is {here}", remedy=remedy)


def stamp_of(library: Library, capabilities: Sequence[str] | None = None) -> Stamp:
    """The stamp of this machine: its library, GPU and driver.

    With `capabilities`, that of an engine which is built for them, whatever GPU is here.
    Raises `NotInstalledError` without the library.
    """
    version = require(library.module, library.extra).__version__
    if capabilities is not None:
        return Stamp(
            library=library.title, version=version, compute_capabilities=tuple(capabilities)
        )
    return Stamp(
        library=library.title,
        version=version,
        gpu=cuda_name(),
        compute_capabilities=_capability(),
        cuda_driver=driver_version(),
    )


def _capability() -> tuple[str, ...]:
    """Compute capability of the first GPU; none where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        return ()
    major, minor = torch.cuda.get_device_capability(0)
    return (f"{major}.{minor}",)


def read_stamp(path: Path) -> Stamp:
    """The stamp of the engine at `path`, from the engine.json beside it.

    Raises `ExportError` where that is missing or damaged, or where the engine is missing, or not as
    long as it says: TensorRT may crash on a file that was cut off.
    """
    stamp, size = _read(
        path, lambda facts: (Stamp.model_validate(facts["built"]), int(facts["bytes"]))
    )
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        there = "it is missing" if found is None else f"it has {found:,}"
        raise ExportError(
            f"{path} should have {size:,} bytes by its {FACTS}, and {there}", remedy=COPY
        )
    return stamp


def read_metadata(path: Path) -> dict[str, str]:
    """What the engine.json beside the engine at `path` says of the student.

    Raises `ExportError` where that is missing or damaged.
    """

    def texts(facts: dict[str, Any]) -> dict[str, str]:
        said = {key: value for key, value in facts.items() if isinstance(value, str)}
        said["input"] = InputSpec.model_validate(facts["input"]).model_dump_json()
        for key in ("labels", "accuracy"):
            said[key] = json.dumps(facts[key], ensure_ascii=False)
        return said

    return _read(path, texts)


def _read(path: Path, take: Callable[[dict[str, Any]], Found]) -> Found:
    """What `take` finds in the engine.json beside `path`."""
    facts = path.with_name(FACTS)
    try:
        return take(json.loads(facts.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ExportError(
            f"beside {path} there is no {FACTS}, which says what it was built with", remedy=COPY
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
        said = str(error).splitlines()[0]
        raise ExportError(f"{facts} cannot be read: {said}", remedy=COPY) from error


def availability() -> Availability:
    """Whether TensorRT, a GPU, and a torch that can use it are here."""
    return availability_of(TENSORRT)


def availability_of(library: Library) -> Availability:
    """The same of either library."""
    if importlib.util.find_spec(library.module) is None:
        return Availability(
            False,
            f"{library.module} is not installed",
            remedy=install(library.extra),
        )
    if not cuda_devices():
        return Availability(False, "there is no NVIDIA GPU")
    return Availability(True, f"{library.title} on the {cuda_name()}, driver {driver_version()}")


def warm_import() -> None:
    """Import TensorRT and torch, and start CUDA, so that a load time does not count it."""
    warm_import_of(TENSORRT)


def warm_import_of(library: Library) -> None:
    """The same of either library."""
    import torch

    require(library.module, library.extra)
    if torch.cuda.is_available():
        torch.cuda.init()


def open(path: Path, threads: int) -> EngineSession:
    """Load the engine at `path`; `threads` is of no effect, as the GPU does the work.

    Raises `ExportError` where the file or its engine.json is damaged or missing,
    `NotInstalledError` without TensorRT, `CannotRunHereError` without a GPU and where the engine
    was built for another one or with another TensorRT.
    """
    return open_engine(TENSORRT, path)


def open_engine(library: Library, path: Path) -> EngineSession:
    """Load the engine at `path` by either library. Raises as `open` does."""
    stamp = read_stamp(path)
    trt = require(library.module, library.extra)
    if not (found := availability_of(library)).ok:
        raise CannotRunHereError(f"{path} cannot be run: {found.detail}", remedy=found.remedy)
    here = stamp_of(library)
    if not here.compute_capabilities:
        raise CannotRunHereError(
            f"torch sees no CUDA in the {here.gpu}, and the images get there by it",
            remedy="Install torch as https://pytorch.org says for this GPU.",
        )
    check_stamp(stamp, here)
    return EngineSession(trt, path, f"{library.title.lower()} {here.version} on {here.gpu}")


class EngineSession:
    """One engine on the first GPU, uint8 NHWC images in, float32 answers out.

    More images than the engine takes at once are run in several parts; where it takes no fewer than
    a certain number, the rest of a batch is filled. A run counts the copies to the GPU and back.
    """

    def __init__(self, trt: ModuleType, path: Path, name: str) -> None:
        self.name = name
        self._log = logger(trt)
        self._log.errors.clear()
        self._runtime = trt.Runtime(self._log)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._context = self._engine and self._engine.create_execution_context()
        if self._context is None:
            raise CannotRunHereError(
                f"{name} cannot load {path}: {reason(self._log.errors)}", remedy=AGAIN
            )
        self._input, self._output = self._tensors(trt, path)
        fewest, _, most = self._engine.get_tensor_profile_shape(self._input, 0)
        self._fewest, self._most = int(fewest[0]), int(most[0])
        self._allocate(tuple(most)[1:], tuple(self._engine.get_tensor_shape(self._output))[1:])

    def _tensors(self, trt: ModuleType, path: Path) -> tuple[str, str]:
        """Names of the input and of the output."""
        engine = self._engine
        found = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        kinds = [(engine.get_tensor_mode(each), engine.get_tensor_dtype(each)) for each in found]
        first = (trt.TensorIOMode.INPUT, trt.DataType.UINT8)
        last = (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT)
        if len(found) != 2 or first not in kinds or last not in kinds:
            raise ExportError(f"{path} is no engine of this pipeline: it has {found}", remedy=AGAIN)
        return found[kinds.index(first)], found[kinds.index(last)]

    def _allocate(self, image: tuple[int, ...], answer: tuple[int, ...]) -> None:
        import torch

        most, floats = self._most, torch.float32
        self._stream = torch.cuda.Stream()
        # Copies from and to pinned memory need no further copy on the way.
        self._pixels = torch.zeros((most, *image), dtype=torch.uint8, pin_memory=True)
        self._answers = torch.empty((most, *answer), dtype=floats, pin_memory=True)
        self._pixels_there = torch.empty((most, *image), dtype=torch.uint8, device="cuda")
        self._answers_there = torch.empty((most, *answer), dtype=floats, device="cuda")
        self._context.set_tensor_address(self._input, self._pixels_there.data_ptr())
        self._context.set_tensor_address(self._output, self._answers_there.data_ptr())
        torch.cuda.synchronize()  # what allocating does runs on another stream

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answers [n, classes] to uint8 `images` [n, height, width, channels].

        Raises ValueError where the images are of another kind.
        """
        expected = tuple(self._pixels.shape[1:])
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ValueError(
                f"takes uint8 [n, {', '.join(map(str, expected))}], not {images.dtype} "
                f"{list(images.shape)}"
            )
        answers = np.empty((len(images), self._answers.shape[1]), np.float32)
        for start in range(0, len(images), self._most):
            part = images[start : start + self._most]
            answers[start : start + len(part)] = self._batch(part)
        return answers

    def _batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answers to at most as many images as the engine takes; overwritten by the next call."""
        import torch

        n = max(len(images), self._fewest)
        self._pixels.numpy()[: len(images)] = images
        self._context.set_input_shape(self._input, (n, *images.shape[1:]))
        with torch.cuda.stream(self._stream):
            self._pixels_there[:n].copy_(self._pixels[:n], non_blocking=True)
            done = self._context.execute_async_v3(self._stream.cuda_stream)
            self._answers[:n].copy_(self._answers_there[:n], non_blocking=True)
        self._stream.synchronize()
        if not done:
            raise CannotRunHereError(f"{self.name} failed: {reason(self._log.errors)}")
        return self._answers.numpy()[: len(images)]


@functools.cache  # the library keeps the first logger it meets, so that one must never be freed
def logger(trt: Any) -> Any:
    """The logger of either library, which keeps what it is told in its list `errors`."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Log()


def reason(messages: Sequence[str]) -> str:
    """`messages` in one line, or that there is none.

    Without source positions and, if there is more, without that there is no GPU.
    """
    text = re.sub(r"\s*In \w+ at /[^\s)]+", "", "\n".join(messages))
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    kept = [line for line in lines if "cudaError" not in line] or lines
    return "; ".join(kept) or "it gave no reason"
