"""Costs counted in graphs: by hand for small ones, against torch for real ones."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.graph_cost import cost
from pipeline.errors import ExportError


def save(path, nodes, weights, shape=("batch", 3, 8, 8), outputs=("y",)):
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [taken], given, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def floats(*shape):
    return np.ones(shape, np.float32)


def test_a_small_graph_counted_by_hand(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["dense"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["dense"], ["relu"]),
        helper.make_node("Conv", ["relu", "v"], ["deep"], group=4, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["deep"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "u", "c"], ["y"], transB=1),
    ]
    weights = {"w": floats(4, 3, 3, 3), "b": floats(4), "v": floats(4, 1, 2, 2)}
    weights |= {"u": floats(5, 4), "c": floats(5)}
    found = cost(save(tmp_path / "a.onnx", nodes, weights))
    assert found.dense_macs == 4 * 8 * 8 * 3 * 9 + 5 * 4
    assert found.depthwise_macs == 4 * 4 * 4 * 4
    assert found.parameters == 4 * 27 + 4 + 4 * 4 + 5 * 4 + 5
    assert found.parameter_bytes == 4 * found.parameters
    assert found.nodes == 6 and found.operators["Conv"] == 2
    # Input and the first convolution's output; the activation writes in place.
    assert found.peak_activation_bytes == 4 * (3 * 64 + 4 * 64)


def test_a_shortcut_is_held_until_it_is_added(tmp_path):
    def conv(source, target):
        return helper.make_node("Conv", [source, "w"], [target])

    nodes = [conv("x", "a"), conv("a", "b"), conv("b", "c")]
    nodes.append(helper.make_node("Add", ["x", "c"], ["y"]))
    found = cost(save(tmp_path / "a.onnx", nodes, {"w": floats(3, 3, 1, 1)}))
    assert found.peak_activation_bytes == 4 * 3 * (3 * 64)
    # Something else reads what the activation read, so that it needs memory of its own.
    nodes = [conv("x", "a"), helper.make_node("Relu", ["a"], ["r"])]
    nodes.append(helper.make_node("Mul", ["a", "r"], ["y"]))
    found = cost(save(tmp_path / "b.onnx", nodes, {"w": floats(3, 3, 1, 1)}))
    assert found.peak_activation_bytes == 4 * 3 * (3 * 64)


def test_int8_is_a_quarter_of_float(sources):
    plain, int8 = (cost(sources.files[title].path) for title in ("onnx fp32", "onnx int8"))
    assert (plain.dense_macs, plain.depthwise_macs) == (int8.dense_macs, int8.depthwise_macs)
    assert 0.25 <= int8.parameter_bytes / plain.parameter_bytes < 0.3
    assert int8.peak_activation_bytes == plain.peak_activation_bytes / 4
    assert int8.nodes < plain.nodes and "QuantizeLinear" not in int8.operators
    assert cost(sources.files["onnx int8"].path) == int8


def test_multiply_adds_are_those_of_torch(sources):
    import models
    from pipeline.evaluation import count_macs

    student = sources.student
    expected = count_macs(models.load(student).network, student.input)
    found = cost(sources.files["onnx fp32"].path)
    assert found.dense_macs + found.depthwise_macs == expected
    assert 0 < found.depthwise_macs < found.dense_macs


def test_what_cannot_be_counted_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"bad\.onnx is no ONNX file"):
        cost(tmp_path / "bad.onnx")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    shape = ("batch", 3, "height", "width")
    with pytest.raises(ExportError, match="does not follow") as caught:
        cost(save(tmp_path / "open.onnx", [node], {"w": floats(4, 3, 3, 3)}, shape))
    assert "fixed image size" in caught.value.remedy
