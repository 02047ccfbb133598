"""The float graph that int8 starts from, and the Q/DQ graphs that are made of it.

The students have random weights with which images make a difference: behind an untrained
MobileNetV3 as it comes, all logits are alike, and so would be those of a wrong graph.
"""

from collections import Counter
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import models
from exporters.onnx import INPUT, OUTPUT
from models.classifier import Classifier
from pipeline.errors import CheckpointError, ExportError
from pipeline.evaluation import count_macs
from pipeline.quantization import calibration, fused, graph, histogram
from pipeline.quantization.place import SCHEMES, TINIEST_SCALE, place, weight_scales
from pipeline.records import Checkpoint, Dataset, InputSpec
from runtime.onnx_runtime import PROVIDER, quiet_import
from tests.conftest import LABELS, SIZE
from tests.pictures import CLASSES, picture

COMMON = 102
"""A grey level: with this mean in all channels, what is padded is the same before and after."""
STUDENTS: dict[str, tuple[float, Literal[1, 3]]] = {
    "mobilenet_v2": (0.35, 3),
    "mobilenet_v3_small": (0.35, 1),
    "mobilenet_v3_large": (0.35, 3),
    "mobilenet_v4_conv_small": (1.0, 3),
}
"""Width and channels of each."""
UNSIGNED = ("u8s8", "u8s8-reduced", "u8u8")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def pictures(n, channels, seed, size=SIZE):
    """uint8 images whose channels show different things."""
    rng = np.random.default_rng(seed)
    kinds = (CLASSES[(i + c) % 3] for i in range(n) for c in range(channels))
    drawn = np.stack([picture(kind, rng, size) for kind in kinds])
    return np.ascontiguousarray(drawn.reshape(n, channels, size, size).transpose(0, 2, 3, 1))


