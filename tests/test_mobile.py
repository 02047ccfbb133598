"""Graphs for a phone's accelerators: the same answers, in one piece."""

import numpy as np
import onnx
import pytest

from exporters import Variant
from exporters.onnx import Settings, export, for_accelerators
from pipeline import mobile
from pipeline.errors import NotNeededError
from runtime import onnx_runtime
from tests.conftest import export_onnx, sources_of


@pytest.fixture(scope="module")
def v3(make_checkpoint, tmp_path_factory):
    """MobileNetV3-small and its plain float32 file."""
    checkpoint = make_checkpoint("mobilenet_v3_small")
    plain = export_onnx(sources_of(checkpoint), Variant("fp32"), tmp_path_factory.mktemp("v3"))
    return checkpoint, plain


def pixels():
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_hard_sigmoids_cut_the_graph_and_the_clip_form_does_not(v3, tmp_path):
    checkpoint, plain = v3
    before = mobile.usability(mobile.fix_batch(onnx.load(plain.path)))
    assert {each.accelerator for each in before} == {"NNAPI", "Core ML"}
    assert all(each.pieces > 5 and each.supported < each.nodes for each in before)
    sources = sources_of(checkpoint, files=[plain])
    made = export(sources, Variant("fp32", "mobile", plain.title), Settings(), tmp_path)
    model = onnx.load(tmp_path / made.file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node}.isdisjoint(mobile.LACKED)
    for each in mobile.usability(model):
        assert (each.pieces, each.supported) == (1, each.nodes)
    (note,) = made.notes
    assert "1 piece," in note and f"{before[0].pieces} pieces" in note
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    expected = onnx_runtime.open(plain.path, 1).run(pixels())
    given = onnx_runtime.open(tmp_path / made.file, 1).run(pixels())
    np.testing.assert_allclose(given, expected, atol=1e-4 * expected.std())


def test_a_graph_without_them_needs_no_other_form(float_onnx):
    with pytest.raises(NotNeededError, match="1 piece"):
        for_accelerators(onnx.load(float_onnx.path))


@pytest.mark.parametrize(("slope", "offset"), [(0.2, 0.5), (1 / 6, 0.5), (1.0, -0.25)])
def test_the_clip_form_computes_the_same(slope, offset, tmp_path):
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("HardSigmoid", ["image"], ["a"], alpha=slope, beta=offset),
        helper.make_node("HardSwish", ["a"], ["b"]),
    ]
    shape = ["batch", 1, 1, 7]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("image", "b")]
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    values = np.linspace(-6, 6, 7, dtype=np.float32).reshape(1, 1, 1, 7)
    expected = np.clip(slope * values + offset, 0, 1)
    expected = expected * np.clip(expected / 6 + 0.5, 0, 1)
    assert mobile.clip_form(model) == 2
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = np.asarray(session.run(None, {"image": values})[0])
    np.testing.assert_allclose(given, expected, atol=1e-6)


def test_one_image_at_a_time_where_the_batch_is_fixed(checkpoint, float_onnx, tmp_path):
    settings = Settings(batch=1)
    made = export(sources_of(checkpoint), Variant("fp32"), settings, tmp_path)
    model = onnx.load(tmp_path / made.file)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_value == 1
    given = onnx_runtime.open(tmp_path / made.file, 1).run(pixels())
    expected = onnx_runtime.open(float_onnx.path, 1).run(pixels())
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_probabilities_are_the_softmax(checkpoint, float_onnx, tmp_path):
    from scipy.special import softmax

    made = export(
        sources_of(checkpoint), Variant("fp32"), Settings(output="probabilities"), tmp_path
    )
    path = tmp_path / made.file
    assert onnx.load(path).graph.output[0].name == "probabilities"
    assert onnx_runtime.read_metadata(path)["output"] == "probabilities"
    expected = softmax(onnx_runtime.open(float_onnx.path, 1).run(pixels()), axis=1)
    given = onnx_runtime.open(path, 1).run(pixels())
    np.testing.assert_allclose(given, expected, atol=1e-6)


def test_a_raw_file_takes_normalised_pixels(checkpoint, float_onnx, tmp_path):
    from exporters.onnx import RAW_INPUT, variants

    settings = Settings(raw=True)
    variant = next(v for v in variants(settings) if v.variant == "raw")
    made = export(sources_of(checkpoint), variant, settings, tmp_path)
    path = tmp_path / made.file
    (taken,) = onnx.load(path).graph.input
    assert taken.name == RAW_INPUT
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_value for d in taken.type.tensor_type.shape.dim][1:] == [3, 32, 32]
    expected = onnx_runtime.open(float_onnx.path, 1).run(pixels())
    np.testing.assert_allclose(onnx_runtime.open(path, 1).run(pixels()), expected, atol=1e-4)
    assert "normalised" in onnx_runtime.read_metadata(path)["raw"]


def test_the_opset_is_that_of_the_settings(checkpoint, tmp_path):
    made = export(sources_of(checkpoint), Variant("fp32"), Settings(opset=20), tmp_path)
    opsets = {each.domain: each.version for each in onnx.load(tmp_path / made.file).opset_import}
    assert opsets[""] == 20
