"""Where an exported file departs from the student: faults put into real files of tiny students."""

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import exporters
import models
import runtime
from exporters import Variant
from exporters import onnx as onnx_exporter
from models.landmarks import Landmark
from pipeline import departure
from pipeline.errors import CannotRunHereError, ExportError
from pipeline.quantization.place import place
from pipeline.records import Artifact
from tests.conftest import SIZE, export_onnx, make_ready, sources_of

TITLES = ("onnx fp32", "onnx fp16", "onnx int8", "onnx int8 (symmetric)")
IMAGES = np.random.default_rng(3).integers(0, 256, (16, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def v3(make_checkpoint):
    """A small MobileNetV3: squeeze-and-excitation, hard swishes."""
    return make_checkpoint("mobilenet_v3_small", width=0.5)


@pytest.fixture(scope="module")
def v3_onnx(v3, tmp_path_factory):
    return export_onnx(sources_of(v3), Variant("fp32"), tmp_path_factory.mktemp("v3"))


def first(student, artifact):
    return departure.first(student, artifact, IMAGES, 1)


def sentence(student, artifact):
    return departure.sentence(student, artifact, IMAGES, 1)


def changed_file(artifact, folder, change):
    """A copy of the ONNX file of `artifact` that `change` was done to."""
    model = onnx.load(artifact.path)
    change(model)
    onnx.save(model, folder / artifact.file)
    return artifact.model_copy(update={"folder": folder})


def set_constant(model, name, change):
    (tensor,) = (each for each in model.graph.initializer if f".{each.name}".endswith(f".{name}"))
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(value).astype(value.dtype), tensor.name))


def scale_and_shift(model):
    """Names of the constants that normalise, of which the second is negative."""
    found = [each for each in model.graph.initializer if list(each.dims) == [1, 3, 1, 1]]
    assert len(found) == 2
    return [each.name for each in sorted(found, key=lambda t: -numpy_helper.to_array(t).min())]


def reverse_normalisation(model):
    for name in scale_and_shift(model):
        set_constant(model, name, lambda value: value[:, ::-1])


def changed_student(checkpoint, folder, layer):
    """A copy of `checkpoint` with the output channels of one layer in reverse order."""
    folder.mkdir()
    state = torch.load(checkpoint.weights_path, weights_only=True)
    state[f"{layer}.weight"] = state[f"{layer}.weight"].flip(0)
    torch.save(state, folder / checkpoint.weights)
    return checkpoint.model_copy(update={"folder": folder})


def int8_of(ready, folder, change=lambda model: None):
    """An int8 file of a float graph that `change` was done to."""
    model, front, ranges = ready
    model = onnx.ModelProto.FromString(model.SerializeToString())
    change(model)
    onnx.save(place(model, front, ranges).model, folder / "int8.onnx")
    return Artifact(format="onnx", precision="int8", folder=folder, file="int8.onnx")


@pytest.mark.parametrize("title", TITLES)
def test_a_healthy_file_departs_nowhere(sources, title):
    assert first(sources.student, sources.files[title]) is None
    assert "no layer departs" in sentence(sources.student, sources.files[title]).lower()


def test_healthy_files_of_other_students(v3, v3_onnx, tmp_path):
    assert first(v3, v3_onnx) is None
    assert first(v3, int8_of(make_ready(v3), tmp_path)) is None


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_a_healthy_file_of_one_image_that_answers_probabilities(sources, tmp_path, output):
    settings = onnx_exporter.Settings(output=output, batch=1)

    def change(model):
        model.CopyFrom(onnx_exporter.dress(model, sources.facts, settings))

    artifact = changed_file(sources.files["onnx fp32"], tmp_path, change)
    artifact = artifact.model_copy(update={"output": output})
    assert first(sources.student, artifact) is None
    other = "logits" if output == "probabilities" else "probabilities"
    found = first(sources.student, artifact.model_copy(update={"output": other}))
    assert found and found.layer == departure.ANSWERS
    assert f"are {output}, not {other}" in found.words


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "layer", ["features.0.0", "features.3.conv.1.0", "features.9.conv.2", "classifier.1"]
)
def test_a_layer_with_other_weights_is_named(sources, tmp_path, layer, precision):
    def change(model):
        set_constant(model, f"{layer}.weight", lambda value: 1.3 * value)

    broken = changed_file(sources.files[f"onnx {precision}"], tmp_path, change)
    found = first(sources.student, broken)
    assert found and found.layer == layer
    limit = departure.LIMITS[precision]
    assert found.before < limit < found.error
    assert layer in sentence(sources.student, broken)


