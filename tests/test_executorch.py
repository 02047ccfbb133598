"""ExecuTorch files, executed: what they answer, what they say of themselves, what XNNPACK runs."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import exporters.executorch as exporter
import runtime.executorch as runtime
from exporters import Sources, Variant
from pipeline.contract import Facts
from pipeline.errors import ExportError
from pipeline.records import InputSpec
from tests.pictures import CLASSES, picture

pytestmark = pytest.mark.skipif(
    not exporter.availability().ok, reason="executorch is not installed (extra: executorch)"
)
ROOT = Path(__file__).parents[1]
SIZE = 32
V2, V3 = ("mobilenet_v2", 3), ("mobilenet_v3_small", 1)
SHORT_V2, SHORT_V3 = (*V2, 4), (*V3, 5)
SPEC = InputSpec(size=SIZE, channels=3, mean=(0.5, 0.45, 0.4), std=(0.3, 0.25, 0.2))
FACTS = Facts(
    labels=("año", "bjørn", "猫", "тигр", "🐝"), input=SPEC, student="0123", arch="tiny", version=""
)


def pictures(channels, count=96):
    """uint8 [count, SIZE, SIZE, channels], each channel of a kind of its own."""
    rng = np.random.default_rng(2)
    shown = [
        [picture(CLASSES[(i + channel) % 3], rng, SIZE) for channel in range(channels)]
        for i in range(count)
    ]
    return np.array(shown).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def student(make_checkpoint):
    """Makes a student whose answers depend on the image, though untrained."""

    @cache
    def make(arch, channels):
        import torch

        import models

        checkpoint = make_checkpoint(arch, channels)
        classifier = enliven(models.load(checkpoint), channels)
        torch.save(classifier.network.state_dict(), checkpoint.weights_path)
        return checkpoint

    return make


def enliven(classifier, channels):
    """`classifier` with statistics of the pictures, so that no signal dies away."""
    import torch

    for layer in classifier.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        classifier.train()(torch.from_numpy(pictures(channels)))
    return classifier.eval()


@pytest.fixture(scope="module")
def whole(student, tmp_path_factory):
    """Makes the float file of a student: what `export` returns, and the path."""

    @cache
    def make(arch, channels):
        checkpoint = student(arch, channels)
        sources = Sources(student=checkpoint, facts=Facts.of(checkpoint))
        folder = tmp_path_factory.mktemp("a folder of ünusual name")
        made = exporter.export(sources, Variant("fp32"), exporter.Settings(), folder)
        return made, folder / made.file

    return make


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Makes an int8 file of a network's first blocks: classifier, path and census.

    In a whole network that is untrained, rounding grows from block to block.
    """

    @cache
    def make(arch, channels, blocks):
        import torch
        from torch import nn

        import models
        from models.classifier import Classifier

        torch.manual_seed(0)
        network = models.build(arch, classes=5, channels=channels, image_size=SIZE)
        first = nn.Sequential(*list(network.get_submodule("features").children())[:blocks])
        width = [layer.out_channels for layer in first.modules() if isinstance(layer, nn.Conv2d)]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width[-1], 5))
        spec = SPEC.model_copy(
            update={"channels": channels, "mean": SPEC.mean[:channels], "std": SPEC.std[:channels]}
        )
        classifier = enliven(Classifier(nn.Sequential(first, *head), spec), channels)
        facts = FACTS.model_copy(update={"input": spec})
        program, census = exporter.convert(classifier, facts, images=pictures(channels)[:64])
        path = tmp_path_factory.mktemp("int8") / "model.pte"
        path.write_bytes(program)
        return classifier, path, census

    return make


def answers(classifier, images):
    import torch

    with torch.inference_mode():
        return classifier(torch.from_numpy(images)).numpy()


def tiny(middle=None):
    """A network of one convolution, as lively as need be."""
    import torch
    from torch import nn

    from models.classifier import Classifier

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        middle or nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, len(FACTS.labels)),
    )
    return Classifier(network, SPEC).eval()


@pytest.mark.parametrize("network", [V2, V3], ids=["v2-colour", "v3-grey"])
def test_float_answers_like_the_student(network, student, whole):
    import models

    checkpoint, (_, path) = student(*network), whole(*network)
    images = pictures(network[1])
    expected = answers(models.load(checkpoint), images)
    logits = runtime.open(path, threads=1).run(images)
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    # Beside the spread of the answers, not their size: or else any file would pass.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * expected.std(0).min())


@pytest.mark.parametrize("network", [SHORT_V2, SHORT_V3], ids=["v2-colour", "v3-grey"])
def test_int8_answers_nearly_like_the_student(network, short):
    classifier, path, _ = short(*network)
    images = pictures(network[1])
    expected = answers(classifier, images)
    logits = runtime.open(path, threads=1).run(images)
    spread, middle = expected.std(0), expected.mean(0)
    assert 1e-4 < (np.abs(logits - expected) / spread).mean() < 0.2
    # Of an untrained network one class wins nearly always; beside its mean, each does now and then.
    assert ((logits - middle).argmax(1) == (expected - middle).argmax(1)).mean() > 0.8


