"""What several test files start from: a real, untrained student and the records made of it."""

from typing import Literal

import numpy as np
import pytest

from exporters import Variant
from pipeline.quantized import Calibration, Fused, Quantized
from pipeline.records import Artifact, Checkpoint, InputSpec

SIZE = 32
LABELS = ("ant", "bee", "cicada", "dragonfly", "earwig")


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """Makes a `Checkpoint` of random weights whose normalisation layers do something."""

    def make(arch="mobilenet_v2", channels: Literal[1, 3] = 3, width=0.35):
        import torch

        import models

        folder = tmp_path_factory.mktemp("student")
        torch.manual_seed(0)
        network = models.build(
            arch, classes=len(LABELS), channels=channels, image_size=SIZE, width=width
        )
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if name.endswith(("running_mean", "bias")):
                    value.normal_(std=0.1)
                elif name.endswith("running_var"):
                    value.uniform_(0.5, 1.5)
        torch.save(network.state_dict(), folder / "weights.pt")
        spec = InputSpec(
            size=SIZE,
            channels=channels,
            mean=(0.5, 0.45, 0.4)[:channels],
            std=(0.3, 0.25, 0.2)[:channels],
        )
        return Checkpoint(
            key="0123456789abcdef",
            folder=folder,
            role="student",
            arch=arch,
            width=width,
            labels=LABELS,
            input=spec,
            params=sum(p.numel() for p in network.parameters()),
            macs=1,
            device="cpu",
        )

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint):
    """A small MobileNetV2 of 32 px colour images."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def float_onnx(checkpoint, tmp_path_factory):
    """The artifact "onnx fp32" of `checkpoint`."""
    return export_onnx(checkpoint, Variant("fp32"), tmp_path_factory)


def export_onnx(source, variant, tmp_path_factory):
    from exporters import onnx

    folder = tmp_path_factory.mktemp("onnx")
    made = onnx.export(source, variant, onnx.Settings(), folder)
    precision, kind = variant.precision, variant.variant
    return Artifact(format="onnx", precision=precision, variant=kind, folder=folder, file=made.file)


@pytest.fixture(scope="session")
def ready(checkpoint):
    """The float graph of `checkpoint`, its front, and ranges from noise."""
    return make_ready(checkpoint)


def make_ready(checkpoint):
    from pipeline.quantization import calibration, graph, histogram

    spec = checkpoint.input
    images = np.random.default_rng(0).integers(
        0, 256, (8, spec.size, spec.size, spec.channels), dtype=np.uint8
    )
    _, model, front = graph.prepare(checkpoint)
    found = histogram.observe(model, [images], graph.activations(model), threads=1)
    return model, front, {name: calibration.ranges(each, "minmax") for name, each in found.items()}


@pytest.fixture(scope="session")
def quantized(ready, tmp_path_factory):
    """The Q/DQ graphs of `checkpoint`, with ranges from noise."""
    import onnx

    from pipeline.quantization.place import place

    record = Quantized(
        folder=tmp_path_factory.mktemp("quantized"),
        calibration=Calibration(method="minmax", images=8),
        fused=Fused(operators={}, integer_macs=0, float_macs=0),
    )
    model, front, ranges = ready
    onnx.save(place(model, front, ranges).model, record.folder / record.int8)
    symmetric = place(model, front, ranges, "symmetric").model
    onnx.save(symmetric, record.folder / record.int8_symmetric)
    return record


@pytest.fixture(scope="session")
def sources(checkpoint, float_onnx, quantized, tmp_path_factory):
    """Everything that a `Variant.source` can name."""
    made = [
        export_onnx(float_onnx, Variant("fp16"), tmp_path_factory),
        *(
            export_onnx(quantized, Variant("int8", kind), tmp_path_factory)
            for kind in (None, "symmetric")
        ),
    ]
    artifacts = {artifact.title: artifact for artifact in (float_onnx, *made)}
    return {"checkpoint": checkpoint, "quantized": quantized, **artifacts}
