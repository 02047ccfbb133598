"""Latency in a fresh process: raw samples, memory of that process alone, and errors passed on."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import runtime
from benchmarks import latency, profiles, worker
from benchmarks.profiles import Profile
from pipeline.errors import CannotRunHereError, ConfigError, ExportError, PipelineError

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


QUICK = Profile(warmup=1, warmup_seconds=0, min_samples=10, min_seconds=0.2, width=10)


def test_enough_samples_and_enough_time(flatten):
    found = latency.measure("onnx_runtime", flatten, images(), QUICK)
    assert len(found.samples_ns) > 10
    assert sum(found.samples_ns) < 0.5e9
    assert found.noisy(QUICK) is None


def test_where_the_median_is_not_known_well_enough_it_goes_on_and_says_so(flatten):
    strict = QUICK.model_copy(update={"width": 1e-9, "max_seconds": 0.6})
    found = latency.measure("onnx_runtime", flatten, images(), strict)
    # Of the time between two samples nothing is known; most of it is the measuring loop itself.
    assert sum(found.samples_ns) > 0.2e9
    told = found.noisy(strict)
    assert told and told.startswith("p50 is known to ±") and "±0.0% was wanted" in told


def test_options_are_those_that_the_session_confirms(flatten):
    (cpu, *_) = sorted(profiles.cpus())
    asked = QUICK.model_copy(
        update={
            "affinity": (cpu,),
            "arena": False,
            "spinning": False,
            "graph_optimization": "basic",
        }
    )
    plain = latency.measure("onnx_runtime", flatten, images(), QUICK).in_force
    tuned = latency.measure("onnx_runtime", flatten, images(), asked).in_force
    assert plain["providers"] == tuned["providers"] == "CPUExecutionProvider"
    assert (plain["arena"], tuned["arena"]) == ("True", "False")
    assert (plain["spinning"], tuned["spinning"]) == ("1", "0")
    assert (plain["graph_optimization"], tuned["graph_optimization"]) == (
        "ORT_ENABLE_ALL",
        "ORT_ENABLE_BASIC",
    )
    assert plain["cpus"] == ",".join(map(str, sorted(profiles.cpus())))
    assert tuned["cpus"] == str(cpu)


def test_a_cold_start_is_a_fresh_process_each_time(flatten):
    cold = QUICK.model_copy(update={"processes": 3})
    found = latency.measure("onnx_runtime", flatten, images(), cold)
    assert len(found.samples_ns) == 3
    assert min(found.samples_ns) > 1e5  # reading and building a session takes longer than a run


def test_a_batch_is_one_sample(flatten):
    seen = []

    class Session:
        name = "counting"

        def run(self, images):
            seen.append(images.shape)
            return np.zeros((len(images), 2), np.float32)

    pixels = images(5)
    batches = [worker._batch(pixels, start, 4) for start in range(0, 5, 4)]
    np.testing.assert_array_equal(batches[1], pixels[[4, 0, 1, 2]])
    worker.warm_up(Session(), batches, QUICK.model_copy(update={"warmup": 3}))
    assert seen == [(4, 1, 2, 1)] * 2  # the first of three was done before


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA means this on Linux")
def test_a_memory_limit_that_ends_the_process_is_told_as_that(tmp_path):
    path = greedy(tmp_path / "greedy.onnx")
    wide = QUICK.model_copy(update={"memory_limit_mb": 4000})
    assert latency.measure("onnx_runtime", path, images(), wide).samples_ns
    narrow = QUICK.model_copy(update={"memory_limit_mb": 400})
    with pytest.raises(PipelineError, match="more memory than the profile's 400 MB") as caught:
        latency.measure("onnx_runtime", path, images(), narrow)
    assert "memory_limit_mb" in caught.value.remedy


def greedy(path):
    """An ONNX file that takes 800 MB on the way."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 2, 1])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 10000, 10000, 1])
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["cast", "axes"], ["mean"]),
        helper.make_node("Expand", ["mean", "shape"], ["wide"]),
        helper.make_node("Sin", ["wide"], ["sin"]),
        helper.make_node("ReduceMean", ["sin", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "greedy", [image], [logits], [shape, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def test_a_worker_that_does_not_end_is_given_up():
    words = ["-n", "1", "-r", "1", "import time; time.sleep(60)"]
    with pytest.raises(PipelineError, match=r"waiting did not end within 0\.5 s"):
        latency.in_fresh_process("timeit", words, np.zeros(0, np.uint8), "waiting", timeout=0.5)


def test_a_profile_for_another_machine_is_refused():
    greedy_profile = QUICK.model_copy(update={"threads": 10_000})
    with pytest.raises(CannotRunHereError, match="`huge` wants 10000 threads, and there are"):
        greedy_profile.check("huge")
    with pytest.raises(CannotRunHereError, match="wants CPU 12345"):
        QUICK.model_copy(update={"affinity": (12345,)}).check("pinned")
    for name in ("phone-1t", "cold-start", "server", "smoke"):
        profiles.read(name).check(name)


def test_what_an_empty_file_takes_is_small_and_measured_once():
    profile = profiles.read("smoke")
    found = latency.overhead_ms(profile)
    assert 0 < found < 5
    assert latency.overhead_ms(profile) == found


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
