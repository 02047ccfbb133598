"""The .tflite files, run and read back with LiteRT: what a phone would make of them."""

import dataclasses
import shutil
import sys
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pytest

import exporters
from exporters import Variant
from pipeline.contract import Facts
from pipeline.errors import ExportError, NotInstalledError
from runtime import litert
from tests.conftest import sources_of
from tests.pictures import CLASSES, picture

exporter: Any = exporters.load("litert")
pytestmark = pytest.mark.skipif(
    not exporter.availability().ok, reason=f"{exporter.availability().detail} (extra: litert)"
)
STEPS = 25
LABELS = ("Ameise", "Grüße", "猫", "naïve bee", "🐝")


class Made(NamedTuple):
    """A student and its files, by precision, which answer with `output`."""

    sources: Any
    images: np.ndarray
    output: str
    folders: dict
    notes: dict

    def path(self, precision):
        return self.folders[precision] / "model.tflite"

    def expected(self):
        import torch

        import models

        with torch.inference_mode():
            logits = models.load(self.sources.student)(torch.from_numpy(self.images))
            return (logits if self.output == "logits" else logits.softmax(1)).numpy()


@pytest.fixture(
    scope="module",
    params=[("mobilenet_v2", 3, "logits"), ("mobilenet_v3_small", 1, "probabilities")],
    ids=["v2-colour-logits", "v3-grey-probabilities"],
)
def made(request, make_checkpoint, quantized, tmp_path_factory):
    """A student that knows three classes, and its files in both precisions."""
    arch, channels, output = request.param
    rng = np.random.default_rng(2)
    grey = np.stack([picture(CLASSES[i % 3], rng, 32) for i in range(96)])[..., None]
    images = np.concatenate([grey, grey[:, ::-1], 255 - grey], axis=3)[..., :channels].copy()
    checkpoint = make_checkpoint(arch, channels=channels).model_copy(update={"labels": LABELS})
    train(checkpoint, images)
    folder = tmp_path_factory.mktemp("calibration")
    np.save(folder / quantized.images, images)
    graphs = quantized.model_copy(update={"folder": folder})
    sources = dataclasses.replace(
        sources_of(checkpoint, graphs), facts=Facts.of(checkpoint, "CC BY 4.0 – Ω")
    )
    folders = {each: tmp_path_factory.mktemp(each) for each in ("fp32", "int8")}
    settings = exporter.Settings(output=output)
    notes = {
        variant.precision: exporter.export(
            sources, variant, settings, folders[variant.precision]
        ).notes
        for variant in exporter.variants(settings)
    }
    return Made(sources, images, output, folders, notes)


def train(checkpoint, images):
    """A few steps: without, the least rounding would grow from layer to layer."""
    import torch

    import models

    torch.manual_seed(0)
    student, pixels = models.load(checkpoint).train(), torch.from_numpy(images)
    right = torch.arange(len(images)) % len(CLASSES)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(pixels), right).backward()
        optimizer.step()
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # in so few steps the running statistics lag behind
    with torch.no_grad():
        student(pixels)
    torch.save(student.network.state_dict(), checkpoint.weights_path)