def lively(arch, folder, seed=0):
    """The checkpoint of a student in which every layer passes on what it sees."""
    width, channels = STUDENTS[arch]
    torch.manual_seed(seed)
    spec = InputSpec(
        size=SIZE,
        channels=channels,
        mean=(COMMON / 255,) * channels,
        std=(0.3, 0.25, 0.2)[:channels],
    )
    network = models.build(
        arch, classes=len(LABELS), channels=channels, image_size=SIZE, width=width
    )
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    module.bias.normal_(std=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(std=0.3)
        Classifier(network, spec).train()(torch.from_numpy(pictures(32, channels, seed=5)))
    torch.save(network.state_dict(), folder / "weights.pt")
    return Checkpoint(
        key="0123456789abcdef",
        folder=folder,
        role="student",
        arch=arch,
        width=width,
        labels=LABELS,
        input=spec,
        params=1,
        macs=1,
        device="cpu",
    )


def minmax(ready, images):
    """Ranges of all activations."""
    found = histogram.observe(ready, [images], graph.activations(ready), threads=1)
    return {name: calibration.ranges(each, "minmax") for name, each in found.items()}


def answers(model, images, *names, optimized=True):
    """What ONNX Runtime gives for `names`, or for the logits; as it is written, or optimized."""
    ort = quiet_import()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    asked = onnx.ModelProto.FromString(model.SerializeToString())
    for name in names:
        asked.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(asked.SerializeToString(), options, providers=[PROVIDER])
    return session.run([*names] or [OUTPUT], {INPUT: images})[0]


class Student:
    """One student, its float graph and what is made of that."""

    def __init__(self, arch, folder):
        self.checkpoint = lively(arch, folder)
        self.classifier = models.load(self.checkpoint)
        self.plain, self.ready, self.front = graph.prepare(self.checkpoint)
        self.channels = self.checkpoint.input.channels
        self.ranges = minmax(self.ready, pictures(16, self.channels, seed=1))
        self.images = pictures(24, self.channels, seed=2)
        self._placed, self._folder = {}, folder

    def placed(self, scheme: Any = "u8s8", *float_layers):
        key = (scheme, *float_layers)
        if key not in self._placed:
            made = place(self.ready, self.front, self.ranges, scheme, float_layers)
            self._placed[key] = made.model
        return self._placed[key]

    def fused(self, scheme="u8s8", *float_layers):
        path = self._folder / "placed.onnx"
        onnx.save(self.placed(scheme, *float_layers), path)
        return fused.examine(path, (SIZE, SIZE, self.channels), float_layers=float_layers)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Makes each student once."""
    made = {}

    def student(arch) -> Student:
        if arch not in made:
            made[arch] = Student(arch, tmp_path_factory.mktemp(arch))
        return made[arch]

    return student


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name.endswith("large") else [])
        for name in STUDENTS
    ]
)
def each(request, students):
    return students(request.param)


@pytest.fixture
def v2(students):
    return students("mobilenet_v2")


@pytest.fixture(params=["mobilenet_v2", "mobilenet_v3_small"])
def either(request, students):
    """One without hard sigmoids, and one with."""
    return students(request.param)


def kinds(model):
    return Counter(node.op_type for node in model.graph.node)


# ---- the float graph ----


def test_the_ready_graph_is_the_student(each):
    with torch.no_grad():
        wanted = each.classifier(torch.from_numpy(each.images)).numpy()
    assert wanted.std(0).min() > 0.1  # images make a difference
    for model in (each.plain, each.ready):
        found = answers(model, each.images)
        assert np.abs(found - wanted).max() < 5e-5 * np.abs(wanted).max()


def test_unequal_means_change_the_border_of_the_first_layer_alone(checkpoint, ready):
    model, front, _ = ready
    assert front.zero_point == round(255 * 0.45)
    assert front.scale == pytest.approx(1 / (255 * 0.25))
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    images = np.random.default_rng(4).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    classifier = models.load(checkpoint)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) * classifier.scale + classifier.shift
        stem = classifier.get_submodule("network.features.0")
        wanted = stem.get_submodule("1")(stem.get_submodule("0")(pixels)).numpy()
    found = answers(model, images, first.output[0])
    inside = (..., slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(found[inside], wanted[inside], rtol=1e-5, atol=1e-5)
    assert np.abs(found - wanted).max() > 0.01  # the border


def test_layers_are_called_what_the_students_modules_are(each):
    named = each.classifier.network.named_modules()
    wanted = [name for name, module in named if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sorted(graph.layers(each.ready)) == sorted(wanted)
    names = [node.name for node in each.ready.graph.node]
    assert len(set(names)) == len(names) and all(names)


def test_multiply_adds_by_layer_add_up_to_torchs(each):
    macs = graph.layer_macs(each.ready)
    dataset = Dataset.model_construct(input=each.checkpoint.input)
    assert sum(macs.values()) == count_macs(each.classifier.network, dataset.input)
    assert list(macs) == graph.layers(each.ready) and min(macs.values()) > 0


def test_means_are_pooled_globally(each):
    found = kinds(each.ready)
    assert found["GlobalAveragePool"] > 0 and "ReduceMean" not in found
    assert found["Conv"] > 40 and "BatchNormalization" not in found


def net(nodes, constants, shape=(4, 4, 1), output=(None,)):
    """A model that reads images and gives "logits"."""
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *shape])
    logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", *output])
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    made = helper.make_graph(nodes, "net", [image], [logits], stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


@pytest.mark.parametrize(
    ("axes", "keep", "wanted"),
    [
        ((-1, -2), 1, {"GlobalAveragePool": 1}),
        ((2, 3), 0, {"GlobalAveragePool": 1, "Flatten": 1}),
        ((3,), 1, {"ReduceMean": 1}),
        ((1, 2), 1, {"ReduceMean": 1}),
    ],
)
def test_only_means_over_height_and_width_are(axes, keep, wanted):
    nodes = [
        helper.make_node("Cast", [INPUT], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], [OUTPUT], keepdims=keep),
    ]
    model = net(nodes, {"axes": np.array(axes, np.int64)}, output=[1] * (3 if keep else 1))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    images = pictures(3, 1, seed=0, size=4)
    before = answers(model, images)
    graph.pool_globally(model)
    assert dict(kinds(model)) == {"Cast": 1, **wanted}
    np.testing.assert_allclose(answers(model, images), before, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(v2, value):
    name = "network.features.2.conv.0.0.weight"
    weight = graph.constants(v2.ready)[name].copy()
    graph.check_weights(v2.ready)
    weight[1:3, 0] = value
    said = rf"features\.2\.conv\.0\.0\.weight hold 2 values that are NaN .* of {weight.size}\n"
    with pytest.raises(CheckpointError, match=f"weights {said}"):
        graph.check_weights(graph.with_constants(v2.ready, {name: weight}))


def test_a_student_with_weights_that_are_no_numbers_is_refused(v2, monkeypatch):
    name = "network.features.4.conv.2.weight"
    spoilt = {name: np.full_like(graph.constants(v2.plain)[name], np.nan)}

    def write(checkpoint, path):
        onnx.save(graph.with_constants(v2.plain, spoilt), path)

    monkeypatch.setattr(graph, "write_float_graph", write)
    with pytest.raises(CheckpointError, match=r"features\.4\.conv\.2\.weight hold \d+ values"):
        graph.prepare(v2.checkpoint)


def test_unknown_operators_are_named_and_counted(either):
    graph.check_operators(either.ready)
    changed = onnx.ModelProto.FromString(either.ready.SerializeToString())
    adds = [node for node in changed.graph.node if node.op_type == "Add"]
    for node, kind in zip(adds, ("Pow", "Pow", "Max"), strict=False):
        node.op_type = kind
    with pytest.raises(ExportError, match=r"network: Pow \(2×\), Max \(1×\)\n") as caught:
        graph.check_operators(changed)
    assert "student.arch" in caught.value.remedy


# ---- the grids ----


def quantizers(model):
    """(node, scale, zero point) of each."""
    values = graph.constants(model)
    return [
        (node, values[node.input[1]], values[node.input[2]])
        for node in model.graph.node
        if node.op_type in QUANTIZERS
    ]


def of_activations(model):
    """The quantizers whose input is computed."""
    values = graph.constants(model)
    return [found for found in quantizers(model) if found[0].input[0] not in values]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranges_in_the_file_are_those_given(either, scheme):
    kind, special = SCHEMES[scheme].activation, {graph.PIXELS: (0, 0)}
    readers = Counter(name for node in either.ready.graph.node for name in node.input)
    for node in either.ready.graph.node:
        if node.op_type == "HardSigmoid" and scheme != "symmetric":
            (source,), (result,) = node.input, node.output
            special[f"{result}_clipped" if readers[source] > 1 else source] = (-3, 3)
            special[result] = (0, 1)
    seen = set()
    for node, scale, zero in of_activations(either.placed(scheme)):
        assert zero.dtype == kind and scale.dtype == np.float32
        name = node.input[1].removesuffix("_scale")
        seen.add(name)
        if name == graph.PIXELS:
            continue  # see below
        low, high = special.get(name) or either.ranges[name]
        if scheme == "symmetric":
            assert scale == pytest.approx(max(-low, high) / 127, rel=1e-6) and zero == 0
            continue
        assert scale == pytest.approx((high - low) / 255, rel=1e-6)
        lowest = np.iinfo(kind).min
        assert abs((int(zero) - lowest) * scale + low) <= 0.5001 * scale
    assert seen.issuperset(special)
    # A layer's own range does not count where an activation function follows at once.
    assert len(seen) > 0.4 * len(either.ranges)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_in_the_file_are_rounded_on_their_own_grids(either, scheme):
    model, ready = either.placed(scheme), graph.constants(either.ready)
    values, kind = graph.constants(model), SCHEMES[scheme].weight
    makers = {name: node for node in model.graph.node for name in node.output}
    layers = [node for node in model.graph.node if node.op_type in graph.WEIGHTED]
    assert len(layers) == len(graph.layers(either.ready))
    for node in layers:
        source, weight, bias = (makers.get(name) for name in node.input)
        assert source is not None and weight is not None
        stored, scales, zeros = (values[name] for name in weight.input)
        name = weight.input[0].removesuffix("_quantized")
        offset = 128 if scheme == "u8u8" else 0
        assert stored.dtype == zeros.dtype == kind and (zeros == offset).all()
        floats = ready[name]
        largest = np.abs(floats.reshape(len(floats), -1)).max(1)
        layer = either.classifier.network.get_submodule(node.name)
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        levels = 64 if scheme == "u8s8-reduced" and not depthwise else 127
        np.testing.assert_allclose(scales, largest / levels, rtol=1e-6)
        steps = floats / scales.reshape(-1, *[1] * (floats.ndim - 1))
        off = np.abs(stored.astype(int) - offset - steps)
        assert off.max() <= 0.5001
        assert np.abs(stored.astype(int) - offset).max() == levels
        named = next(each.input[2] for each in either.ready.graph.node if name in each.input)
        if scheme == "symmetric":
            assert bias is None and values[node.input[2]].dtype == np.float32
            np.testing.assert_array_equal(values[node.input[2]], ready[named])
            continue
        assert bias is not None
        whole, step, zero = (values[name] for name in bias.input)
        assert whole.dtype == np.int32 and not zero.any()
        np.testing.assert_allclose(step, values[source.input[1]] * scales, rtol=1e-6)
        assert (np.abs(whole * step.astype(np.float64) - ready[named]) <= 0.51 * step).all()


def test_symmetric_has_no_zero_points_and_no_integer_biases(either):
    model = either.placed("symmetric")
    assert all(not zero.any() and zero.dtype == np.int8 for _, _, zero in quantizers(model))
    assert np.int32 not in {each.dtype for each in graph.constants(model).values()}


@pytest.mark.parametrize("scheme", UNSIGNED)
def test_the_pixels_themselves_are_the_quantized_values(either, scheme):
    model = either.placed(scheme)
    (first,) = [found for found in quantizers(model) if graph.UINT8_PIXELS in found[0].input]
    node, scale, zero = first
    assert node.op_type == "DequantizeLinear"
    assert (float(scale), int(zero)) == either.front == (scale, COMMON)
    assert kinds(model)["Transpose"] == 1
    assert not {"Cast", "Sub"} & kinds(model).keys()
    products = kinds(either.ready)["Mul"] - 1  # that of the front
    assert kinds(model)["Mul"] == products


@pytest.mark.parametrize("scheme", ["s8s8", "symmetric"])
def test_signed_pixels_are_normalised_first(either, scheme):
    model = either.placed(scheme)
    (first,) = [found for found in quantizers(model) if graph.PIXELS in found[0].input]
    node, scale, zero = first
    assert node.op_type == "QuantizeLinear" and {"Cast", "Sub"} <= kinds(model).keys()
    if scheme == "s8s8":
        assert (float(scale), int(zero) + 128) == either.front
    else:
        assert int(zero) == 0
        assert scale == pytest.approx((255 - COMMON) * either.front.scale / 127)


def test_schemes_of_the_same_grids_are_the_same_values(either):
    """Computed as written, in float: no CPU's integer kernels have a say."""
    found = answers(either.placed("u8s8"), either.images, optimized=False)
    assert found.std(0).min() > 0.05
    for scheme in ("u8u8", "s8s8"):
        other = answers(either.placed(scheme), either.images, optimized=False)
        np.testing.assert_array_equal(other, found)
    reduced = answers(either.placed("u8s8-reduced"), either.images, optimized=False)
    assert np.abs(reduced - found).max() > 0.01


def test_what_is_placed_leaves_the_ready_graph_as_it_was(v2):
    before = v2.ready.SerializeToString()
    first, again = (place(v2.ready, v2.front, v2.ranges, "u8s8").model for _ in range(2))
    assert v2.ready.SerializeToString() == before
    assert first.SerializeToString() == again.SerializeToString()
    onnx.checker.check_model(first, full_check=True)


# ---- what ONNX Runtime makes of it ----


def test_all_of_it_runs_in_integers(each):
    macs = sum(graph.layer_macs(each.ready).values())
    for scheme in UNSIGNED:
        found = each.fused(scheme)
        assert found.integer_share == 1.0 and found.islands == ()
        assert found.integer_macs == macs
        assert not {"Clip", "Relu", "HardSigmoid", "Sigmoid"} & found.operators.keys()


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("mobilenet_v2", "features.0.0"),
        ("mobilenet_v2", "features.3.conv.1.0"),  # depthwise
        ("mobilenet_v2", "features.3.conv.2"),  # projection
        ("mobilenet_v2", "classifier.1"),
        ("mobilenet_v3_small", "features.4.block.2.fc1"),
        ("mobilenet_v3_small", "features.4.block.2.fc2"),
        ("mobilenet_v3_small", "classifier.0"),
        ("mobilenet_v3_small", "classifier.3"),
    ],
)
@pytest.mark.parametrize("scheme", ["u8s8", "u8u8"])
def test_a_layer_kept_in_float_runs_in_float(students, arch, layer, scheme):
    student = students(arch)
    macs = graph.layer_macs(student.ready)
    found = student.fused(scheme, layer)
    assert found.float_macs == macs[layer]
    assert found.integer_macs == sum(macs.values()) - macs[layer]
    assert [island.reason for island in found.islands] == [fused.KEPT]


