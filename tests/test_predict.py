"""Estimates for phones: the counts, the fit, the intervals, and the published rows behind them."""

import csv
from math import exp, log

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import graph_cost
from benchmarks.predict import _held_out, evaluate, predict
from benchmarks.published import fitting, networks, workload
from benchmarks.published.fitting import Group, calibrate, estimate, families, halves, workloads
from benchmarks.published.workload import Workload
from pipeline.errors import ExportError


def save(path, nodes, weights, shape=("batch", 4, 8, 8)):
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4, None, None))
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [taken], [given], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def test_a_small_graph_counted_by_hand(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["swish"]),  # fused, as is the sigmoid
        helper.make_node("Conv", ["swish", "v"], ["b"], group=4, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["b"], ["p"]),
        helper.make_node("HardSigmoid", ["p"], ["gate"]),
        helper.make_node("Mul", ["b", "gate"], ["y"]),  # squeeze and excite: a kernel
    ]
    floats = {"w": np.ones((4, 4, 1, 1), np.float32), "v": np.ones((4, 1, 2, 2), np.float32)}
    found = workload.of(save(tmp_path / "a.onnx", nodes, floats))
    whole, half = 4 * 8 * 8, 4 * 4 * 4
    assert (found.dense_macs, found.depthwise_macs) == (whole * 4, half * 4)
    assert found.kernels == 4
    assert found.moved_elements == 2 * whole + (whole + half) + (half + 4) + (2 * half + 4)
    assert found.parameters == 16 + 16


def test_a_free_size_is_refused(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    shape = ("batch", 4, "height", "width")
    weights = {"w": np.ones((4, 4, 1, 1), np.float32)}
    with pytest.raises(ExportError, match="does not follow"):
        workload.of(save(tmp_path / "open.onnx", [node], weights, shape))


def test_float_and_int8_are_the_same_work(sources):
    plain, int8 = (workload.of(sources.files[title].path) for title in ("onnx fp32", "onnx int8"))
    assert (plain.dense_macs, plain.depthwise_macs) == (int8.dense_macs, int8.depthwise_macs)
    assert plain.peak_elements == int8.peak_elements
    for name in ("moved_elements", "kernels", "parameters"):
        assert getattr(int8, name) == pytest.approx(getattr(plain, name), rel=0.05)


def test_the_table_of_networks_is_what_counting_gives():
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import mobilenet_v2

    found = networks.count("mobilenet_v2")
    assert workloads()["mobilenet_v2"] == found
    with FlopCounterMode(display=False) as counter:
        mobilenet_v2().eval()(torch.zeros(1, 3, 224, 224))
    assert 2 * (found.dense_macs + found.depthwise_macs) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "parameters"), [("ncnn shufflenet", 1.86e6), ("ncnn proxylessnasnet", 4.06e6)]
)
def test_networks_built_here_are_those_of_their_papers(name, parameters):
    network = networks._build(name)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.01)


def test_every_row_has_a_source_and_a_counted_network():
    with fitting.PHONES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    seen = [tuple(row.values())[:6] for row in rows]
    assert len(set(seen)) == len(rows) > 200
    assert all(row["source"].strip() and float(row["latency_ms"]) > 0 for row in rows)
    assert {row["model"] for row in rows} <= set(workloads()) == set(networks.NETWORKS)


def invented(models=30, devices=3, noise=0.15, seed=0):
    """Works of random sizes, and latencies by known prices with log-normal noise."""
    rng = np.random.default_rng(seed)
    prices = {"dense_macs": 1e-8, "depthwise_macs": 3e-8, "kernels": 0.01}
    works = {}
    for number in range(models):
        low, high = np.log([1e7, 1e6, 1e6, 1e6, 1e5, 30]), np.log([3e9, 5e7, 5e7, 5e7, 3e6, 300])
        sizes = np.exp(rng.uniform(low, high)).astype(int).tolist()
        works[f"m{number}"] = Workload(**dict(zip(Workload.model_fields, sizes, strict=True)))
    family = {
        Group(f"d{device}", "invented", "NPU", None, "fp16"): {
            name: (1 + device)
            * sum(price * getattr(work, key) for key, price in prices.items())
            * exp(rng.normal(0, noise))
            for name, work in works.items()
        }
        for device in range(devices)
    }
    return family, works