@pytest.mark.parametrize("layer", ["features.1.block.1.fc1", "features.5.block.2.fc2"])
def test_a_squeeze_and_excitation_is_named(v3, v3_onnx, tmp_path, layer):
    def change(model):
        set_constant(model, f"{layer}.weight", lambda value: -value)

    found = first(v3, changed_file(v3_onnx, tmp_path, change))
    assert found and found.layer == layer


@pytest.mark.parametrize("layer", ["features.0.0", "features.3.conv.1.0", "features.12.conv.0.0"])
def test_a_layer_of_an_int8_file_with_other_weights_is_named(checkpoint, ready, tmp_path, layer):
    def change(model):
        (node,) = (each for each in model.graph.node if each.name == layer)
        set_constant(model, node.input[1], lambda value: value[::-1])

    found = first(checkpoint, int8_of(ready, tmp_path, change))
    assert found and found.layer == layer


@pytest.mark.parametrize("title", TITLES[2:])
@pytest.mark.parametrize("layer", ["features.2.conv.0.0", "features.8.conv.1.0"])
def test_a_wrong_scale_in_an_int8_file_is_named(sources, tmp_path, layer, title):
    def change(model):
        (node,) = (each for each in model.graph.node if each.name == layer)
        makers = {name: each for each in model.graph.node for name in each.output}
        set_constant(model, makers[node.input[1]].input[1], lambda scale: 4 * scale)

    found = first(sources.student, changed_file(sources.files[title], tmp_path, change))
    assert found and found.layer == layer


def test_a_wrong_mean_is_found_at_the_input(checkpoint, float_onnx, tmp_path):
    def change(model):
        set_constant(model, scale_and_shift(model)[1], lambda value: value + 0.3)

    found = first(checkpoint, changed_file(float_onnx, tmp_path, change))
    assert found and found.layer == departure.INPUT
    assert found.words.startswith("at the input") and departure.OTHERWISE in found.words


def test_mean_and_std_of_reversed_channels_are_found(checkpoint, float_onnx, tmp_path):
    found = first(checkpoint, changed_file(float_onnx, tmp_path, reverse_normalisation))
    assert found and found.layer == departure.INPUT
    assert "mean and std are in the reverse order" in found.words


def test_swapped_channels_are_found(checkpoint, float_onnx, tmp_path):
    def change(model):  # what is right for (blue, green, red)
        reverse_normalisation(model)
        set_constant(model, "features.0.0.weight", lambda value: value[:, ::-1])

    found = first(checkpoint, changed_file(float_onnx, tmp_path, change))
    assert found and found.layer == departure.INPUT
    assert "channels are in reverse order" in found.words


def test_swapped_channels_are_found_where_the_first_layer_normalises(checkpoint, ready, tmp_path):
    def change(model):
        node = next(each for each in model.graph.node if each.op_type == "Conv")
        set_constant(model, node.input[1], lambda value: value[:, ::-1])

    found = first(checkpoint, int8_of(ready, tmp_path, change))
    assert found and found.layer == departure.INPUT
    assert "channels are in reverse order" in found.words


def test_classes_in_another_order_are_found(checkpoint, float_onnx, tmp_path):
    def change(model):
        for name in ("classifier.1.weight", "classifier.1.bias"):
            set_constant(model, name, lambda value: value[[1, 2, 0, 4, 3]])

    found = first(checkpoint, changed_file(float_onnx, tmp_path, change))
    assert found and found.layer == departure.ANSWERS and "another order" in found.words


