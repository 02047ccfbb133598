"""What several test files start from: a real, untrained student and the records made of it."""

from typing import Literal

import numpy as np
import pytest

from exporters import Sources, Variant
from pipeline.contract import Facts
from pipeline.quantized import Calibration, Fused, Quantized
from pipeline.records import Artifact, Checkpoint, InputSpec
from tests.small_run import usual_run

SIZE = 32
LABELS = ("ant", "bee", "cicada", "dragonfly", "earwig")


@pytest.fixture
def run(tmp_path):
    """The records of a small run."""
    return usual_run(tmp_path / "records")


@pytest.fixture
def report(run):
    """Its report."""
    return run.report()


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


def enliven(checkpoint, images):
    """Make the answers of an untrained student depend on the image, uint8 [n, size, size, c]."""
    import torch

    import models

    student = models.load(checkpoint)
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        student.train()(torch.from_numpy(images))  # so that no signal dies away
        next(p for p in reversed(list(student.parameters())) if p.ndim == 2).mul_(50)
    torch.save(student.network.state_dict(), checkpoint.weights_path)


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint):
    """A small MobileNetV2 of 32 px colour images."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def float_onnx(checkpoint, tmp_path_factory):
    """The artifact "onnx fp32" of `checkpoint`."""
    folder = tmp_path_factory.mktemp("onnx")
    return export_onnx(sources_of(checkpoint), Variant("fp32"), folder)


def sources_of(checkpoint, quantized=None, files=()):
    """What files are made from."""
    return Sources(
        student=checkpoint,
        facts=Facts.of(checkpoint, "CC0"),
        quantized=quantized,
        files={each.title: each for each in files},
    )


def export_onnx(sources, variant, folder):
    from exporters import onnx

    made = onnx.export(sources, variant, onnx.Settings(), folder)
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
def quantized(ready, checkpoint, tmp_path_factory):
    """The Q/DQ graphs of `checkpoint`, with ranges from noise."""
    return make_quantized(checkpoint, ready, tmp_path_factory.mktemp("quantized"))


def make_quantized(checkpoint, ready, folder):
    """The Q/DQ graphs of what `make_ready` returned."""
    import onnx

    from pipeline.quantization.place import place

    record = Quantized(
        folder=folder,
        calibration=Calibration(method="minmax", images=8),
        fused=Fused(operators={}, integer_macs=0, float_macs=0),
    )
    model, front, ranges = ready
    onnx.save(place(model, front, ranges).model, record.folder / record.int8)
    symmetric = place(model, front, ranges, "symmetric").model
    onnx.save(symmetric, record.folder / record.int8_symmetric)
    spec = checkpoint.input
    pixels = np.random.default_rng(0).integers(
        0, 256, (32, spec.size, spec.size, spec.channels), dtype=np.uint8
    )
    np.save(record.folder / record.images, pixels)
    return record


@pytest.fixture(scope="session")
def sources(checkpoint, float_onnx, quantized, tmp_path_factory):
    """Everything that a `Variant.source` can name."""
    return make_sources(checkpoint, float_onnx, quantized, tmp_path_factory)


def make_sources(checkpoint, float_onnx, quantized, tmp_path_factory):
    """The student, its graphs, and the ONNX files that others are made of."""
    made = [float_onnx]
    for kind in (
        Variant("fp16", source="onnx fp32"),
        Variant("int8", source="quantized"),
        Variant("int8", "symmetric", source="quantized"),
    ):
        known = sources_of(checkpoint, quantized, made)
        made.append(export_onnx(known, kind, tmp_path_factory.mktemp("onnx")))
    return sources_of(checkpoint, quantized, made)