def test_with_all_layers_in_float_little_is_lost(v2):
    layers, wanted = graph.layers(v2.ready), answers(v2.ready, v2.images)
    whole, none = (
        np.square(answers(model, v2.images) - wanted).mean()
        for model in (v2.placed(), v2.placed("u8s8", *layers))
    )
    assert none < 0.7 * whole
    found = v2.fused("u8s8", *layers)
    assert found.integer_macs == 0 and found.float_macs == sum(graph.layer_macs(v2.ready).values())


def test_layers_that_are_not_there_are_named_with_those_that_are(v2):
    with pytest.raises(ExportError, match=r"no layer called feature\.0, head\n") as caught:
        place(v2.ready, v2.front, v2.ranges, "u8s8", ["head", "features.0.0", "feature.0"])
    assert caught.value.remedy.startswith("Its layers: features.0.0, features.1.conv.0.0, ")


# ---- biases that int32 cannot hold ----


def test_a_bias_decides_where_weights_are_too_small_for_it():
    weight = np.array([[2.54, 1], [1e-12, 0], [0, 0], [0, 0]], np.float32)
    bias = np.array([3, 5, 5, 0], np.float32)
    scales, widened = weight_scales(weight, bias, input_scale=0.02, levels=127)
    assert widened == [1]  # a channel without weights has nothing to lose
    assert scales[0] == pytest.approx(0.02)
    assert scales[1] == scales[2] == pytest.approx(5 / (0.02 * 2**30))
    assert scales[3] == np.float32(TINIEST_SCALE)
    assert np.isfinite(1 / (scales * np.float32(0.02))).all()


