"""Counted instructions: real counts of tiny files, under valgrind where it is installed."""

import shutil
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import instructions
from benchmarks.graph_cost import cost
from pipeline.errors import (
    CannotRunHereError,
    ExportError,
    NotInstalledError,
    PipelineError,
    UnavailableError,
)


def can_count():
    try:
        instructions._valgrind()
    except UnavailableError as error:
        return error.message
    return ""


counted = pytest.mark.skipif(bool(can_count()), reason=can_count())


def small_net(path, channels=16, size=16, shape=None, kind=TensorProto.FLOAT):
    """One convolution of 3 x 3, 3 channels to `channels`, and the mean over its pixels."""
    shape = shape or ["batch", 3, size, size]
    taken = helper.make_tensor_value_info("x", kind, shape)
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", channels, 1, 1])
    weights = np.random.default_rng(0).normal(size=(channels, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["conv"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [taken], [given], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@counted
def test_a_count_is_equal_wherever_the_file_is_and_whatever_the_environment(tmp_path, monkeypatch):
    path = small_net(tmp_path / "a.onnx")
    first = instructions.count(path)
    assert first.how.startswith("callgrind 3.") and "onnxruntime " in first.how
    assert first.how.endswith("1 thread")
    folder = tmp_path / ("a folder with spaces and a long name" * 3)
    folder.mkdir()
    shutil.copy(path, folder / "another name, longer than the first.onnx")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LARGE", "x" * 5000)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    (relative,) = folder.glob("*.onnx")
    assert instructions.count(relative.relative_to(folder)) == first


@counted
def test_more_multiply_adds_are_more_instructions(tmp_path):
    small, large = small_net(tmp_path / "a.onnx"), small_net(tmp_path / "b.onnx", size=64)
    few, many = (instructions.count(path).per_inference for path in (small, large))
    more = cost(large).dense_macs - cost(small).dense_macs
    # Eight multiply-adds an instruction, and loading, storing and counting around them.
    assert more / 8 < many - few < more


@counted
@pytest.mark.parametrize("title", ["onnx fp32", "onnx int8"])
def test_a_real_file_costs_what_its_graph_says(title, sources):
    file = sources.files[title].path
    found, graph = instructions.count(file), cost(file)
    macs = graph.dense_macs + graph.depthwise_macs
    assert macs / 16 < found.per_inference < 20 * macs
    assert found == instructions.count(file)


@counted
def test_weights_beside_the_file_are_found(tmp_path):
    model = onnx.load(small_net(tmp_path / "a.onnx"))
    path = tmp_path / "b.onnx"
    onnx.save(model, path, save_as_external_data=True, location="b.data", size_threshold=0)
    assert (tmp_path / "b.data").exists()
    assert instructions.count(path).per_inference > 0


@counted
def test_what_cannot_be_counted_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"cannot load .*bad\.onnx") as caught:
        instructions.count(tmp_path / "bad.onnx")
    assert caught.value.remedy == "Export the file again."
    free = small_net(tmp_path / "free.onnx", shape=["batch", 3, "height", "width"])
    with pytest.raises(ExportError, match=r"takes `x` as .*height") as caught:
        instructions.count(free)
    assert "fixed image size" in caught.value.remedy


@counted
def test_counting_that_takes_too_long_is_given_up(tmp_path):
    with pytest.raises(PipelineError, match=r"a\.onnx did not end within 0\.2 s"):
        instructions.count(small_net(tmp_path / "a.onnx"), timeout=0.2)


@counted
def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(instructions, "ROOT", tmp_path)
    with pytest.raises(PipelineError, match=r"failed \(exit code 1\): .*[Nn]o module named"):
        instructions.count(tmp_path / "a.onnx")


def test_no_valgrind(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="`valgrind`, which counts") as caught:
        instructions.count(tmp_path / "a.onnx")
    assert "apt-get install valgrind" in caught.value.remedy


def test_another_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(CannotRunHereError, match="Linux on x86-64 alone"):
        instructions.count(tmp_path / "a.onnx")


def test_only_onnx_runtimes_own_instructions_count_and_no_bookkeeping():
    dump = """version: 1
desc: Trigger: Client Request: inference
positions: line
events: Ir
summary: 1000

ob=(1) /lib/libpython3.11.so
fl=(1) ceval.c
fn=(1) eval
16 3
cob=(2) /capi/onnxruntime_pybind11_state.so
cfi=(2) ???
cfn=(2) run
calls=1 0
+4 900

ob=(2)
fn=(2)
0 40000
* 2000
fn=(4) look_up
7 20
fn=(5) kernel
1 0
cob=(3) /lib/libc.so.6
cfn=(3) memcpy
calls=7 0
0 500
-1 100

ob=(3)
fn=(3)
0 500
totals: 42623
"""
    assert instructions._counted(dump) == 42100
