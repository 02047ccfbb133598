"""int8 for ONNX: explicit Q/DQ around every operator, ranges from training images.

Weights are per-channel int8 with zero point 0. Two graphs are made from the same float graph:
`int8` has uint8 activations with zero points (ONNX Runtime's fast path on CPUs), `int8-symmetric`
has int8 activations with zero point 0 and float biases (what TensorRT reads).
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.context import Context
from pipeline.machine import versions
from pipeline.progress import bar
from pipeline.records import Calibration, Checkpoint, Dataset, Quantized
from pipeline.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import onnx

CALIBRATION_BATCH = 32


class Quantize(Settings):
    """The table [quantize]."""

    enabled: bool = True
    """Without it there are no int8 files."""
    calibration_images: int = Field(default=512, ge=1)
    """Training images, without augmentation, from which the ranges are taken (minimum to maximum).
    The test split is never used for it."""

    def run(self, context: Context, student: Checkpoint, dataset: Dataset) -> Quantized | None:
        """The quantized graphs; None where the stage is switched off."""
        if not self.enabled:
            return None

        def work(folder: Path) -> Quantized:
            return self._quantize(context, student, dataset, folder)

        facts = {"seed": context.seed, **versions("torch", "onnx", "onnxscript", "onnxruntime")}
        return context.store.get(
            Quantized,
            "quantize",
            work,
            version=1,
            settings=self,
            parents=[student, dataset],
            facts=facts,
        )

    def _quantize(
        self, context: Context, student: Checkpoint, dataset: Dataset, folder: Path
    ) -> Quantized:
        from runtime.onnx_runtime import quiet_import

        quiet_import()
        from onnxruntime.quantization.shape_inference import quant_pre_process

        from exporters.onnx import quiet, write_float_graph

        images = self._images(context, dataset)
        with (
            tempfile.TemporaryDirectory(dir=folder) as scratch,
            bar("quantize", 4) as shown,
            quiet(),
        ):
            plain, ready = Path(scratch, "plain.onnx"), Path(scratch, "ready.onnx")
            write_float_graph(student, plain)
            shown.advance()
            # Folds BatchNorm and constants; symbolic shapes would trip over the free batch size.
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            shown.advance()
            place(ready, folder / "int8.onnx", images, symmetric=False)
            shown.advance()
            place(ready, folder / "int8-symmetric.onnx", images, symmetric=True)
            shown.advance()
            counts = operators_run(folder / "int8.onnx", Path(scratch))
        calibration = Calibration(method="minmax", images=len(images))
        return Quantized(calibration=calibration, operators=counts)

    def _images(self, context: Context, dataset: Dataset) -> np.ndarray:
        import numpy as np

        from pipeline.images import open_split

        train = open_split(dataset, "train")
        order = np.random.default_rng(context.seed).permutation(len(train))
        return train[np.sort(order[: self.calibration_images])]


def place(source: Path, target: Path, images: np.ndarray, *, symmetric: bool) -> None:
    """Write `source` with Q/DQ pairs, ranges from `images` uint8 [n, size, size, channels]."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        target,
        _reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=_normalisation(onnx.load(source)),
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            # TensorRT's parser refuses the int32 biases that CPU kernels want.
            "QuantizeBias": not symmetric,
        },
    )


def _normalisation(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes before the first convolution: they turn pixels into normalised values.

    They stay float: their result is quantized once, on a grid that holds all 256 pixel values.
    """
    before = itertools.takewhile(lambda node: node.op_type != "Conv", model.graph.node)
    return [node.name for node in before]


def _reader(images: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    from exporters.onnx import INPUT

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = iter(
                images[start : start + CALIBRATION_BATCH]
                for start in range(0, len(images), CALIBRATION_BATCH)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def operators_run(path: Path, scratch: Path) -> dict[str, int]:
    """Operators of the graph that ONNX Runtime really runs on this CPU, by type."""
    import onnx

    from runtime.onnx_runtime import quiet_import

    ort = quiet_import()
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(scratch / "optimized.onnx").graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))