def graph_of(path) -> Any:  # flatbuffer classes, whose fields are None to a type checker
    """The model as an object, its operators by type and its tensors."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    model: Any = read_model_from_bytearray(path.read_bytes())
    (graph,), kinds = model.subgraphs, {n: name for name, n in vars(schema.BuiltinOperator).items()}
    ops = [(kinds[model.operatorCodes[op.opcodeIndex].builtinCode], op) for op in graph.operators]
    return model, ops, graph.tensors


def test_fp32_answers_as_the_student_does(made):
    session = litert.open(made.path("fp32"), threads=1)
    answers, expected = session.run(made.images), made.expected()
    assert answers.dtype == np.float32 and answers.shape == expected.shape
    np.testing.assert_allclose(answers, expected, atol=1e-5 * np.abs(expected).max())
    assert session.name.startswith("ai-edge-litert ")


def test_int8_answers_nearly_so(made):
    answers = litert.open(made.path("int8"), threads=1).run(made.images)
    expected = made.expected()
    assert np.abs(answers - expected).mean() < 0.2 * expected.std()
    assert len(set(expected.argmax(1))) == len(CLASSES)
    assert (answers.argmax(1) == expected.argmax(1)).mean() > 0.95
    if made.output == "probabilities":
        np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_takes_the_image_as_the_phone_has_it(made, precision):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(made.path(precision)))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    spec = made.sources.student.input
    assert (taken["name"], taken["dtype"]) == ("image", np.uint8)
    assert tuple(taken["shape"]) == (1, spec.size, spec.size, spec.channels)
    assert (given["name"], given["dtype"]) == (made.output, np.float32)
    assert tuple(given["shape"]) == (1, len(LABELS))
    signature = interpreter.get_signature_list()["serving_default"]
    assert signature == {"inputs": ["image"], "outputs": [made.output]}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_transposition_is_left_and_buffers_are_aligned(made, precision):
    from ai_edge_litert import schema_py_generated as schema

    _, ops, _ = graph_of(made.path(precision))
    assert not {kind for kind, _ in ops} & {"TRANSPOSE", "RESHAPE"}
    model: Any = schema.Model.GetRootAs(made.path(precision).read_bytes(), 0)
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    full = [each._tab for each in buffers if not each.DataIsNone()]
    assert {tab.Vector(tab.Offset(4)) % 16 for tab in full} == {0}


def test_int8_computes_in_integers(made):
    from ai_edge_litert.schema_py_generated import TensorType

    _, ops, tensors = graph_of(made.path("int8"))
    floats = [
        kind
        for kind, op in ops
        if any(tensors[i].type == TensorType.FLOAT32 for i in (*op.inputs, *op.outputs))
    ]
    assert floats == ["DEQUANTIZE", "SOFTMAX"][: 1 if made.output == "logits" else 2]
    assert f"{len(ops) - len(floats)} of {len(ops)} operators" in made.notes["int8"][0]
    assert [kind for kind, _ in ops].count("QUANTIZE") == 1 and ops[0][0] == "QUANTIZE"
    assert made.images.shape[1:] == tuple(tensors[ops[0][1].outputs[0]].shape[1:])
    layers = [(kind, tensors[op.inputs[1]]) for kind, op in ops if kind.endswith("CONV_2D")]
    for kind, weight in layers:
        channels = weight.shape[3 if kind.startswith("DEPTHWISE") else 0]
        assert weight.type == TensorType.INT8 and len(weight.quantization.scale) == channels
        assert not any(weight.quantization.zeroPoint)
    assert ops[1][0] in ("PAD", "CONV_2D", "DEPTHWISE_CONV_2D")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_says_what_it_is(made, precision):
    path, facts = made.path(precision), made.sources.facts
    assert litert.read_metadata(path) == facts.texts(made.output)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(LABELS)
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED
    model, *_ = graph_of(path)
    (standard,) = [each for each in model.metadata if each.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[standard.buffer].data)
    assert content[4:8] == b"M001"
    for text in ("labels.txt", "image", made.output, facts.licence, facts.student):
        assert text.encode() in content


def test_intermediates_are_those_of_the_layers(made):
    import torch

    import models

    student, images = models.load(made.sources.student), made.images[:4]
    shown = {}
    for name, layer in student.network.named_modules():
        layer.register_forward_hook(lambda _, __, out, name=name: shown.update({name: out.clone()}))
    with torch.inference_mode():
        student(torch.from_numpy(images))
    for precision, allowed, least in (("fp32", 1e-5, 30), ("int8", 0.6, 30)):
        compared, name = 0, ""
        for name, values in litert.intermediates(made.path(precision), images):
            assert values.dtype == np.float32 and len(values) == len(images)
            if name not in shown or values.ndim != 4:
                continue
            right = shown[name].permute(0, 2, 3, 1).numpy()
            assert values.shape == right.shape, name
            assert np.abs(values - right).mean() <= allowed * (right.std() + 1e-3), name
            compared += 1
        assert compared >= least
        assert name == made.output  # the last one


def test_a_folder_may_have_blanks_in_its_name(made, tmp_path):
    folder = tmp_path / "a föld er"
    shutil.copytree(made.folders["int8"], folder)
    plain = litert.open(made.path("int8"), threads=2).run(made.images[:3])
    assert np.array_equal(
        litert.open(folder / "model.tflite", threads=2).run(made.images[:3]), plain
    )


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9])
def test_a_truncated_file_is_refused(made, tmp_path, share):
    content, cut = made.path("int8").read_bytes(), tmp_path / "cut.tflite"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ExportError, match=r"LiteRT cannot load .*cut\.tflite"):
        litert.open(cut, threads=1)


def test_foreign_bytes_are_refused(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"PK\x03\x04" * 500)
    with pytest.raises(ExportError, match="cannot load"):
        litert.open(path, threads=1)
    with pytest.raises(ExportError, match=r"no \.tflite file"):
        litert.read_metadata(path)
    with pytest.raises(ExportError, match="nowhere"):
        litert.open(tmp_path / "nowhere.tflite", threads=1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_unknown_operator_is_named_with_its_layer(checkpoint, precision, capfd):
    import torch
    from torch import nn

    from models.classifier import Classifier

    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, len(checkpoint.labels)))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Bessel()), *pooled)
    classifier = Classifier(network, checkpoint.input).eval()
    images = None if precision == "fp32" else np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(ExportError, match=r"network\.1\.1: .*special_bessel_j0") as caught:
        exporter.convert(classifier, Facts.of(checkpoint), "logits", images)
    assert "student.arch" in caught.value.remedy
    assert capfd.readouterr() == ("", "")


def test_int8_bears_signals_and_channels_that_have_died_away(checkpoint, tmp_path):
    """Their scales are tiny: biases must fit into an int32, ratios of scales into a multiplier."""
    import torch
    from torch import nn

    from exporters.litert import metadata
    from models.classifier import Classifier

    torch.manual_seed(0)
    first: Any = nn.Conv2d(3, 4, 3)
    dead: Any = nn.Conv2d(4, 4, 3)
    last = nn.Linear(4, len(checkpoint.labels))
    with torch.no_grad():
        first.bias[1] = 2
        first.weight[1].mul_(1e-9)
        dead.weight.mul_(1e-35)
        dead.bias.mul_(1e-35)
        last.weight.mul_(1e-30)
    network = nn.Sequential(first, dead, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    classifier, facts = Classifier(network, checkpoint.input).eval(), Facts.of(checkpoint)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    path = tmp_path / "model.tflite"
    model = exporter.convert(classifier, facts, "logits", images)
    path.write_bytes(metadata.pack(model, facts, "logits"))
    values = dict(litert.intermediates(path, images))  # by LiteRT's kernels, not XNNPACK's
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(images)).numpy()
        bias = float(first.bias[1])
    np.testing.assert_allclose(values["0"][..., 1], bias, atol=0.05)
    np.testing.assert_allclose(values["logits"], logits, atol=0.01 * np.abs(logits).max())


def test_int8_needs_a_convolution_first(checkpoint):
    from torch import nn

    from models.classifier import Classifier

    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    classifier = Classifier(network, checkpoint.input).eval()
    with pytest.raises(ExportError, match="begins with a convolution"):
        images = np.zeros((1, 32, 32, 3), np.uint8)
        exporter.convert(classifier, Facts.of(checkpoint), "logits", images)


def test_a_missing_package_is_named(checkpoint, tmp_path, monkeypatch):
    sources = sources_of(checkpoint)
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(NotInstalledError, match="litert_torch") as caught:
        exporter.export(sources, Variant("fp32"), exporter.Settings(), tmp_path)
    assert "litert]" in caught.value.remedy


def test_precisions_are_a_choice():
    settings = exporter.Settings(precisions=("fp32",))
    assert [each.precision for each in exporter.variants(settings)] == ["fp32"]
