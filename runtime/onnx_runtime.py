"""ONNX Runtime on the CPU: the runtime by which every ONNX file is judged."""

from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ExportError
from runtime import Availability

FORMATS = ("onnx",)
PROVIDER = "CPUExecutionProvider"


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
    """One ONNX file in ONNX Runtime, uint8 NHWC images in, float32 logits out."""

    def __init__(self, path: Path, threads: int) -> None:
        ort = quiet_import()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
        except Exception as error:  # ONNX Runtime has an exception class a status code, no base
            raise ExportError(
                f"ONNX Runtime cannot load {path}: {error}", remedy="Export the file again."
            ) from error
        if (got := self._session.get_providers()) != [PROVIDER]:
            raise ExportError(f"ONNX Runtime runs {path} on {got}, not on {PROVIDER}")
        self.name = f"onnxruntime {ort.__version__}"
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits [batch, classes] of uint8 `images` [batch, height, width, channels]."""
        return np.asarray(self._session.run([self._output], {self._input: images})[0])


def open(path: Path, threads: int) -> OrtSession:
    """Load `path` with `threads` intra-op threads. Raises `ExportError` if it cannot be loaded."""
    return OrtSession(path, threads)
