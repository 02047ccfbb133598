"""Latencies of files by the command line: which files, in turn, over minutes, by a second clock."""

import json
import shutil
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import loadgen, measuring, stats, targets, turns
from benchmarks.__main__ import app
from benchmarks.profiles import Profile
from exporters import Variant
from pipeline import summary
from pipeline.errors import ConfigError, ExportError, NotInstalledError, PipelineError
from pipeline.store import file_sha256
from tests.conftest import export_onnx, sources_of
from tests.small_run import usual_run

QUICK = Profile(warmup=1, warmup_seconds=0, min_samples=10, min_seconds=0.1, width=10)


@pytest.fixture(scope="module")
def file(float_onnx, tmp_path_factory):
    """A real file of 32 px."""
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    shutil.copy(float_onnx.path, path)
    return path


@pytest.fixture(scope="module")
def larger(make_checkpoint, tmp_path_factory):
    """A file that takes some five times as long."""
    wide = make_checkpoint(width=1.4)
    return export_onnx(sources_of(wide), Variant("fp32"), tmp_path_factory.mktemp("wide")).path


@pytest.fixture
def run(tmp_path, file):
    """A run's folder with one file that can be timed."""
    report = usual_run(tmp_path).report()
    shutil.copy(file, tmp_path / "model.onnx")
    plain, int8, *others = report.artifacts
    rows = (
        plain.model_copy(update={"path": "model.onnx", "sha256": file_sha256(file)}),
        int8.model_copy(update={"path": None, "skipped": "not today"}),
        *(row.model_copy(update={"path": "model.mlpackage"}) for row in others),
    )
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    shutil.copy(file, folder / "model.onnx")
    report = report.model_copy(update={"artifacts": rows})
    (folder / summary.FILE).write_text(report.to_json(), encoding="utf-8")
    return folder


def test_files_and_runs_are_found(run, file):
    (only,) = targets.find([str(file)], run.parent).targets
    assert only.title == f"{file.parent.name}/model.onnx" and only.runtime == "onnx_runtime"
    assert only.images.shape == (targets.IMAGES, 32, 32, 3)
    for word in ("small", str(run)):
        found = targets.find([word], run.parent)
        assert [each.title for each in found.targets] == ["onnx fp32"]
        assert found.skipped[0] == "onnx int8: not today"


def test_an_altered_file_is_refused(run):
    content = bytearray((run / "model.onnx").read_bytes())
    content[-1] ^= 1
    (run / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="not the file that was exported"):
        targets.find(["small"], run.parent)
    (run / "model.onnx").unlink()
    with pytest.raises(PipelineError, match="is gone"):
        targets.find(["small"], run.parent)


def test_what_cannot_be_timed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is neither a file"):
        targets.find(["nowhere"], tmp_path)
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])
    same = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [same])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match="does not say"):
        targets.find([str(tmp_path / "foreign.onnx")], tmp_path)


def test_the_slower_of_two_is_told_for_certain(file, larger):
    a, b = (targets.find([str(path)], file.parent).targets[0] for path in (file, larger))
    found = turns.compare(a, b, QUICK, rounds=5)
    assert len(found.a_ms) == len(found.b_ms) == 5
    assert 1.3 < found.ratio_ci95[0] <= found.ratio <= found.ratio_ci95[1]
    told = measuring.Pair(profile_name="quick", profile=QUICK, comparison=found)
    assert "is no chance" in measuring.pair_facts(told)[1]


def test_a_sustained_run_is_a_curve(file):
    (target,) = targets.find([str(file)], file.parent).targets
    found = turns.sustain(target, QUICK, minutes=0.8 / 60)
    assert found.window_s == pytest.approx(0.2)
    # The worker looks at its clock now and then, so it may run a little longer.
    assert 1 <= len(found.p50_ms) <= 10 and min(found.p50_ms) > 0


def test_windows_cut_by_time_and_leave_out_the_rest():
    samples = np.array([10**8] * 10 + [2 * 10**8] * 5 + [10**8] * 3)
    assert turns.windows(samples, 1.0) == [100.0, 200.0]
    curves = [
        turns.Curve(title=name, window_s=1, p50_ms=values, peak_rss_bytes=1)
        for name, values in (("a", (1.0, 5.0)), ("b", (2.0, 3.0)))
    ]
    assert turns.ranking(curves, 0) == ["a", "b"] and turns.ranking(curves, -1) == ["b", "a"]
    told = measuring.Curves(
        profile_name="x", profile=QUICK, minutes=1, curves=tuple(curves), skipped=()
    )
    assert "fastest first: a, b; at the end b, a" in measuring.curve_facts(told)[1]


def test_the_ratios_interval_covers_what_it_should():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        a = rng.lognormal(0, 0.05, 15)
        b = 1.2 * a * rng.lognormal(0, 0.03, 15)
        low, high = stats.ratio(a, b)[1]
        covered += low <= 1.2 <= high
    assert 0.87 <= covered / 200 <= 0.99
    assert stats.ratio([1, 2], [2, 4]) == (pytest.approx(2), (pytest.approx(2), pytest.approx(2)))
    for a, b in (([1], [1]), ([1, 2], [1]), ([1, 0], [1, 1])):
        with pytest.raises(ValueError):
            stats.ratio(a, b)


def test_loadgen_is_a_clock_of_its_own(file):
    pytest.importorskip("mlperf_loadgen")
    (target,) = targets.find([str(file)], file.parent).targets
    ours = turns.latency.measure(target.runtime, file, target.images, QUICK)
    p90 = stats.percentiles(ours.samples_ns)[1]
    assert 0.3 * p90 < loadgen.p90_ms(target, QUICK) < 3 * p90


def test_loadgen_is_missed_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(NotInstalledError, match="mlperf_loadgen") as caught:
        loadgen.check(QUICK)
    assert "loadgen" in caught.value.remedy
    for odd in ({"batch": 8}, {"processes": 3}):
        with pytest.raises(ConfigError, match="one image at a time"):
            loadgen.check(QUICK.model_copy(update=odd))


def test_the_command_writes_a_page(run, tmp_path):
    out = tmp_path / "page.md"
    words = ["latency", "small", "--runs", str(run.parent), "--profile", "smoke", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    page = out.read_text(encoding="utf-8")
    assert "| onnx fp32 |" in page and "not timed: onnx int8: not today" in page
    raw = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert raw["rows"][0]["in_force"]["providers"] == "CPUExecutionProvider"
    assert raw["provenance"]["command"] and raw["overhead_ms"] > 0
