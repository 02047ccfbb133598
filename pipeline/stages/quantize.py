"""int8: the graph that loses least, is the same on every CPU, and what each layer costs.

Weights are per-channel int8. Two graphs are made: `int8`, with zero points, for CPU runtimes, and
`int8-symmetric`, without and with float biases, which TensorRT reads. Everything is chosen on the
validation split.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.context import Context
from pipeline.machine import cpu_name, versions
from pipeline.quantization.settings import Options
from pipeline.quantized import Calibration, Quantized
from pipeline.records import Checkpoint, Dataset
from pipeline.settings import Augment

if TYPE_CHECKING:
    from pipeline.quantization.search import Subject


class Quantize(Options):
    """The table [quantize]; its keys are explained in pipeline/quantization/settings.py."""

    def run(
        self,
        context: Context,
        student: Checkpoint,
        teacher: Checkpoint,
        dataset: Dataset,
        augment: Augment,
    ) -> Quantized | None:
        """The quantized graphs; None where the stage is switched off.

        Fine-tuning sees images as `augment` changes them. Raises `DataError` where calibration
        images are too few or all alike, `CheckpointError` for weights that are no numbers,
        `ExportError` for operators that int8 is not known for.
        """
        if not self.enabled:
            return None

        def work(folder: Path) -> Quantized:
            from pipeline.quantization.search import Subject

            subject = Subject(context, student, teacher, dataset, augment)
            return _quantize(self, subject, folder)

        from pipeline.quantization import cpus

        asked = self.cpu_images and self.scheme == "auto"
        facts = {"seed": context.seed, "host": cpu_name(), "cpus": cpus.there() if asked else {}}
        facts |= versions("torch", "onnx", "onnxscript", "onnxruntime")
        return context.store.get(
            Quantized,
            "quantize",
            work,
            version=5,
            settings={"quantize": self, "augment": augment},
            parents=[student, teacher, dataset],
            facts=facts,
        )


def _quantize(settings: Options, subject: Subject, folder: Path) -> Quantized:
    import numpy as np
    import onnx

    from pipeline.quantization import fused, search

    searched = search.Search(settings, subject)
    best, trials, checks = searched.agreeing()
    losses = searched.sensitivity(best)
    rescued = searched.rescued(best, losses)
    float_layers = (*settings.float_layers, *(rescued.float_layers if rescued else ()))
    placed = searched.place(best, float_layers)
    onnx.save(best.ready, folder / "ready.onnx")
    onnx.save(placed.model, folder / "int8.onnx")
    onnx.save(searched.symmetric(best, float_layers).model, folder / "int8-symmetric.onnx")
    images = searched.calibration_images
    np.save(folder / "calibration.npy", images)
    spec = subject.dataset.input
    shape = (spec.size, spec.size, spec.channels)
    return Quantized(
        scheme=best.scheme,
        calibration=Calibration(method=best.method, images=len(images)),
        float_val_top1=searched.float_top1,
        trials=tuple(each.model_copy(update={"kept": each.name == best.name}) for each in trials),
        fused=fused.examine(folder / "int8.onnx", shape, float_layers=float_layers),
        sensitivity=losses,
        rescue=rescued,
        checks=checks,
        notes=(*searched.notes, *placed.notes),
    )