def test_silenced_channels_keep_their_biases(v2):
    (layer,) = [node for node in v2.ready.graph.node if node.name == "features.2.conv.0.0"]
    kept = graph.constants(v2.ready)
    weight, bias = (kept[name].copy() for name in layer.input[1:])
    weight[3], bias[3], weight[4], bias[4] = 1e-12, 5, 0, 2
    ready = graph.with_constants(v2.ready, dict(zip(layer.input[1:], (weight, bias), strict=True)))
    model, notes = place(ready, v2.front, minmax(ready, pictures(16, 3, seed=1)))
    (note,) = notes
    assert note.startswith(f"{layer.name}: the bias of 1 of {len(weight)} channels would not fit")
    assert "(channels 3)" in note
    values = graph.constants(model)
    stored, step = (values[f"{layer.input[2]}_quantized{part}"] for part in ("", "_scale"))
    assert np.abs(stored[3]) == pytest.approx(2**30, rel=1e-3)
    np.testing.assert_allclose((stored * step.astype(float))[[3, 4]], [5, 2], rtol=1e-6)
    # It is also computed with them: what leaves the layer, and the whole.
    (clip,) = [node for node in ready.graph.node if layer.output[0] in node.input]
    shown = answers(model, v2.images, f"{clip.output[0]}_DequantizeLinear_Output", optimized=False)
    np.testing.assert_allclose(shown[:, 3], 5, atol=6 / 255)
    np.testing.assert_allclose(shown[:, 4], 2, atol=6 / 255)
    lost = answers(model, v2.images) - answers(ready, v2.images)
    usual = answers(v2.placed(), v2.images) - answers(v2.ready, v2.images)
    assert np.square(lost).mean() < 2 * np.square(usual).mean()


