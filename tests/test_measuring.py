"""Latencies of files by the command line: which files, in turn, over minutes, by a second clock."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import runtime
from benchmarks import latency, loadgen, measuring, profiles, publishing, stats, targets, turns
from benchmarks.__main__ import app
from benchmarks.curves import Curves, curve_facts, curve_tables, sparkline
from benchmarks.profiles import Profile
from benchmarks.steadiness import Conditions
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


def test_titles_of_different_files_differ(run, file, tmp_path):
    paths = [tmp_path / first / "m" / "fp32.onnx" for first in ("one", "two")]
    for path in paths:
        path.parent.mkdir(parents=True)
        shutil.copy(file, path)
    words = [str(path) for path in (*paths, file, file)]
    own = f"{file.parent.name}/model.onnx"
    titles = [each.title for each in targets.find(words, run.parent).targets]
    assert titles[:3] == ["one/m/fp32.onnx", "two/m/fp32.onnx", titles[2]]
    assert titles[2].endswith(own) and titles[3] == f"{titles[2]} (2)"
    assert [each.title for each in targets.named_files(words[:2])] == titles[:2]


def test_titles_of_two_runs_differ(run):
    shutil.copytree(run, run.parent / "other")
    shutil.copytree(run, run.parent / "deep" / "small")
    found = targets.find(["small", "other"], run.parent)
    assert [each.title for each in found.targets] == ["small: onnx fp32", "other: onnx fp32"]
    assert "small: onnx int8: not today" in found.skipped
    assert "other: onnx int8: not today" in found.skipped
    deep = targets.find(["small", "deep/small"], run.parent).targets
    assert [each.title for each in deep] == ["runs/small: onnx fp32", "deep/small: onnx fp32"]


def test_the_cost_of_each_of_two_like_named_files_is_told(file, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "m").mkdir(parents=True)
        shutil.copy(file, tmp_path / name / "m" / "fp32.onnx")
    words = [str(tmp_path / name / "m" / "fp32.onnx") for name in ("one", "two")]
    done = CliRunner().invoke(app, ["cost", *words, "--out", str(tmp_path / "x.md")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert "| one/m/fp32.onnx |" in page and "| two/m/fp32.onnx |" in page


def test_files_of_a_runtime_that_is_missing_are_left_out_with_the_reason(run, monkeypatch):
    report = json.loads((run / summary.FILE).read_text(encoding="utf-8"))
    row = next(row for row in report["artifacts"] if row["path"] == "model.mlpackage")
    row |= {"path": "model.tflite", "format": "litert", "sha256": None}
    (run / summary.FILE).write_text(json.dumps(report), encoding="utf-8")
    (run / "model.tflite").write_bytes(b"")
    missing = runtime.Availability(False, "ai-edge-litert is not installed", "Install it.")
    monkeypatch.setattr(runtime.load("litert"), "availability", lambda: missing)
    found = targets.find(["small"], run.parent)
    assert [each.title for each in found.targets] == ["onnx fp32"]
    assert any(
        reason.startswith("litert") and reason.endswith("is not installed. Install it.")
        for reason in found.skipped
    )
    with pytest.raises(ConfigError, match=r"model\.tflite cannot be timed"):
        targets.find([str(run / "model.tflite")], run.parent)


@pytest.mark.parametrize("command", ["compare", "operators"])
def test_where_one_file_is_wanted_a_run_is_refused(run, file, command):
    words = [command, str(run), *([str(file)] if command == "compare" else [])]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ConfigError)
    assert "is no file that can be timed" in str(done.exception)


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
    told = sustained(*curves)
    (_, ranks, *_) = curve_facts(told)
    assert "fastest first: a, b; at the end b, a" in ranks
    assert "at the start (rested for a only" in ranks
    assert "rested" not in curve_facts(sustained(curves[0]))[1]


def sustained(*found):
    return Curves(profile_name="x", profile=QUICK, minutes=1, curves=found, skipped=())


def test_a_window_in_which_nothing_ended_is_as_slow_as_what_went_on():
    samples = np.array([25 * 10**8, 6 * 10**8, 10**8])  # ends at 2.5, 3.1, 3.2 s
    assert turns.windows(samples, 1.0) == [2500.0, 2500.0, 2500.0]
    assert turns.windows(np.array([10**8, 3 * 10**8]), 1.0) == [200.0]
    with pytest.raises(ValueError, match="no samples"):
        turns.windows(np.array([], np.int64), 1.0)
    with pytest.raises(ValueError, match="p50_ms"):
        turns.Curve(title="none", window_s=1, p50_ms=(), peak_rss_bytes=1)


def test_a_curve_is_drawn_by_how_much_slower_it_becomes():
    assert sparkline([10, 11, 12, 13.5, 17], 0.7) == "▁▂▃▅█"
    assert sparkline([1.0] * 3, 0.1) == "▁▁▁"
    many = sparkline([1.0] * 200 + [2.0] * 200, 1.0)
    assert many == "▁" * 20 + "█" * 20
    flat, steep = (
        turns.Curve(title=name, window_s=1, p50_ms=values, peak_rss_bytes=1)
        for name, values in (("flat", (1.0, 1.001)), ("steep", (1.0, 1.5)))
    )
    (table,) = curve_tables(sustained(flat))
    assert [*map(str, table.columns[-1].cells)] == ["▁▁"]  # a thousandth is no mountain
    told = sustained(flat, steep)
    assert [str(cell) for cell in curve_tables(told)[0].columns[-1].cells] == ["▁▁", "▁█"]
    assert "50% longer (█)" in curve_facts(told)[2]


def test_the_ratio_of_rounds_that_agree_has_no_width():
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


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA means this on Linux")
def test_loadgen_is_under_the_memory_limit_too(file):
    pytest.importorskip("mlperf_loadgen")
    (target,) = targets.find([str(file)], file.parent).targets
    with pytest.raises(PipelineError, match="more memory than the profile's 1 MB"):
        loadgen.p90_ms(target, QUICK.model_copy(update={"memory_limit_mb": 1}))


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
    samples = np.load(out.with_suffix(".npz"))["onnx fp32"]
    assert samples.dtype == np.int64 and len(samples) == raw["rows"][0]["n"]
    assert np.median(samples) / 1e6 == pytest.approx(raw["rows"][0]["p50_ms"])
    assert "samples_ns" not in raw["rows"][0]


def test_samples_of_all_commands_are_kept(file, larger, tmp_path):
    def keep(*words):
        out = tmp_path / f"{words[0]}.md"
        done = CliRunner().invoke(app, [*words, "--profile", "smoke", "--out", str(out)])
        assert done.exit_code == 0, done.output
        return np.load(out.with_suffix(".npz"))

    pair = keep("compare", str(file), str(larger), "--rounds", "5")
    assert len(pair.files) == 10 and f"{file.parent.name}/{file.name} round 5" in pair.files
    whole = keep("sustained", str(file), "--minutes", "0.02")
    assert whole[f"{file.parent.name}/{file.name}"].sum() > 0.5e9


def test_a_title_is_no_markup(file, tmp_path):
    odd = tmp_path / "a[b]" / "c[" / "b].onnx"  # "c[/b].onnx" would end something
    odd.parent.mkdir(parents=True)
    shutil.copy(file, odd)
    out = tmp_path / "odd.md"
    words = ["latency", str(odd), "--profile", "smoke", "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "| c[/b].onnx |" in out.read_text(encoding="utf-8")
    (target,) = targets.named_files([str(odd)])
    pair = turns.Comparison(
        a=target.title, b="[b]", a_ms=(1.0,), b_ms=(2.0,), ratio=2, ratio_ci95=(2, 2)
    )
    told = measuring.Pair(profile_name="x", profile=QUICK, comparison=pair)
    (table,) = measuring.pair_tables(told)
    assert [str(column.header) for column in table.columns[1:3]] == ["c[/b].onnx", "[b]"]
    publishing.make_console(stderr=False).print(table)


QUIET = Conditions(load=None, stolen=None, preempted=0, mhz=None)


def row(**more):
    facts = {"title": "a", "runtime": "onnxruntime 1", "half_width": 0.01, "n": 200, "load_ms": 1}
    facts |= {"p50_ms": 1, "p90_ms": 1, "p99_ms": 8, "first_ms": 1, "peak_rss_bytes": 1}
    facts |= {"noisy": None, "conditions": QUIET, "in_force": {}}
    return measuring.Row.model_validate(facts | more)


def facts_of(*rows, profile=QUICK, overhead=None):
    found = measuring.Latencies(
        profile_name="x", profile=profile, overhead_ms=overhead, rows=rows, skipped=()
    )
    return measuring.latency_facts(found)


def test_a_busy_host_is_told_though_the_median_is_known():
    busy = QUIET.model_copy(update={"preempted": 194})
    facts = facts_of(row(), row(title="b", conditions=busy), row(title="c", noisy="194 times"))
    assert [fact for fact in facts if "disturbed" in fact] == ["disturbed: b: 194 times preempted"]
    assert "too noisy: c: 194 times" in facts


def test_keys_that_a_runtime_does_not_have_are_named():
    other = row(title="b", runtime="litert 2", in_force={"ignored": "arena, spinning"})
    facts = facts_of(row(), other)
    assert "litert 2 has no arena, spinning: the profile's do not count" in facts
    assert not any("onnxruntime 1 has no" in fact for fact in facts)


def test_a_p50_is_that_of_one_process():
    assert "95 % interval of this process" in facts_of(row())[1]


def test_a_cold_start_has_an_interval_over_its_processes_and_no_overhead(file, monkeypatch):
    monkeypatch.setattr(latency, "overhead_ms", lambda profile: pytest.fail("not to be measured"))
    cold = profiles.read("cold-start").model_copy(update={"processes": 6})
    found = measuring.measure(
        targets.find([str(file)], file.parent), "cold-start", cold, with_loadgen=False
    )
    (only,) = found.rows
    assert only.n == 6 and only.noisy is None and 0 < only.half_width < 10
    assert found.overhead_ms is None
    facts = measuring.latency_facts(found)
    assert facts[1].startswith("6 fresh processes a file") and "order statistics" in facts[1]
    assert not any("empty ONNX file" in fact for fact in facts)


def test_an_empty_onnx_file_tells_nothing_of_another_runtime(file, monkeypatch):
    monkeypatch.setattr(latency, "overhead_ms", lambda profile: 0.01)
    timing = latency.measure("onnx_runtime", file, noise(file), QUICK)
    monkeypatch.setattr(latency, "measure", lambda *_: timing)
    (target,) = targets.find([str(file)], file.parent).targets

    def overhead(*runtimes):
        found = targets.Found(tuple(replace(target, runtime=each) for each in runtimes), ())
        return measuring.measure(found, "x", QUICK, with_loadgen=False).overhead_ms

    assert overhead("litert") is None and overhead("litert", "onnx_runtime") == 0.01
    assert "each latency in ONNX Runtime" in facts_of(row(), overhead=0.01)[2]


def noise(file):
    (target,) = targets.find([str(file)], file.parent).targets
    return target.images
