"""What int8 is compared with: the float file, and ONNX Runtime's own quantization of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Checkpoint


def write_float(checkpoint: Checkpoint, path: Path) -> None:
    """The float graph of `checkpoint`, as it is exported."""
    from exporters.onnx import quiet, write_float_graph

    with quiet():
        write_float_graph(checkpoint, path)


def write_stock(plain: Path, target: Path, images: NDArray[np.uint8]) -> None:
    """What ONNX Runtime's documentation says: pre-process, then `quantize_static`.

    uint8 activations by minimum and maximum, per-channel int8 weights: its best for CPUs.
    """
    from runtime.onnx_runtime import quiet_import

    quiet_import()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from exporters.onnx import INPUT, quiet

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter([images[i : i + 32] for i in range(0, len(images), 32)])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:  # type: ignore[override]
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with quiet():
        ready = target.with_suffix(".ready.onnx")
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            target,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
