"""The reference executor of Core ML packages: students and their images.

Its operators, the forms of compressed weights, and damaged files have files of their own beside
this one.
"""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import models
from exporters import coreml as exporter
from pipeline.records import InputSpec
from pipeline.tolerances import TOLERANCES
from runtime import coreml_reference, for_file
from tests.coreml_files import (
    LABELS,
    RNG,
    Student,
    builder,
    difference,
    logits,
    noise,
    quiet,
    student,
    tools,
    write,
    write_float,
)

pytestmark = [
    pytest.mark.coreml,
    pytest.mark.skipif(
        not exporter.availability().ok, reason="coremltools is not installed (extra: coreml)"
    ),
]


SLOW = [
    pytest.param(arch, marks=() if arch == "mobilenet_v4_conv_small" else pytest.mark.slow)
    for arch in models.STUDENTS
]


@pytest.mark.parametrize("arch", SLOW)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 96)], ids=["colour", "grey"])
def test_a_float32_file_answers_as_the_student(arch, channels, size, tmp_path):
    """Stride 1 at 32 px, 2 at 96 px; the two differ by the order of sums only."""
    classifier = student(arch, channels, size)
    session = coreml_reference.open(write_float(classifier, tmp_path / "m.mlpackage"), 1)
    images = noise(8, size, channels)
    expected = logits(classifier, images)
    assert expected.std() > 0.01
    found = session.run(images)
    assert found.dtype == np.float32 and session.labels == LABELS
    assert difference(found, expected) < 2e-5


@pytest.mark.parametrize("arch", SLOW)
def test_a_float16_file_answers_nearly_as_the_student(arch, tmp_path, record_property):
    classifier = student(arch)
    images = noise(64, 32)
    expected = logits(classifier, images)
    path = write(classifier, tmp_path / "m.mlpackage", output="logits")
    found = coreml_reference.open(path, 1).run(images)
    apart = difference(found, expected)
    record_property("difference", float(apart))
    # Untrained: each layer passes on what the one before it rounded. Trained ones are nearer.
    assert 1e-5 < apart < TOLERANCES["fp16"].difference
    assert np.array_equal(found, found.astype(np.float16))


@pytest.mark.parametrize(
    ("target", "channels"),
    [
        ("iOS16", 3),
        *(
            pytest.param(target, channels, marks=pytest.mark.slow)
            for target, channels in (("iOS15", 1), ("iOS17", 1), ("iOS18", 3), ("iOS26", 1))
        ),
    ],
)
def test_every_target(target, channels, tmp_path):
    classifier = student(channels=channels, width=0.35)
    images = noise(4, 32, channels)
    path = write(classifier, tmp_path / "m.mlpackage", minimum_target=target)
    found = coreml_reference.open(path, 1).run(images)
    expected = torch.softmax(torch.from_numpy(logits(classifier, images)), 1).numpy()
    np.testing.assert_allclose(found, expected, atol=0.015)
    np.testing.assert_allclose(found.sum(1), 1, atol=5e-3)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small student and its package."""
    classifier = student(width=0.35)
    return classifier, write(classifier, tmp_path_factory.mktemp("small") / "model.mlpackage")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "convnext_tiny"])
def test_ordinary_classifiers(name, tmp_path):
    """Networks that are no students: residual, squeezed and excited, dense, with layer norms."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=5)
    spec = InputSpec(size=64, channels=3, mean=(0.5, 0.45, 0.4), std=(0.3, 0.25, 0.2))
    classifier = Student(network, spec)
    with torch.no_grad():
        classifier.train()(torch.from_numpy(noise(8, 64)))
    classifier.eval()
    session = coreml_reference.open(write_float(classifier, tmp_path / "m.mlpackage"), 1)
    images = noise(3, 64)
    assert session._executor.batched
    assert difference(session.run(images), logits(classifier, images)) < 1e-4


def test_it_is_the_runtime_of_core_ml():
    assert for_file("coreml", "model.mlpackage") == "coreml_reference"
    assert coreml_reference.availability().ok
    assert not coreml_reference.TIMED and coreml_reference.CAVEAT.endswith(".")


def test_many_images_are_as_one(small):
    _, path = small
    session = coreml_reference.open(path, 1)
    images = noise(5, 32)
    alone = np.concatenate([session.run(images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(session.run(images), alone, atol=2e-3)  # other sums, other roundings
    assert session.run(images[:0]).shape == (0, 5)
    assert session.name.startswith("coreml reference (torch ")


def test_more_images_than_are_executed_at_once(small, monkeypatch):
    _, path = small
    session = coreml_reference.open(path, 1)
    images = noise(7, 32)
    whole = session.run(images)
    monkeypatch.setattr(coreml_reference, "PIXELS", 3 * 32 * 32)
    np.testing.assert_allclose(session.run(images), whole, atol=2e-3)


def test_intermediates(small):
    classifier, path = small
    images = noise(3, 32)
    found = list(coreml_reference.intermediates(path, images))
    assert len({name for name, _ in found}) == len(found) > 100
    assert all(value.dtype == np.float32 and len(value) == 3 for _, value in found)
    _, probabilities = found[-1]
    np.testing.assert_array_equal(probabilities, coreml_reference.open(path, 1).run(images))
    first = next(value for _, value in found if value.shape[1] != 3)
    with torch.inference_mode():
        network: Any = classifier.network
        pixels = (
            torch.from_numpy(images).permute(0, 3, 1, 2) / 255
            - torch.tensor(classifier.contract.mean)[:, None, None]
        ) / torch.tensor(classifier.contract.std)[:, None, None]
        layer = nn.Sequential(*list(network.features[0])[:2])(pixels.float()).numpy()
    np.testing.assert_allclose(first, layer, atol=0.01)


@pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAYSCALE"])
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_images_scale_and_bias(colour, target, tmp_path):
    ct = tools()
    mb = builder()

    channels, goal = (1 if colour == "GRAYSCALE" else 3), ct.target[target]
    bias = [-1.0, -2.0, -3.0][:channels]
    shape = (1, channels, 2, 2)
    with quiet():
        program = mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=goal)(
            lambda x: mb.relu(x=x)
        )
        made = ct.convert(
            program,
            inputs=[
                ct.ImageType(
                    name="x",
                    shape=shape,
                    color_layout=ct.colorlayout[colour],
                    scale=0.5,
                    bias=bias if channels == 3 else bias[0],
                )
            ],
            minimum_deployment_target=goal,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        made.save(str(tmp_path / "m.mlpackage"))
    images = RNG.integers(0, 256, (3, 2, 2, channels), dtype=np.uint8)
    found = coreml_reference.open(tmp_path / "m.mlpackage", 1).run(images)
    seen = images[..., ::-1] if colour == "BGR" else images
    expected = np.maximum(seen * 0.5 + np.array(bias), 0).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected.reshape(3, -1), rtol=1e-6)


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML itself runs on macOS only")
@pytest.mark.parametrize("arch", SLOW)
def test_core_ml_itself_answers_the_same(arch, tmp_path):
    from PIL import Image

    ct = tools()
    path = write(student(arch), tmp_path / "m.mlpackage")
    images = noise(16, 32)
    found = coreml_reference.open(path, 1).run(images)
    model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_ONLY)
    name = model.get_spec().description.predictedProbabilitiesName
    told = [model.predict({"image": Image.fromarray(image)})[name] for image in images]
    expected = np.array([[each[label] for label in LABELS] for each in told])
    np.testing.assert_allclose(found, expected, atol=0.02)