def test_it_is_only_said_where_something_was_mended(v2):
    assert place(v2.ready, v2.front, v2.ranges).notes == ()


# ---- hard sigmoids ----

REACH = 8.0


def gate(kind, slope=1 / 6, offset=0.5):
    """A ready graph, its front and ranges: 256 values from -8 to 8, and their hard sigmoids.

    `kind` "sigmoid" gives these, "swish" their products with the values.
    """
    front = graph.Front(scale=REACH / 128, zero_point=128)
    make = helper.make_node
    nodes = [
        make("Transpose", [INPUT], [graph.UINT8_PIXELS], "t", perm=[0, 3, 1, 2]),
        make("Cast", [graph.UINT8_PIXELS], [graph.FLOAT_PIXELS], "c", to=TensorProto.FLOAT),
        make("Sub", [graph.FLOAT_PIXELS, "zero"], [graph.SHIFTED_PIXELS], "s"),
        make("Mul", [graph.SHIFTED_PIXELS, "scale"], [graph.PIXELS], "m"),
        make("Conv", [graph.PIXELS, "weight", "bias"], ["x"], "conv"),
        make("HardSigmoid", ["x"], ["hard"], "hard", alpha=slope, beta=offset),
    ]
    if kind == "swish":
        nodes.append(make("Mul", ["x", "hard"], ["swish"], "swish"))
    last = nodes[-1].output[0]
    nodes.append(make("Flatten", [last], [OUTPUT], "flat"))
    constants = {
        "zero": np.float32(128),
        "scale": np.float32(front.scale),
        "weight": np.ones((1, 1, 1, 1), np.float32),
        "bias": np.zeros(1, np.float32),
    }
    x = (np.arange(256) - 128) * front.scale
    model = net(nodes, constants, (16, 16, 1), (256,))
    ranges = {"x": (x.min(), x.max()), "hard": (0.0, 1.0), "swish": (-0.375, x.max())}
    ranges[OUTPUT] = ranges[last]
    return onnx.shape_inference.infer_shapes(model), front, ranges, x


