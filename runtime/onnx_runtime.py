"""ONNX Runtime on the CPU: the runtime by which every ONNX file is judged."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CannotRunHereError, ExportError
from pipeline.machine import cores
from runtime import Availability, one_by_one

if TYPE_CHECKING:
    from pipeline.records import InputSpec

FORMATS = ("onnx", "ort")
VERSION = 1
TIMED = True
CAVEAT = ""
PROVIDER = "CPUExecutionProvider"
SPINNING = "session.intra_op.allow_spinning"
LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
"""What ONNX Runtime calls how far it rewrites a graph."""


def availability() -> Availability:
    """ONNX Runtime is a plain dependency: always there."""
    return Availability(True, f"onnxruntime {version('onnxruntime')}, {PROVIDER}")


def quiet_import() -> ModuleType:
    """onnxruntime, before it has told anybody anything.

    It runs on other people's machines: no device id, no usage events.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def warm_import() -> None:
    """Import ONNX Runtime, so that a load time does not count it."""
    quiet_import()


class OrtSession:
    """One ONNX file in ONNX Runtime, uint8 NHWC images in, float32 answers out."""

    def __init__(self, path: Path, threads: int, **options: Any) -> None:
        session = _session(path, str(path), threads, **options)
        self.in_force = _in_force(session)
        """The options that the session says it has, by name."""
        self.name = f"onnxruntime {version('onnxruntime')}"
        self._session, self._feed = session, _Feed(session, path)
        self._output = [session.get_outputs()[0].name]
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        """What the file says of itself."""

    @property
    def single(self) -> bool:
        """Whether the file takes one image at a time."""
        return self._feed.single

    def prepared(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """`images` as the file takes them, for `run`: so that a clock does not count our part."""
        return self._feed.prepared(images)

    def run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Answers [batch, classes] to uint8 `images` [batch, height, width, channels], or to what
        `prepared` made of them.

        A file that takes normalised float pixels is given those; one for a single image at a time
        is given one after the other.
        """
        return np.asarray(self._feed.run(self._output, images)[0])

    def end_profiling(self) -> Path:
        """The file with the events since it was opened; it must have been for `profiling`."""
        return Path(self._session.end_profiling())


class _Feed:
    """Gives a session the images in the form that its graph takes."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._input = session.get_inputs()[0]
        self.single = self._input.shape[0] == 1
        self._values: NDArray[np.float32] | None = None
        """What each grey level of each channel becomes, [channels, 256]; None for uint8 files."""
        if self._input.type == "tensor(float)":
            self._values = _normalised(_spec(session.get_modelmeta().custom_metadata_map, path))

    def run(self, outputs: list[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        if self.single and len(images) != 1:
            return one_by_one(lambda image: self.run(outputs, image), images)
        return self._session.run(outputs, {self._input.name: self.prepared(images)})

    def prepared(self, images: NDArray[Any]) -> NDArray[Any]:
        if self._values is None or images.dtype != np.uint8:
            return images
        planes = [values[images[..., at]] for at, values in enumerate(self._values)]
        return np.stack(planes, axis=1)


def _normalised(spec: "InputSpec") -> NDArray[np.float32]:
    """Worked out in float64 once a grey level, not once a pixel: 7 times as fast."""
    levels, mean, std = np.arange(256) / 255, np.array(spec.mean), np.array(spec.std)
    return ((levels - mean[:, None]) / std[:, None]).astype(np.float32)


def _spec(texts: Mapping[str, str], path: Path) -> "InputSpec":
    # Here, because most files need none of it, and a process that measures memory none of pydantic.
    from pipeline.contract import read_input

    try:
        return read_input(texts)
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"{path} takes float pixels, and its metadata does not say how they are normalised",
            remedy="Export the file again.",
        ) from error


def _session(
    path: Path,
    model: str | bytes,
    threads: int,
    *,
    optimization: str = "all",
    arena: bool = True,
    spinning: bool = True,
    profiling: Path | None = None,
) -> Any:
    """A session of `model`, which is the file `path` or made of it. Raises `ExportError`."""
    ort = quiet_import()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[optimization])
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry(SPINNING, str(int(spinning)))
    if profiling is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profiling)
    try:
        session = ort.InferenceSession(model, options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime has an exception class a status code, no base
        raise ExportError(
            f"ONNX Runtime cannot load {path}: {error}", remedy="Export the file again."
        ) from error
    if (got := session.get_providers()) != [PROVIDER]:
        raise ExportError(f"ONNX Runtime runs {path} on {got}, not on {PROVIDER}")
    return session


def _in_force(session: Any) -> dict[str, str]:
    options = session.get_session_options()
    return {
        "providers": ",".join(session.get_providers()),
        "intra_op_threads": str(options.intra_op_num_threads),
        "inter_op_threads": str(options.inter_op_num_threads),
        "graph_optimization": options.graph_optimization_level.name,
        "arena": str(options.enable_cpu_mem_arena),
        "spinning": options.get_session_config_entry(SPINNING),
    }


def open(path: Path, threads: int) -> OrtSession:
    """Load `path` with `threads` intra-op threads.

    Raises `ExportError` if it cannot be loaded, or takes float pixels and does not say which.
    """
    return OrtSession(path, threads)


def open_tuned(
    path: Path,
    threads: int,
    *,
    arena: bool,
    spinning: bool,
    optimization: str,
    profiling: Path | None = None,
) -> OrtSession:
    """`open` under the other options of a `benchmarks.profiles.Profile`.

    With `profiling`, which begins the name of a file of events, each operator's time is noted.
    """
    return OrtSession(
        path,
        threads,
        arena=arena,
        spinning=spinning,
        optimization=optimization,
        profiling=profiling,
    )


def intermediates(
    path: Path, images: NDArray[np.uint8]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and float32 value [batch, ...] of what each node of the .onnx file `path` computes.

    In the order of execution, for uint8 `images` [batch, height, width, channels]. Nothing is
    optimized away. Integers are left out: a quantized value is what its DequantizeLinear gives.

    Raises `CannotRunHereError` for a file in the ORT format, `ExportError` for no ONNX file.
    """
    if path.suffix == ".ort":
        raise CannotRunHereError(
            f"an ORT file cannot be opened up; {path.name} keeps its intermediate values to itself",
            "Look into the ONNX file that it was made of.",
        )
    session = _session(path, _opened_up(path), cores(), optimization="none")
    floats = ("tensor(float)", "tensor(float16)", "tensor(double)")
    names = [each.name for each in session.get_outputs() if each.type in floats]
    values = _Feed(session, path).run(names, images)
    for name, value in zip(names, values, strict=True):
        yield name, np.asarray(value, np.float32)


def _opened_up(path: Path) -> bytes:
    """The graph of `path` with what every node computes as an output."""
    import onnx

    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors and onnx's own have no common base
        raise ExportError(f"{path} is no ONNX file: {error}", "Export the file again.") from error
    computed = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    return model.SerializeToString()


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says of itself. Raises `ExportError` if it cannot be loaded."""
    return OrtSession(path, 1).metadata