def test_it_takes_the_image_as_the_phone_has_it(whole, short):
    from executorch.runtime import Runtime

    for path in (whole(*V2)[1], short(*SHORT_V2)[1]):
        about = Runtime.get().load_program(path).metadata("forward")
        assert (about.num_inputs(), about.num_outputs()) == (1, 1)
        image, logits = about.input_tensor_meta(0), about.output_tensor_meta(0)
        assert (image.sizes(), image.nbytes()) == ((1, SIZE, SIZE, 3), SIZE * SIZE * 3)
        assert (logits.sizes(), logits.nbytes()) == ((1, 5), 4 * 5)
    session = runtime.open(whole(*V2)[1], threads=1)
    images = pictures(3, 1)
    assert np.abs(session.run(images) - session.run(images[..., ::-1])).max() > 0.01
    for wrong in (images.transpose(0, 3, 1, 2), images.astype(np.int8)):
        with pytest.raises(RuntimeError):
            session.run(wrong)  # pyright: ignore[reportArgumentType]


def test_all_but_the_cast_is_xnnpacks(whole, short):
    (note,) = whole(*V2)[0].notes
    assert note == "XNNPACK runs 101 of 102 operators; in ExecuTorch's own kernels: 1 cast."
    census = short(*SHORT_V2)[2]
    assert census.portable == {"_to_dim_order_copy": 1}
    assert census.floats == {"add": 1, "mul": 1}  # the normalisation
    assert census.integers.total() > 12


def test_what_stays_float_in_int8_is_said(short):
    _, _, census = short(*SHORT_V3)
    assert census.portable == {"_to_dim_order_copy": 1}
    # The normalisation, two hard sigmoids, and three hard swishes, which XNNPACK has in float only.
    assert census.floats == {"mul": 3, "add": 3, "hardtanh": 2, "hardswish": 3}
    assert "in float: 3 add, 3 hardswish, 2 hardtanh, 3 mul." in census.notes[1]


def test_metadata(student, whole, short):
    assert runtime.read_metadata(whole(*V2)[1]) == Facts.of(student(*V2)).texts("logits")
    assert runtime.read_metadata(short(*SHORT_V2)[1]) == FACTS.texts("logits")


def test_probabilities_and_labels_of_any_alphabet(tmp_path):
    classifier = tiny()
    program, _ = exporter.convert(classifier, FACTS, "probabilities")
    path = tmp_path / "model.pte"
    path.write_bytes(program)
    assert runtime.read_metadata(path) == FACTS.texts("probabilities")
    images = pictures(3, 4)
    powers = np.exp(answers(classifier, images))
    expected = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(runtime.open(path, 1).run(images), expected, atol=1e-6)


def test_unknown_operator_is_named_with_its_layer():
    import torch

    class Bessel(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportError, match=r"network\.1: .*special_bessel_j0") as caught:
        exporter.convert(tiny(Bessel()), FACTS)
    assert "student.arch" in caught.value.remedy


def test_what_is_no_whole_file_is_refused(whole, tmp_path):
    good = whole(*V2)[1].read_bytes()
    path = tmp_path / "model.pte"
    for length in (0, 7, 39, 64, 5000, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(ExportError, match=r"it ends after|no ExecuTorch program"):
            runtime.open(path, 1)
    for content in (b"\xee" * 5000, b"text" * 100, good[:60] + b"\xff" * 200 + good[260:]):
        path.write_bytes(content)  # the first one makes the library end the process
        with pytest.raises(ExportError, match="cannot load"):
            runtime.open(path, 1)
    with pytest.raises(ExportError, match="No such file"):
        runtime.open(tmp_path / "none.pte", 1)


def test_sessions_of_other_numbers_of_threads_live_side_by_side(whole):
    path, images = whole(*V2)[1], pictures(3, 2)
    one, two = runtime.open(path, threads=1), runtime.open(path, threads=2)
    first = one.run(images)  # the library alone would end the process here
    np.testing.assert_allclose(two.run(images), first, atol=1e-5)
    assert runtime.threads() == 2
    np.testing.assert_array_equal(one.run(images), first)
    assert runtime.threads() == 1
    assert one.name.startswith("executorch ")


def test_another_process_writes_the_same_bytes_and_says_nothing(tmp_path):
    path = tmp_path / "model.pte"
    code = f"""
from pathlib import Path
from exporters import executorch as exporter
import runtime.executorch as runtime
from tests.test_executorch import FACTS, pictures, tiny
program, _ = exporter.convert(tiny(), FACTS, images=pictures(3, 8))
path = Path({str(path)!r})
path.write_bytes(program)
runtime.open(path, 1).run(pictures(3, 2))
runtime.read_metadata(path)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
    )
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 0)
    assert path.read_bytes() == exporter.convert(tiny(), FACTS, images=pictures(3, 8))[0]


def test_without_images_int8_is_a_programming_error(student, tmp_path):
    checkpoint = student(*V2)
    sources = Sources(student=checkpoint, facts=Facts.of(checkpoint))
    with pytest.raises(TypeError):
        exporter.export(sources, Variant("int8", source="quantized"), exporter.Settings(), tmp_path)
