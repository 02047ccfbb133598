"""int8: ranges from training images only, fused kernels, and two graphs that say what they are."""

import numpy as np
import onnx
import pytest

from pipeline.context import Context
from pipeline.images import open_split
from pipeline.settings import Recipe, Student
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from runtime import onnx_runtime
from tests.pictures import make_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize")
    make_set(folder / "set", train=80, test=20)
    context = Context(store=Store(folder / "store"), threads=2, device="cpu")
    dataset = Data(source="folder", folder=folder / "set").run(context)
    recipe = Recipe(epochs=10, batch_size=16, learning_rate=0.05)
    student = Student(arch="mobilenet_v2", width=0.25, stem_stride=1, recipe=recipe)
    checkpoint = Baseline().run(context, student, dataset)
    return context, dataset, checkpoint


@pytest.fixture(scope="module")
def quantized(trained):
    context, dataset, checkpoint = trained
    return Quantize(calibration_images=64).run(context, checkpoint, dataset)


def initializers(model):
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def quantizers(model):
    values = initializers(model)
    return [
        (node, values[node.input[1]], values[node.input[2]])
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3
    ]


def test_mobilenet_v2_is_fused_but_for_the_last_mean(quantized):
    counts = quantized.operators
    assert counts["QLinearConv"] == 52 and counts["QGemm"] == 1
    assert counts["QLinearAdd"] > 0 and counts["Add"] == 1  # that of the normalisation
    assert "Conv" not in counts and "Gemm" not in counts and "Clip" not in counts


def test_pixels_are_quantized_once_on_a_grid_that_holds_them_all(quantized, trained):
    _, dataset, _ = trained
    model = onnx.load(quantized.folder / quantized.int8)
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = initializers(model)[first.input[1]]
    step = 1 / (255 * dataset.input.std[0])
    assert scale == pytest.approx(step, rel=0.02)


def test_int8_has_uint8_activations_and_per_channel_weights(quantized):
    model = onnx.load(quantized.folder / quantized.int8)
    kinds = {zero.dtype for node, _, zero in quantizers(model) if node.op_type == "QuantizeLinear"}
    assert kinds == {np.dtype(np.uint8)}
    assert any(scale.size > 1 for _, scale, zero in quantizers(model) if zero.dtype == np.int8)


def test_symmetric_has_zero_points_of_zero_and_float_biases(quantized):
    model = onnx.load(quantized.folder / quantized.int8_symmetric)
    found = quantizers(model)
    assert found and all(zero.dtype == np.int8 and not zero.any() for _, _, zero in found)


def test_both_answer_as_the_float_student_does(quantized, trained):
    import torch

    import models

    _, dataset, checkpoint = trained
    test = open_split(dataset, "test")
    student = models.load(checkpoint)(torch.from_numpy(test[:])).detach().numpy().argmax(1)
    assert (student == test.labels).mean() > 0.9
    for name in (quantized.int8, quantized.int8_symmetric):
        answer = onnx_runtime.open(quantized.folder / name, threads=1).run(test[:]).argmax(1)
        assert (answer == student).mean() > 0.95


def test_calibration_sees_training_images_only_and_no_more_than_asked(trained, quantized):
    context, dataset, _ = trained
    assert quantized.calibration.images == 64
    images = Quantize(calibration_images=64)._images(context, dataset)
    train = {image.tobytes() for image in open_split(dataset, "train")[:]}
    assert len(images) == 64 and all(image.tobytes() in train for image in images)


def test_switched_off(trained):
    context, dataset, checkpoint = trained
    assert Quantize(enabled=False).run(context, checkpoint, dataset) is None
