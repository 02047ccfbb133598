"""What really runs in integers: multiply-adds counted against torch's counter, islands by name."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import models
from exporters.onnx import INPUT, OUTPUT, quiet, write_float_graph
from pipeline.errors import ExportError
from pipeline.evaluation import count_macs
from pipeline.quantization import fused
from pipeline.quantization.fused import examine
from pipeline.quantized import Island
from runtime.onnx_runtime import quiet_import
from tests.conftest import SIZE

SIDE, CHANNELS = 8, 4
IMAGE = (SIDE, SIDE, 3)
STEM = SIDE * SIDE * CHANNELS * 3 * 9
"""Multiply-adds of `Net.conv` with the three channels of an image before it, at stride 1."""
CONV = SIDE * SIDE * CHANNELS * CHANNELS * 9
GEMM = 5 * CHANNELS


class Net:
    """A graph with Q/DQ pairs that is written operator by operator; each takes and gives a name."""

    def __init__(self):
        self.nodes, self.constants = [], []
        self.random = np.random.default_rng(0)

    def __call__(self, kind, *inputs, name=None, **attributes):
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, value, kind: npt.DTypeLike = np.float32):
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def quantize(self, source, scale=0.02, zero=128):
        return self("QuantizeLinear", source, self.constant(scale), self.constant(zero, np.uint8))

    def dequantize(self, source, scale=0.02, zero=128):
        return self("DequantizeLinear", source, self.constant(scale), self.constant(zero, np.uint8))

    def pair(self, source, scale=0.02, zero=128):
        return self.dequantize(self.quantize(source, scale, zero), scale, zero)

    def weights(self, *shape):
        """Dequantized int8 ones."""
        value = self.constant(self.random.integers(-127, 128, shape), np.int8)
        return self("DequantizeLinear", value, self.constant(0.01), self.constant(0, np.int8))

    def conv(self, source, inputs=CHANNELS, name=None):
        weights = self.weights(CHANNELS, inputs, 3, 3)
        return self("Conv", source, weights, name=name, pads=[1, 1, 1, 1])

    def gemm(self, source, name=None):
        return self("Gemm", source, self.weights(5, CHANNELS), name=name, transB=1)

    def pixels(self):
        """Normalised ones."""
        image = self("Transpose", INPUT, perm=[0, 3, 1, 2])
        return self("Mul", self("Cast", image, to=TensorProto.FLOAT), self.constant(1 / 50))

    def stem(self, scale=0.02):
        return self.pair(self.conv(self.pair(self.pixels()), 3), scale)

    def pool(self, source):
        pooled = self.pair(self("GlobalAveragePool", source))
        return self.pair(self("Flatten", pooled))

    def head(self, source):
        return self.pair(self.gemm(self.pool(source)))

    def save(self, path, result):
        self.nodes[-1].output[:] = [OUTPUT]
        assert self.nodes[-1].name == result
        image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *IMAGE])
        logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [image], [logits], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 9
        onnx.save(model, path)
        return path


@pytest.fixture
def look(tmp_path):
    """Examines what a function writes into a `Net`."""

    def look(write, **named):
        net = Net()
        return examine(net.save(tmp_path / "net.onnx", write(net)), IMAGE, **named)

    return look


def float_conv(net, source, name, inputs=CHANNELS):
    """With float weights, and left in float: ONNX Runtime would quantize those of a layer whose
    output goes into a QuantizeLinear."""
    weights = net.constant(net.random.normal(size=(CHANNELS, inputs, 3, 3)))
    result = net("Conv", source, weights, name=name, pads=[1, 1, 1, 1])
    return net.pair(net("LeakyRelu", result, alpha=1.0))


def test_a_graph_of_integer_kernels_has_no_island(look):
    found = look(lambda net: net.head(net.pair(net.conv(net.stem()))))
    assert (found.integer_macs, found.float_macs) == (STEM + CONV + GEMM, 0)
    assert found.integer_share == 1.0 and found.islands == ()
    assert found.operators["QLinearConv"] == 2 and found.operators["QGemm"] == 1
    # The normalisation before, the dequantization after.
    assert found.operators["Mul"] == found.operators["DequantizeLinear"] == 1


def test_pixels_that_are_dequantized_are_no_island(look):
    def directly(net):
        image = net("Transpose", INPUT, perm=[0, 3, 1, 2])
        return net.head(net.pair(net.conv(net.dequantize(image), 3)))

    def normalised(net):
        image = net.dequantize(net("Transpose", INPUT, perm=[0, 3, 1, 2]))
        pixels = net.pair(net("Mul", image, net.constant(0.5)))
        return net.head(net.pair(net.conv(pixels, 3)))

    for write in (directly, normalised):
        found = look(write)
        assert found.integer_macs == STEM + GEMM and found.islands == ()


def test_an_operator_without_a_kernel_is_named(look):
    found = look(lambda net: net.head(net.pair(net("HardSigmoid", net.stem()))))
    reason = "ONNX Runtime has no 8-bit kernel for HardSigmoid"
    assert found.islands == (Island(operators=("HardSigmoid",), reason=reason),)
    assert found.integer_share == 1.0


def test_float_operators_that_hand_on_their_values_are_one_island(look):
    def write(net):
        stem = net.stem()
        gate = net("Tanh", stem)
        first = net.pair(net("Mul", gate, net("Add", gate, net.constant(1.0))))
        return net.head(net.pair(net("Abs", net.pair(net.conv(first)))))

    found = look(write)
    assert [each.operators for each in found.islands] == [("Tanh", "Add", "Mul"), ("Abs",)]
    assert found.islands[0].reason == "ONNX Runtime has no 8-bit kernel for Tanh"


@pytest.mark.parametrize("last", ["Relu", "Clip"])
def test_an_activation_that_nothing_takes_up_is_named(look, last):
    limits = (-0.5, 0.5) if last == "Clip" else ()

    def write(net):
        return net.head(net.pair(net(last, net.stem(), *map(net.constant, limits)), 0.03, 10))

    assert [each.operators for each in look(write).islands] == [(last,)]


def test_a_layer_kept_in_float_says_by_what(look):
    def write(net):
        return net.head(float_conv(net, net.stem(), "features.3"))

    found = look(write, float_layers={"features.3"})
    assert (found.integer_macs, found.float_macs) == (STEM + GEMM, CONV)
    (island,) = found.islands
    assert island == Island(operators=("FusedConv",), reason=fused.KEPT)
    (unasked,) = look(write).islands
    assert unasked.reason == fused.NOT_QUANTIZED


def test_a_first_layer_in_float_is_an_island_without_the_normalisation(look):
    def write(net):
        return net.head(float_conv(net, net.pixels(), "features.0", 3))

    found = look(write, float_layers={"features.0"})
    assert (found.integer_macs, found.float_macs) == (GEMM, STEM)
    assert found.islands == (Island(operators=("FusedConv",), reason=fused.KEPT),)


@pytest.mark.parametrize("kind", ["Gemm", "FusedGemm", "MatMul and Add"])
def test_a_last_layer_in_float_is_an_island(look, kind):
    def write(net):
        source = net.pool(net.stem())
        weights = net.constant(net.random.normal(size=(CHANNELS, 5)))
        bias = net.constant(np.ones(5))
        if kind == "MatMul and Add":
            return net("Add", net("MatMul", source, weights, name="classifier"), bias)
        result = net("Gemm", source, weights, bias, name="classifier")
        return net("LeakyRelu", result, alpha=0.5) if kind == "FusedGemm" else result

    found = look(write, float_layers={"classifier"})
    assert (found.integer_macs, found.float_macs) == (STEM, GEMM)
    operator = "FusedGemm" if kind == "FusedGemm" else "Gemm"
    assert found.islands == (Island(operators=(operator,), reason=fused.KEPT),)


def test_a_last_layer_that_gives_float_logits_is_an_integer_kernel(look):
    found = look(lambda net: net.gemm(net.pool(net.stem())))
    assert found.integer_macs == STEM + GEMM and found.islands == ()
    multiplied = look(lambda net: net("MatMul", net.pool(net.stem()), net.weights(CHANNELS, 5)))
    assert multiplied.integer_macs == STEM + GEMM and multiplied.float_macs == 0


def test_a_softmax_after_the_last_layer_is_an_island(look):
    found = look(lambda net: net("Softmax", net.head(net.stem())))
    assert found.islands == (Island(operators=("Softmax",), reason=fused.NOT_QUANTIZED),)


@pytest.mark.parametrize("moved", [False, True])
def test_requantization_is_an_island(look, moved):
    def write(net):
        quantized = net.quantize(net.conv(net.pair(net.pixels()), 3), 0.02)
        source = net.dequantize(quantized, 0.02)
        other = net("Transpose", source, perm=[0, 1, 3, 2]) if moved else source
        other = net.pair(other, 0.05)
        sides = net.pair(net.conv(source)), net.pair(net.conv(other))
        return net.head(net.pair(net("Add", *sides)))

    found = look(write)
    pair = ("DequantizeLinear", "QuantizeLinear")
    assert found.islands == (Island(operators=pair, reason=fused.REQUANTIZED),)
    assert found.integer_macs == STEM + 2 * CONV + GEMM


def test_scales_that_suit_no_kernel_are_told_from_missing_ones(look):
    def pooled(net, scale):
        return net.head(net.pair(net("MaxPool", net.stem(), kernel_shape=[2, 2]), scale))

    assert look(lambda net: pooled(net, 0.02)).islands == ()
    (island,) = look(lambda net: pooled(net, 0.05)).islands
    assert island == Island(operators=("MaxPool",), reason=fused.DECLINED)
    (unquantized,) = look(lambda net: net.head(net.pair(net.conv(net.conv(net.stem()))))).islands
    assert unquantized == Island(operators=("Conv", "Conv"), reason=fused.NOT_QUANTIZED)


def test_a_file_that_cannot_be_loaded_says_so(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"cannot load .*net\.onnx"):
        examine(tmp_path / "net.onnx", IMAGE)


def average(node):
    """Make a GlobalAveragePool, which has a kernel, of the mean over height and width `node`."""
    assert [each.i for each in node.attribute if each.name == "keepdims"] == [1]
    node.CopyFrom(
        helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)
    )


def quantize(source, target, pooled):
    """int8 of the float graph `source`; its means stay what they are, or are `pooled`."""
    quiet_import()
    from onnxruntime import quantization

    class Noise(quantization.CalibrationDataReader):
        def __init__(self):
            shape = (2, SIZE, SIZE, 3)
            self.batches = [np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)]

        def get_next(self):  # type: ignore[override]
            return {INPUT: self.batches.pop()} if self.batches else None

    model = onnx.load(source)
    for node in model.graph.node:
        node.name = node.output[0]
        if pooled and node.op_type == "ReduceMean":
            average(node)
    onnx.save(model, target)
    first = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    with quiet():
        quantization.quantize_static(
            target,
            target,
            Noise(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[node.name for node in model.graph.node[:first]],
            extra_options={"WeightSymmetric": True},
        )


class Files:
    """One MobileNet as ONNX files: float, int8 as it comes, int8 with global poolings."""

    def __init__(self, source, exported, folder):
        network = models.load(source).network
        self.macs = count_macs(network, source.input)
        self.float, self.stock, self.pooled = (
            exported,
            folder / "stock.onnx",
            folder / "pooled.onnx",
        )
        quantize(self.float, self.stock, pooled=False)
        quantize(self.float, self.pooled, pooled=True)


@pytest.fixture(scope="module", params=["mobilenet_v2", "mobilenet_v3_small"])
def mobilenet(request, checkpoint, float_onnx, make_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    if request.param == checkpoint.arch:
        return request.param, Files(checkpoint, float_onnx.path, folder)
    source, exported = make_checkpoint(request.param), folder / "float.onnx"
    write_float_graph(source, exported)
    return request.param, Files(source, exported, folder)


SHAPE = (SIZE, SIZE, 3)


def test_multiply_adds_are_those_of_torch(mobilenet):
    _, files = mobilenet
    plain = examine(files.float, SHAPE)
    assert (plain.integer_macs, plain.float_macs, plain.islands) == (0, files.macs, ())
    for path in (files.stock, files.pooled):
        found = examine(path, SHAPE)
        assert (found.integer_macs, found.float_macs) == (files.macs, 0)
        assert found.integer_share == 1.0


def test_means_and_hard_sigmoids_are_the_islands_of_mobilenets(mobilenet):
    arch, files = mobilenet
    stock, pooled = examine(files.stock, SHAPE), examine(files.pooled, SHAPE)
    means = Counter(each.op_type for each in onnx.load(files.stock).graph.node)["ReduceMean"]
    assert means > 0
    of_means = [each for each in stock.islands if "ReduceMean" in each.operators]
    assert len(of_means) == means and all("ReduceMean" in each.reason for each in of_means)
    if arch == "mobilenet_v2":
        assert len(stock.islands) == means and pooled.islands == ()
    else:
        assert pooled.islands and all("HardSigmoid" in each.reason for each in pooled.islands)


def test_the_passes_that_lay_out_values_change_no_kernel(mobilenet):
    _, files = mobilenet
    for path in (files.float, files.stock, files.pooled):
        counts = []
        for passes in ("all", "extended"):
            nodes = fused._optimized(path, passes).graph.node
            kinds = (each.op_type for each in nodes)
            counts.append(Counter(kind for kind in kinds if kind.startswith(("Q", "Dequantize"))))
        assert counts[0] == counts[1]
