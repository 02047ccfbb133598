"""Latency in a fresh process: raw samples, memory of that process alone, and errors passed on."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import runtime
from benchmarks import latency, profiles
from benchmarks.profiles import Profile
from pipeline.errors import ConfigError, ExportError, PipelineError

SMOKE = profiles.read("smoke")


@pytest.fixture(scope="module")
def flatten(tmp_path_factory):
    """An ONNX file that returns its two pixels as logits, for values worked out by hand."""
    path = tmp_path_factory.mktemp("onnx") / "flatten.onnx"
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 2, 1])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "flatten", [image], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def images(n=3):
    return np.arange(2 * n, dtype=np.uint8).reshape(n, 1, 2, 1)


def test_the_session_gives_the_files_own_answers(flatten):
    session = runtime.load("onnx_runtime").open(flatten, threads=1)
    np.testing.assert_array_equal(session.run(images()), [[0, 1], [2, 3], [4, 5]])
    assert session.name.startswith("onnxruntime ")


def test_measured_in_another_process(flatten):
    ballast = np.ones(50_000_000)  # 400 MB here must not be counted there
    found = latency.measure("onnx_runtime", flatten, images(), SMOKE)
    assert ballast.sum() == 50_000_000
    assert len(found.samples_ns) >= SMOKE.min_samples and min(found.samples_ns) > 0
    assert found.load_ms > 0 and found.first_ms > 0
    assert 10_000_000 < found.peak_rss_bytes < 300_000_000
    assert found.runtime.startswith("onnxruntime ")


def test_enough_samples_and_enough_time(flatten):
    longer = Profile(threads=1, warmup=1, min_samples=10, min_seconds=0.3)
    found = latency.measure("onnx_runtime", flatten, images(), longer)
    assert len(found.samples_ns) > 10
    assert sum(found.samples_ns) < 0.5e9


def test_a_file_that_cannot_be_loaded(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"cannot load .*bad\.onnx"):
        runtime.load("onnx_runtime").open(tmp_path / "bad.onnx", threads=1)
    with pytest.raises(PipelineError, match=r"timing .*bad\.onnx .* failed"):
        latency.measure("onnx_runtime", tmp_path / "bad.onnx", images(), SMOKE)


def test_profiles_are_named():
    assert profiles.read("phone-1t").threads == 1
    with pytest.raises(ConfigError, match="phone-9t"):
        profiles.read("phone-9t")


def test_every_runtime_says_whether_it_works_here():
    for name in runtime.names():
        found = runtime.load(name).availability()
        assert found.detail
    assert runtime.for_file("onnx", "model.onnx") == "onnx_runtime"
    assert runtime.for_file("papyrus", "model.papyrus") is None
