"""Where the time goes inside a file: a real profile, taken in another process."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import operators, profiles
from benchmarks.profiles import Profile
from pipeline.errors import PipelineError
from pipeline.records import InputSpec, Measurement
from runtime import onnx_runtime

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
    session = operators.opened(small_net(tmp_path / "net.onnx"), SMOKE, tmp_path)
    operators.infer(session, images(), SMOKE)
    events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
    found = list(operators.runs(events))
    assert SMOKE.warmup + operators.RUNS[0] <= len(found) <= SMOKE.warmup + operators.RUNS[-1]
    assert len({frozenset(run) for run in found}) == 1
    assert any(name.startswith("GlobalAveragePool ") for name in found[0])
    whole = [event["dur"] for event in events if event["name"] == "model_run"]
    assert all(sum(run.values()) <= all_of_it for run, all_of_it in zip(found, whole, strict=True))


def test_the_profile_decides_which_graph_runs_and_how(tmp_path):
    path, (cpu, *_) = small_net(tmp_path / "net.onnx"), sorted(profiles.cpus())
    changes = {"graph_optimization": "none", "arena": False, "spinning": False, "affinity": (cpu,)}
    plain = operators.measure(path, images(), SMOKE)
    tuned = operators.measure(path, images(), SMOKE.model_copy(update=changes))
    assert set(tuned.types) == {"Cast", "Transpose", "Conv", "Sigmoid", "GlobalAveragePool"}
    assert set(plain.nodes) != set(tuned.nodes)  # fused, or in another layout
    asked = ("graph_optimization", "arena", "spinning", "cpus")
    assert [tuned.in_force[name] for name in asked] == ["ORT_DISABLE_ALL", "False", "0", str(cpu)]
    assert [plain.in_force[name] for name in asked[:3]] == ["ORT_ENABLE_ALL", "True", "1"]
    assert plain.in_force["cpus"] == ",".join(map(str, sorted(profiles.cpus())))


@pytest.mark.parametrize("single", [False, True])
def test_a_batch_is_one_inference(tmp_path, single):
    """Also for a file that takes its images one by one."""
    path = small_net(tmp_path / "net.onnx")
    if single:
        model = onnx.load(path)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, path)
    many = np.random.default_rng(2).integers(0, 256, (256, 16, 16, 3), dtype=np.uint8)
    one, all_of_them = (
        sum(operators.measure(path, many, SMOKE.model_copy(update={"batch": size})).types.values())
        for size in (1, 128)
    )
    assert all_of_them > 10 * one


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA means this on Linux")
def test_a_memory_limit_holds(tmp_path):
    path, narrow = small_net(tmp_path / "net.onnx"), SMOKE.model_copy(update={"batch": 20_000})
    with pytest.raises(PipelineError, match="more memory than the profile's 400 MB"):
        operators.measure(path, images(), narrow.model_copy(update={"memory_limit_mb": 400}))


def raw_net(path, spec):
    """Normalised float pixels in planes, as a raw export has them: a mean over the pixels."""
    taken = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 16, 16])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 1, 1])
    node = helper.make_node("GlobalAveragePool", ["pixels"], ["logits"])
    graph = helper.make_graph([node], "raw", [taken], [given])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, {"input": spec.model_dump_json()})
    onnx.save(model, path)
    return path


SPEC = InputSpec(size=16, channels=3, mean=(0.5, 0.45, 0.4), std=(0.3, 0.25, 0.2))


def test_a_file_for_normalised_pixels_is_profiled_too(tmp_path):
    spent = operators.measure(raw_net(tmp_path / "raw.onnx", SPEC), images(), SMOKE)
    assert set(spent.types) >= {"GlobalAveragePool"}


def test_what_a_file_for_normalised_pixels_takes_can_be_prepared(tmp_path):
    session = onnx_runtime.open(raw_net(tmp_path / "raw.onnx", SPEC), 1)
    ready = session.prepared(images())
    wanted = (images() / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    np.testing.assert_array_equal(ready, wanted.transpose(0, 3, 1, 2).astype(np.float32))
    assert ready.dtype == np.float32 and ready.flags.c_contiguous
    assert session.prepared(ready) is ready
    np.testing.assert_array_equal(session.run(ready), session.run(images()))
    plain = onnx_runtime.open(small_net(tmp_path / "net.onnx"), 1)
    same = images()
    assert plain.prepared(same) is same


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