def test_prices_are_recovered_without_noise():
    family, works = invented(noise=0.0)
    measured = next(iter(family.values()))
    others = {name: ms for name, ms in measured.items() if name != "m3"}
    costs = fitting.MENUS["NPU"][0]
    assert estimate(works["m3"], others, works, costs) == pytest.approx(measured["m3"], rel=1e-6)


def test_intervals_hold_their_level_for_new_models():
    inside80, inside95 = [], []
    for seed in range(12):
        family, works = invented(models=40, noise=0.2, seed=seed)
        known = {g: {m: v for m, v in row.items() if int(m[1:]) < 20} for g, row in family.items()}
        calibration = calibrate(known, works)
        for group, row in family.items():
            for name in [name for name in row if int(name[1:]) >= 20]:
                value = estimate(works[name], known[group], works, calibration.costs)
                error = abs(log(row[name] / value))
                inside80.append(error <= calibration.half80)
                inside95.append(error <= calibration.half95)
    assert 0.75 <= np.mean(inside80) <= 0.88
    assert 0.92 <= np.mean(inside95) <= 0.99


def test_half_widths_by_hand():
    errors = [[number / 100] for number in range(1, 21)]
    assert halves(errors) == (0.17, 0.20)  # of 20 the ceil(0.80 * 21)th and the ceil(0.95 * 21)th
    few = [[-0.1], [0.2], [0.3], [-0.4], [0.5]]
    half80, half95 = halves(few)
    assert half80 == 0.5 and half95 == pytest.approx(0.5 * 2.776445 / 1.533206, rel=1e-5)
    # Ten rows of one network weigh no more than the one of another.
    assert halves([*errors, [0.30] * 10])[0] == halves([*errors, [0.30]])[0]


def test_too_few_models_are_refused():
    group = Group("d", "r", "CPU", 1, "fp32")
    rows = {f"m{number}": 1.0 for number in range(fitting.LEAST_MODELS - 1)}
    assert families({group: rows}) == []
    assert families({group: rows | {"one more": 2.0}}) != []
    assert predict(workloads()["resnet18"], "w4a16") == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_more_work_never_takes_less_time(precision):
    work = workloads()["mobilenet_v2"]
    before = predict(work, precision)
    assert before
    for field in Workload.model_fields:
        more = work.model_copy(update={field: 2 * getattr(work, field)})
        for old, new in zip(before, predict(more, precision), strict=True):
            assert new.latency_ms >= old.latency_ms


def test_a_prediction_has_intervals_and_says_how_far_it_reaches():
    for each in predict(workloads()["mobilenet_v2"], "fp32"):
        assert each.interval95[0] < each.interval80[0] < each.latency_ms
        assert each.latency_ms < each.interval80[1] < each.interval95[1]
        assert each.outside == () and each.distance < 1.1 and "mobilenet_v2" in each.nearest
        assert each.source and each.models >= fitting.LEAST_MODELS
    tiny = Workload(**dict.fromkeys(Workload.model_fields, 1000))
    for each in predict(tiny, "fp32"):
        assert each.outside and each.distance > 10


def test_evaluation_repeats_and_beats_the_baselines():
    found = evaluate()
    assert found == evaluate()
    for each in found.families:
        assert each.error < 0.75 * min(each.nearest, each.scalar)
        assert 0.7 <= each.cover80 <= 0.93 and each.cover95 >= each.cover80
    (ours,) = [x for x in found.families if (x.runtime, x.precision) == ("onnxruntime", "fp32")]
    assert ours.models == 13 and ours.error <= 0.10


def test_left_out_means_unseen():
    """A published latency that is wrong by ten must not reach its own prediction."""
    rows, _ = fitting.published()
    group = next(each for each in rows if each.precision == "fp32")
    spoilt = dict(rows) | {group: dict(rows[group]) | {"resnet18": rows[group]["resnet18"] * 10}}
    fair, foul = (
        next(
            trial
            for trial in _held_out({group: table[group]}, workloads())[group]
            if trial.model == "resnet18"
        )
        for table in (rows, spoilt)
    )
    assert fair.predicted == foul.predicted and fair.calibration == foul.calibration
    assert fair.nearest == foul.nearest and fair.scalar == foul.scalar


def test_counts_are_those_of_graph_cost(sources):
    path = sources.files["onnx fp32"].path
    cost, work = graph_cost.cost(path), workload.of(path)
    assert (work.dense_macs, work.parameters) == (cost.dense_macs, cost.parameters)
