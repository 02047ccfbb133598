"""Files that answer otherwise than the student end the run, and the message says where."""

import numpy as np
import onnx
import pytest
import torch

import exporters
import models
from benchmarks.stats import wilson
from exporters import Variant
from pipeline.context import Context
from pipeline.errors import ExportError, VerificationError
from pipeline.images import open_split
from pipeline.records import Accuracy, Artifact, Dataset, Measurement, Parity, Split
from pipeline.stages.export import Export
from pipeline.stages.measure import Measure
from pipeline.store import Store
from pipeline.verification import verify
from runtime import onnx_runtime
from tests.conftest import enliven, export_onnx, sources_of
from tests.pictures import CLASSES, picture

N = 80


@pytest.fixture(scope="module")
def scene(make_checkpoint, tmp_path_factory):
    """A student, its file, and grey pictures."""
    return make_scene(1, make_checkpoint, tmp_path_factory)


@pytest.fixture(scope="module")
def coloured(make_checkpoint, tmp_path_factory):
    """The same in colour."""
    return make_scene(3, make_checkpoint, tmp_path_factory)


def make_scene(channels, make_checkpoint, tmp_path_factory):
    """A student, its file, and pictures that are labelled with the student's own answers."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(1)
    shown = [[picture(CLASSES[i % 3], rng, 32) for i in range(N)] for _ in range(channels)]
    pixels = np.stack(shown, axis=-1)
    checkpoint = make_checkpoint(channels=channels)
    enliven(checkpoint, pixels)
    centre(checkpoint, pixels)
    float_onnx = export_onnx(
        sources_of(checkpoint), Variant("fp32"), tmp_path_factory.mktemp("onnx")
    )
    spec = checkpoint.input
    logits = onnx_runtime.open(float_onnx.path, 1).run(pixels)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "labels.npy", logits.argmax(1))
    split = Split(n=N, labels="labels.npy", images="pixels.npy")
    dataset = Dataset(
        folder=folder,
        source="noise",
        labels=checkpoint.labels,
        input=spec,
        train=split,
        val=split,
        test=split,
        digest="d",
    )
    return Scene(checkpoint, float_onnx, dataset, logits, folder)


def centre(checkpoint, pixels):
    """Of an untrained student one class wins nearly always; without its mean, each now and then."""
    with torch.inference_mode():
        mean = models.load(checkpoint)(torch.from_numpy(pixels)).mean(0)
    state = torch.load(checkpoint.weights_path)
    state["classifier.1.bias"] -= mean
    torch.save(state, checkpoint.weights_path)


class Scene:
    def __init__(self, checkpoint, file, dataset, logits, folder):
        self.checkpoint, self.file, self.dataset, self.folder = checkpoint, file, dataset, folder
        self.logits = logits
        self.student = self.found("student", logits)

    def found(self, name, logits):
        """The measurement of a file that answers with `logits`."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        np.save(home / "predictions.npy", logits)
        labels = open_split(self.dataset, "test").labels
        right = int((logits.argmax(1) == labels).sum())
        apart = np.abs(logits - self.logits)
        return Measurement(
            folder=home,
            accuracy=Accuracy(
                top1=right / N,
                top1_ci95=wilson(right, N),
                n=N,
                evaluated_with="onnxruntime",
                predictions="predictions.npy",
            ),
            parity=Parity(
                max_abs_diff=float(apart.max()),
                mean_abs_diff=float(apart.mean()),
                relative=float(apart.mean() / self.logits.std()),
                top1_agreement=1.0,
                n=N,
            ),
        )

    def verify(self, artifact: Artifact, name="file", **settings):
        pixels = open_split(self.dataset, "test")[slice(0, N)]
        self.judge(artifact, name, onnx_runtime.open(artifact.path, 1).run(pixels), **settings)

    def judge(self, artifact, name, logits, **settings):
        found = self.found(name, logits)
        export = Export.model_validate({"formats": ["onnx"], "onnx": settings})
        context = Context(store=Store(self.folder), seed=0, device="cpu", threads=1)
        verify(context, export, (self.checkpoint, self.student), [(artifact, found)], self.dataset)


def test_a_faithful_file_passes(scene):
    scene.verify(scene.file)


def broken(artifact, folder, layer):
    """A copy of the file in which the weights of one layer are half of what they were."""
    model = onnx.load(artifact.path)
    (weight,) = (each for each in model.graph.initializer if each.name.endswith(f"{layer}.weight"))
    values = onnx.numpy_helper.to_array(weight) * np.float32(0.5)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / "broken.onnx")
    return artifact.model_copy(update={"folder": folder, "file": "broken.onnx"})


def test_a_broken_layer_is_named(scene, tmp_path):
    file = broken(scene.file, tmp_path, "features.5.conv.0.0")
    with pytest.raises(VerificationError) as caught:
        scene.verify(file, "broken")
    message = caught.value.message
    assert "onnx fp32: its answers are" in message and "allowed are 0.001" in message
    assert "features.5.conv.0" in message
    assert "or allow more with export.onnx.max_difference" in caught.value.remedy
    assert "No setting" not in caught.value.remedy