def test_an_error_that_only_grows_is_said_to():
    layers = [Landmark(f"layer {number}", np.zeros(1, np.float32)) for number in range(50)]
    errors = list(np.linspace(0.01, 0.6, 50))
    errors[20:] = [error + 0.05 for error in errors[20:]]
    found = departure._judge(layers, errors, 0.4)
    assert found and found.layer == "layer 20" and "grows gradually, to 0.65" in found.words
    assert departure._judge(layers[:30], errors[:30], 0.5) is None
    errors[10] = 1.1  # what the file lacks
    assert departure._judge(layers[:30], errors[:30], 0.5) is None
    errors[30:] = [1.3] + [0.9] * 19
    found = departure._judge(layers, errors, 0.5)
    assert found and found.layer == "layer 30" and found.before == errors[29]


def test_files_that_are_not_told_of(checkpoint, float_onnx, tmp_path):
    ort = float_onnx.model_copy(update={"folder": tmp_path, "file": "model.ort"})
    with pytest.raises(CannotRunHereError, match="cannot be opened up"):
        first(checkpoint, ort)
    assert "ORT file cannot be opened up" in sentence(checkpoint, ort)
    pte = ort.model_copy(update={"format": "executorch", "file": "model.pte"})
    assert "keeps its intermediate values to itself" in sentence(checkpoint, pte)
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"bad\.onnx"):
        first(checkpoint, ort.model_copy(update={"file": "bad.onnx"}))


def test_intermediates_are_named_and_float(sources):
    for title in TITLES:
        path = sources.files[title].path
        module = runtime.load("onnx_runtime")
        found = dict(module.intermediates(path, IMAGES[:3]))  # pyright: ignore
        assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
        answers = module.open(path, 1).run(IMAGES[:3])
        np.testing.assert_allclose(found["logits"], answers, atol=0.5)


def test_a_file_of_one_normalised_image_takes_the_images_of_a_phone(checkpoint, tmp_path):
    settings = onnx_exporter.Settings(batch=1, raw=True)
    made = onnx_exporter.export(sources_of(checkpoint), Variant("fp32", "raw"), settings, tmp_path)
    with torch.inference_mode():
        expected = models.load(checkpoint)(torch.from_numpy(IMAGES)).numpy()
    session = runtime.load("onnx_runtime").open(tmp_path / made.file, 1)
    np.testing.assert_allclose(session.run(IMAGES), expected, atol=1e-4)
    artifact = Artifact(format="onnx", precision="fp32", folder=tmp_path, file=made.file)
    assert first(checkpoint, artifact) is None


def test_float_pixels_without_a_contract_are_refused(checkpoint, tmp_path):
    onnx_exporter.write_float_graph(checkpoint, tmp_path / "raw.onnx", raw=True)
    with pytest.raises(ExportError, match="does not say how they are normalised"):
        runtime.load("onnx_runtime").open(tmp_path / "raw.onnx", 1)


LAYERS = ("features.0.0", "features.3.conv.1.0", "features.9.conv.2", "classifier.1")


def others_file(name, checkpoint, folder):
    """The first float file of another format, made of `checkpoint`."""
    exporter = exporters.load(name)
    settings = exporter.Settings()
    floats = [
        each
        for each in exporter.variants(settings)
        if each.precision in ("fp32", "fp16") and each.source == exporters.CHECKPOINT
    ]
    made = exporter.export(sources_of(checkpoint), floats[0], settings, folder)
    return Artifact(
        format=name,
        precision=floats[0].precision,
        folder=folder,
        file=made.file,
        output=getattr(settings, "output", "logits"),
    )


@pytest.mark.parametrize(
    ("name", "module"), [("coreml", "coremltools"), ("litert", "ai_edge_litert")]
)
def test_files_of_other_formats(checkpoint, tmp_path, name, module):
    if name not in exporters.names() or importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if not exporters.load(name).availability().ok:
        pytest.skip(exporters.load(name).availability().detail)
    artifact = others_file(name, checkpoint, tmp_path)
    assert first(checkpoint, artifact) is None
    # The same fault from the other side: the student is another than the file was made of.
    for number, layer in enumerate(LAYERS):
        found = first(changed_student(checkpoint, tmp_path / str(number), layer), artifact)
        assert found and found.layer == layer
