"""Where the time goes inside a file: a real profile, taken in another process."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import operators, profiles
from benchmarks.profiles import Profile
from pipeline.errors import PipelineError
from pipeline.records import Measurement

SMOKE = profiles.read("smoke")


def small_net(path):
    """uint8 image, Cast, Transpose, Conv, Sigmoid, mean over the pixels."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 16, 16, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8, 1, 1])
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["conv"], kernel_shape=[3, 3]),
        helper.make_node("Sigmoid", ["conv"], ["sigmoid"]),
        helper.make_node("GlobalAveragePool", ["sigmoid"], ["logits"]),
    ]
    named = [numpy_helper.from_array(weights, "weights")]
    graph = helper.make_graph(nodes, "small", [image], [logits], named)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def images():
    return np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def test_a_profile_names_every_operator_that_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_net(tmp_path / "net.onnx")
    spent = operators.measure((tmp_path / "net.onnx").relative_to(tmp_path), images(), SMOKE)
    found = spent.types
    assert {name.partition(" ")[0] for name in spent.nodes} == set(found)
    assert list(spent.nodes.values()) == sorted(spent.nodes.values(), reverse=True)
    assert {"Cast", "Transpose", "GlobalAveragePool"} <= set(found)
    assert {"Conv", "FusedConv"} & set(found)  # the Sigmoid may be fused into it
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) > 0 and min(found.values()) >= 0 and max(found.values()) < 100
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    kept = Measurement(operators_ms=found)
    assert Measurement.model_validate_json(kept.model_dump_json()) == kept


def test_events_are_split_into_inferences(tmp_path):
    events = operators.profiled(
        str(small_net(tmp_path / "net.onnx")), list(images()[:, None]), SMOKE, tmp_path
    )
    found = list(operators.runs(events))
    assert SMOKE.warmup + operators.RUNS[0] <= len(found) <= SMOKE.warmup + operators.RUNS[-1]
    assert len({frozenset(run) for run in found}) == 1
    assert any(name.startswith("GlobalAveragePool ") for name in found[0])
    whole = [event["dur"] for event in events if event["name"] == "model_run"]
    assert all(sum(run.values()) <= all_of_it for run, all_of_it in zip(found, whole, strict=True))


def test_medians_over_runs_of_sums_within_them():
    def event(kind, dur, name="a"):
        name = f"{name}_kernel_time"
        return {"cat": "Node", "name": name, "dur": dur, "args": {"op_name": kind}}

    end = {"cat": "Session", "name": "model_run", "dur": 99}
    other = {"cat": "Node", "name": "node_fence_before", "dur": 7, "args": {"op_name": "Mul"}}
    events = [
        *(event("Conv", 3), event("Mul", 1), event("Conv", 4, "b"), end),
        *(event("Conv", 30), other, event("Mul", 2), event("Conv", 40, "b"), end),
        *(event("Conv", 5), event("Mul", 9), event("Conv", 6, "b"), end),
    ]
    found = list(operators.runs(events))
    assert found[1] == {"Conv a": 30, "Mul a": 2, "Conv b": 40}
    assert operators.medians(found) == {"Conv b": 0.006, "Conv a": 0.005, "Mul a": 0.002}
    types = [operators.summed(run, lambda name: name.partition(" ")[0]) for run in found]
    assert types[1] == {"Conv": 70, "Mul": 2}
    assert operators.medians(types) == {"Conv": 0.011, "Mul": 0.002}
    assert list(operators.medians(types[2:])) == ["Conv", "Mul"]


def test_families_are_the_same_for_float_and_int8():
    plain = operators.families({"FusedConv": 1.0, "Conv": 0.5, "Mul": 0.25, "Softmax": 0.125})
    int8 = operators.families({"QLinearConv": 1.0, "QLinearMul": 0.25, "QuantizeLinear": 0.5})
    assert plain == {"convolutions": 1.5, "multiplications": 0.25, "Softmax": 0.125}
    assert int8 == {"convolutions": 1.0, "multiplications": 0.25, operators.CONVERSIONS: 0.5}


def test_a_file_that_cannot_be_profiled(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    patient = Profile(threads=1, warmup=1, min_samples=10, min_seconds=0.1)
    with pytest.raises(PipelineError, match=r"profiling .*bad\.onnx failed"):
        operators.measure(tmp_path / "bad.onnx", images(), patient)


@pytest.mark.parametrize("title", ["onnx fp32", "onnx int8"])
def test_the_layers_of_a_real_file_are_all_found(title, sources):
    import torch

    import models
    from benchmarks import layers

    file = sources.files[title]
    names = layers.names_of(file.path)
    network = models.load(sources.student).network
    weighted = (torch.nn.Conv2d, torch.nn.Linear)
    own = [name for name, layer in network.named_modules() if isinstance(layer, weighted)]
    assert list(dict.fromkeys(names.values())) == own
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    spent = operators.measure(file.path, pixels, SMOKE)
    ran = {
        layers.layer_of(name.partition(" ")[2], names)
        for name in spent.nodes
        if name.startswith(("Conv ", "FusedConv ", "QLinearConv ", "Gemm ", "QGemm "))
    }
    assert ran == set(own)


def test_an_operator_of_no_layer_keeps_its_name():
    from benchmarks import layers

    assert layers.layer_of("node_mean_token_12_nchwc", {"conv": "features.0"}) == "node_mean"
    assert layers.layer_of("conv_nchwc", {"conv": "features.0"}) == "features.0"
