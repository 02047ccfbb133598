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


def constant(name, value):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def test_weights_in_constant_nodes_are_weights(tmp_path):
    nodes = [
        constant("w", floats(4, 3, 3, 3)),
        helper.make_node("Conv", ["x", "w"], ["conv"]),
        constant("v", floats(4, 1, 2, 2)),
        helper.make_node("Conv", ["conv", "v"], ["y"], group=4),
    ]
    found = cost(save(tmp_path / "a.onnx", nodes, {}))
    assert (found.dense_macs, found.depthwise_macs) == (4 * 36 * 27, 4 * 25 * 4)
    assert (found.parameters, found.parameter_bytes) == (108 + 16, 4 * (108 + 16))
    assert found.peak_activation_bytes == 4 * (3 * 64 + 4 * 36)


def product(tmp_path, nodes, weights, shape):
    found = cost(save(tmp_path / "product.onnx", nodes, weights, shape))
    return found.dense_macs, found.parameters


@pytest.mark.parametrize(
    ("right", "expected"),
    [((5, 7), (6 * 5 * 7, 35)), ((5,), (6 * 5, 5)), ((6, 5, 7), (6 * 5 * 7, 6 * 35))],
)
def test_products_with_weights_of_any_rank(tmp_path, right, expected):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shape = ("batch", 6, 1, 5) if len(right) == 3 else ("batch", 6, 5)
    assert product(tmp_path, [node], {"w": floats(*right)}, shape) == expected


def test_products_whose_weight_is_on_the_left_or_turned(tmp_path):
    node = helper.make_node("MatMul", ["w", "x"], ["y"])
    assert product(tmp_path, [node], {"w": floats(7, 6)}, ("batch", 6, 5)) == (7 * 6 * 5, 42)
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    assert product(tmp_path, nodes, {"w": floats(7, 5)}, ("batch", 5)) == (35, 35)
    node = helper.make_node("Gemm", ["w", "x"], ["y"], transA=1, transB=1)
    assert product(tmp_path, [node], {"w": floats(5, 7)}, ("batch", 5)) == (35, 35)


def test_products_of_two_activations(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "keys"], ["y"]),
    ]
    assert product(tmp_path, nodes, {}, ("batch", 6, 5)) == (6 * 6 * 5, 0)


def test_integer_convolutions(tmp_path):
    scales = {"s": np.array(1, np.float32), "z": np.array(0, np.uint8)}
    weights = {"w": np.ones((4, 3, 3, 3), np.uint8), "b": np.ones(4, np.int32)} | scales
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z", "b"], ["i"]),
        helper.make_node("DequantizeLinear", ["i", "s", "z"], ["y"]),
    ]
    found = cost(save(tmp_path / "a.onnx", nodes, weights))
    assert (found.dense_macs, found.depthwise_macs) == (4 * 36 * 27, 0)
    assert (found.parameters, found.parameter_bytes) == (108 + 4, 108 + 4 * 4)


def refused(tmp_path, node, weights, shape=("batch", 3, 8, 8)):
    with pytest.raises(ExportError) as caught:
        cost(save(tmp_path / "refused.onnx", [node], weights, shape))
    assert caught.value.remedy
    return caught.value.message


def test_multiply_adds_without_a_formula_are_refused_by_name(tmp_path):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"])
    told = refused(tmp_path, node, {"w": floats(3, 4, 3, 3)})
    assert "refused.onnx: the multiply-adds of ConvTranspose (`y`) cannot be counted" in told
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"])
    assert "multiply-adds of ConvInteger" in refused(tmp_path, node, {"w": floats(3, 4, 3, 3)})
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft")
    assert "multiply-adds of FusedConv" in refused(tmp_path, node, {"w": floats(3, 4, 3, 3)})
    conv = helper.make_node("Conv", ["x", "w"], ["z"])
    given = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([conv], "branch", [], [given])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    weights = {"yes": np.array(True), "w": floats(4, 3, 3, 3)}
    assert "multiply-adds of If with Conv in it" in refused(tmp_path, node, weights)


def test_a_file_for_several_images_is_refused(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    told = refused(tmp_path, node, {"w": floats(4, 3, 3, 3)}, (8, 3, 8, 8))
    assert "refused.onnx: `x` is 8 images at once, and costs are those of one" in told
    one = cost(save(tmp_path / "one.onnx", [node], {"w": floats(4, 3, 3, 3)}, (1, 3, 8, 8)))
    assert one.dense_macs == 4 * 36 * 27


def test_operators_of_a_functions_own_are_counted(tmp_path):
    path = save(tmp_path / "a.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], {})
    model = onnx.load(path)
    body = [constant("w", floats(4, 3, 3, 3)), helper.make_node("Conv", ["in", "w"], ["out"])]
    opset = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "Block", ["in"], ["out"], body, opset))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Block", ["x"], ["y"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    assert cost(path).dense_macs == 4 * 36 * 27


def test_what_cannot_be_counted_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"bad\.onnx is no ONNX file"):
        cost(tmp_path / "bad.onnx")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    shape = ("batch", 3, "height", "width")
    with pytest.raises(ExportError, match="does not follow") as caught:
        cost(save(tmp_path / "open.onnx", [node], {"w": floats(4, 3, 3, 3)}, shape))
    assert "fixed image size" in caught.value.remedy