def test_a_tolerance_can_be_widened(scene, tmp_path):
    file = broken(scene.file, tmp_path, "features.5.conv.0.0")
    scene.verify(file, "wide", max_difference=100.0, max_drop=100.0)


def test_a_certain_loss_of_accuracy_is_beyond_it_too(scene, tmp_path):
    file = broken(scene.file, tmp_path, "features.0.0")
    told = r"loses \d+\.\d+ points .* allowed are 0\.1"
    with pytest.raises(VerificationError, match=told) as caught:
        scene.verify(file, "lossy", max_difference=100.0)
    assert "or allow more with export.onnx.max_drop. Everything" in caught.value.remedy


def test_red_taken_for_blue_is_named_whatever_the_tolerance(coloured):
    coloured.verify(coloured.file)
    pixels = open_split(coloured.dataset, "test")[slice(0, N)]
    swapped = np.ascontiguousarray(pixels[..., ::-1])
    logits = onnx_runtime.open(coloured.file.path, 1).run(swapped)
    noise = np.random.default_rng(4).normal(0, 0.2 * logits.std(), logits.shape)  # as of int8
    wide = {"max_difference": 100.0, "max_drop": 100.0}
    for settings in (wide, {}):
        with pytest.raises(VerificationError, match="takes red for blue") as caught:
            coloured.judge(
                coloured.file, "swapped", (logits + noise).astype(np.float32), **settings
            )
        assert caught.value.remedy == (
            "Leave the file out (`precisions` of its format). No setting lets onnx fp32 pass. "
            "Everything measured is kept."
        )
    coloured.judge(coloured.file, "noisy", (coloured.logits + noise).astype(np.float32), **wide)


def test_tolerances_are_advised_for_the_files_that_they_help(coloured):
    pixels = open_split(coloured.dataset, "test")[slice(0, N)]
    swapped = onnx_runtime.open(coloured.file.path, 1).run(np.ascontiguousarray(pixels[..., ::-1]))
    far = coloured.logits + np.random.default_rng(4).normal(0, 0.2, swapped.shape)
    other = coloured.file.model_copy(update={"format": "ort"})
    files = [
        (coloured.file, coloured.found("swapped", swapped)),
        (other, coloured.found("far", far.astype(np.float32))),
    ]
    export = Export.model_validate({"formats": ["onnx", "ort"], "ort": {"max_drop": 100.0}})
    context = Context(store=Store(coloured.folder), seed=0, device="cpu", threads=1)
    student = (coloured.checkpoint, coloured.student)
    with pytest.raises(VerificationError) as caught:
        verify(context, export, student, files, coloured.dataset)
    assert caught.value.remedy == (
        "Leave the file out (`precisions` of its format), or allow more with "
        "export.ort.max_difference. No setting lets onnx fp32 pass. Everything measured is kept."
    )


def test_a_file_that_does_not_run_here_is_told_and_ends_nothing(scene, tmp_path):
    (tmp_path / "model.ort").write_bytes(b"no model")
    file = Artifact(key="k", format="ort", precision="fp32", folder=tmp_path, file="model.ort")
    context = Context(store=Store(tmp_path), seed=0, device="cpu", threads=1)
    measure = Measure(profile="smoke")
    found = measure._artifact(context, file, scene.student, scene.dataset, 0)
    assert found.parity is None and found.skipped
    assert found.skipped.startswith("cannot be run here: ONNX Runtime cannot load")
    with pytest.raises(ExportError, match="cannot load"):
        measure._artifact(
            *(context, file.model_copy(update={"format": "onnx"}), scene.student, scene.dataset, 0)
        )


@pytest.mark.parametrize("precision", exporters.TOLERANCES)
@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_answers_to_other_images_are_beyond_every_tolerance(precision, output, classes):
    from scipy.special import softmax

    from pipeline.stages.measure import _parity

    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (200, classes)).astype(np.float32)
    same = logits if output == "logits" else softmax(logits, axis=1)
    allowed = exporters.TOLERANCES[precision].difference
    assert _parity(same, logits, output).relative < 1e-5
    assert _parity(np.roll(same, 1, axis=0), logits, output).relative > allowed
    if classes > 2:
        assert _parity(same[:, ::-1], logits, output).relative > allowed


def test_answers_that_are_no_numbers(scene, tmp_path):
    model = onnx.load(scene.file.path)
    bias = next(each for each in model.graph.initializer if each.name.endswith("classifier.1.bias"))
    values = onnx.numpy_helper.to_array(bias) * np.float32("nan")
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "nan.onnx")
    file = scene.file.model_copy(update={"folder": tmp_path, "file": "nan.onnx"})
    with pytest.raises(VerificationError, match="not numbers") as caught:
        scene.verify(file, "nan")
    assert "max_" not in caught.value.remedy