def hard(x):
    return np.clip(x / 6 + 0.5, 0, 1)


ALL_PIXELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("scheme", [*UNSIGNED, "s8s8"])
@pytest.mark.parametrize("optimized", [True, False])
def test_hard_sigmoids_are_right_to_a_step(scheme, optimized):
    ready, front, ranges, x = gate("sigmoid")
    model = place(ready, front, ranges, scheme).model
    assert "HardSigmoid" not in kinds(model)
    found = answers(model, ALL_PIXELS, optimized=optimized)[0]
    wanted = hard(x)
    assert np.abs(found - wanted).max() <= 1.001 / 255
    saturated = np.abs(x) > 3
    assert saturated.sum() > 100
    assert np.abs(found - wanted)[saturated].max() < 1e-6


@pytest.mark.parametrize("scheme", [*UNSIGNED, "s8s8"])
@pytest.mark.parametrize("optimized", [True, False])
def test_hard_swishes_are_right_to_a_step_of_each_factor(scheme, optimized):
    ready, front, ranges, x = gate("swish")
    model = place(ready, front, ranges, scheme).model
    assert "HardSigmoid" not in kinds(model) and kinds(model)["LeakyRelu"] == 1
    found = answers(model, ALL_PIXELS, optimized=optimized)[0]
    low, high = ranges["x"]
    step = (high - low) / 255
    rounded = np.round(x / step) * step
    low, high = ranges["swish"]
    gates = np.where(np.abs(rounded) < 3, 1 / 255, 0)
    allowed = np.abs(rounded) * gates + (high - low) / 255 * 0.501
    assert (np.abs(found - rounded * hard(rounded)) <= allowed + 1e-5).all()


def test_all_hard_sigmoids_are_gone_but_from_the_symmetric_graph(students):
    student = students("mobilenet_v3_small")
    there = kinds(student.ready)["HardSigmoid"]
    assert there == 28
    for scheme in SCHEMES:
        left = kinds(student.placed(scheme))["HardSigmoid"]
        assert left == (there if scheme == "symmetric" else 0)


def test_another_hard_sigmoid_is_refused():
    ready, front, ranges, _ = gate("sigmoid", slope=0.2)
    with pytest.raises(ExportError, match=r"hard is a hard sigmoid of slope and offset \(0\.2"):
        place(ready, front, ranges)


def test_weights_the_other_way_round_are_refused():
    ready, front, ranges, _ = gate("sigmoid")
    ready.graph.node[-1].output[0] = "flat"
    weight = np.ones((256, 2), np.float32)
    ready.graph.initializer.append(numpy_helper.from_array(weight, "other"))
    ready.graph.node.append(helper.make_node("Gemm", ["flat", "other"], [OUTPUT], "gemm"))
    del ready.graph.value_info[:]
    ready.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    with pytest.raises(ExportError, match="gemm has its weights the other way round"):
        place(ready, front, ranges | {"flat": (0.0, 1.0)})
