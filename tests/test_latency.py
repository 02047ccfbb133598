"""Latency in a fresh process: raw samples, memory of that process alone, and errors passed on."""

import signal
import subprocess
import sys
from io import StringIO

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress

import runtime
from benchmarks import latency, profiles, worker
from benchmarks.profiles import Profile
from pipeline import progress
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
    assert told and told.startswith("p50 of this process is known to ±")
    assert "±0.0% was wanted" in told


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
    assert plain["threads"] == plain["intra_op_threads"] == "1" and "ignored" not in plain


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA means this on Linux")
def test_the_memory_limit_is_among_the_options(flatten):
    limited = SMOKE.model_copy(update={"memory_limit_mb": 4000})
    found = latency.measure("onnx_runtime", flatten, images(), limited)
    assert found.in_force["memory_limit_mb"] == "4000"
    plain = latency.measure("onnx_runtime", flatten, images(), SMOKE)
    assert plain.in_force["memory_limit_mb"] == "none"


class Slow:
    """A session that takes 20 ms, by a clock of its own."""

    name = "slow"

    def __init__(self):
        self.now = 0

    def run(self, images):
        self.now += 20_000_000
        return np.zeros((len(images), 2), np.float32)


@pytest.mark.parametrize("name", ["litert", "pytorch"])
def test_a_runtime_without_such_options_says_so(name):
    profile = SMOKE.model_copy(update={"threads": 2})
    found = worker._of_runtime(runtime.load(name), Slow(), profile)
    assert found == {"threads": "2", "ignored": "arena, spinning, graph_optimization"}


def test_samples_are_no_memory_of_the_file(flatten):
    long = SMOKE.model_copy(update={"min_seconds": 2.0, "max_seconds": 2.0})
    short, many = (latency.measure("onnx_runtime", flatten, images(), p) for p in (SMOKE, long))
    assert len(many.samples_ns) > 20_000
    assert many.peak_rss_bytes - short.peak_rss_bytes < 3e6


def test_time_is_over_before_there_are_enough_samples(monkeypatch):
    session, profile = Slow(), Profile(min_seconds=0.1, max_seconds=0.5, width=1e-9)
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: session.now)
    assert len(worker.collect(session, [images(1)], profile)) == 25
    short = profile.model_copy(update={"max_seconds": 0.1})
    assert len(worker.collect(session, [images(1)], short)) == 16  # what an interval takes


def test_what_is_noisy_says_that_time_was_over(flatten):
    found = latency.measure("onnx_runtime", flatten, images(), SMOKE)
    few = found.model_copy(update={"samples_ns": [10, 20] * 10, "half_width": 0.3})
    told = few.noisy(Profile(min_samples=200, max_seconds=4))
    assert told and "(20 samples of 200, for 4 s were over; " in told
    assert few.noisy(Profile(processes=20)) is None


def test_no_bar_is_redrawn_while_another_process_measures(flatten, monkeypatch):
    shown = Progress(console=Console(file=StringIO(), force_terminal=True))
    monkeypatch.setattr(progress, "_display", shown)
    real, seen = subprocess.run, []

    def run(*args, **more):
        seen.append(shown.live.is_started)
        return real(*args, **more)

    monkeypatch.setattr(latency.subprocess, "run", run)
    with progress.bar("measuring", 1):
        assert shown.live.is_started
        latency.measure("onnx_runtime", flatten, images(), SMOKE)
        assert shown.live.is_started
    assert seen == [False]


def test_a_cold_start_is_a_fresh_process_each_time(flatten):
    cold = QUICK.model_copy(update={"processes": 3})
    found = latency.measure("onnx_runtime", flatten, images(), cold)
    assert len(found.samples_ns) == 3 and found.half_width == float("inf")
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


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA means this on Linux")
def test_a_memory_limit_met_while_loading_is_told_as_that(tmp_path):
    path = heavy(tmp_path / "heavy.onnx")
    assert latency.measure("onnx_runtime", path, images(), SMOKE).samples_ns
    narrow = SMOKE.model_copy(update={"memory_limit_mb": 150})
    with pytest.raises(PipelineError, match="more memory than the profile's 150 MB") as caught:
        latency.measure("onnx_runtime", path, images(), narrow)
    assert "bad_alloc" in caught.value.message
    assert "Export the file again" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA means this on Linux")
def test_a_damaged_file_is_told_as_that_under_a_memory_limit(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"allocated nothing")
    wide = SMOKE.model_copy(update={"memory_limit_mb": 4000})
    with pytest.raises(PipelineError) as caught:
        latency.measure("onnx_runtime", tmp_path / "bad.onnx", images(), wide)
    assert "failed (exit code 1): ONNX Runtime cannot load" in caught.value.message
    assert "memory" not in caught.value.message
    assert caught.value.remedy == "Export the file again."


def heavy(path):
    """An ONNX file with 80 MB of weights."""
    weights = np.random.default_rng(0).random((2, 10_000_000), np.float32)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 2, 1])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "axes"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(weights, "weights"), axes]
    graph = helper.make_graph(nodes, "heavy", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def fail(code, limit=None):
    """What is said of a process that runs this Python code."""
    words = ["-n", "1", "-r", "1", "-s", "import os, sys", code]
    nothing = np.zeros(0, np.uint8)
    with pytest.raises(PipelineError) as caught:
        latency.in_fresh_process("timeit", words, nothing, "trying", memory_limit_mb=limit)
    return caught.value


def test_a_signal_alone_may_be_for_want_of_memory():
    told = fail("os.abort()", limit=100)
    assert told.message == (
        "trying failed (SIGABRT): no message; perhaps it wanted more memory than the profile's "
        "100 MB"
    )
    assert "perhaps" not in fail("os.abort()").message
    assert "took more memory" in fail("raise MemoryError", limit=100).message
    line = "sys.stderr.write('std::bad_alloc\\n' * 2 + 'bye\\n'); os.abort()"
    assert "took more memory" in fail(line, limit=100).message
    assert "memory" not in fail("raise ValueError('allocated')", limit=100).message


def test_a_crash_hands_on_the_end_of_what_was_written():
    told = fail("raise ValueError('first line' + chr(10) + 'second line')")
    assert told.message == "trying failed (exit code 1): ValueError: first line"
    assert told.remedy.endswith("ValueError: first line\nsecond line")
    assert "< images" not in str(told) and len(told.remedy.splitlines()) <= 6


def test_an_error_of_the_fresh_process_comes_with_its_remedy():
    told = fail(
        "from benchmarks.latency import passing_on; from pipeline.errors import ExportError\n"
        "with passing_on(): raise ExportError('it is\\nbroken', 'Mend it.')"
    )
    assert told.message == "trying failed (exit code 1): it is\nbroken"
    assert told.remedy == "Mend it."
    assert latency._ending(-signal.SIGSEGV) == "SIGSEGV"


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
