"""Reports that lack something, at the commands that read them: show, report and gate."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import gate, summary
from pipeline.__main__ import app
from pipeline.errors import ConfigError, StoreError
from pipeline.gate import Rules
from pipeline.stages import report as pages
from pipeline.store import Store
from tests.small_run import SmallRun, usual_run

EARLY = Path(__file__).parent / "fixtures" / "report-of-f6ae34a.json"
"""Written by this project's code at its commit f6ae34a, the first that had reports."""
RULES = "".join(f"[{name}]\nmost = 1\n" for name in ("accuracy", "parity", "size", "latency"))
NO_ACCURACY = {"top1": None, "top1_ci95": None, "n": None, "correct": None, "class_top1": None}
NO_TIMES = {"latency": None, "load_ms": None, "peak_rss_bytes": None}
NOTHING = NO_ACCURACY | NO_TIMES | {"parity": None, "evaluated_with": None}


def ask(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return " ".join(done.output.split())


def placed(report, home):
    """The report as a run's folder holds it."""
    home.mkdir(parents=True)
    (home / summary.FILE).write_text(report.to_json(), encoding="utf-8")
    return summary.read(home)


def changed(report, **facts):
    """The report with `facts` in every row."""
    rows = {
        name: tuple(row.model_copy(update=facts) for row in getattr(report, name))
        for name in ("models", "artifacts")
    }
    return report.model_copy(update=rows)


def one_image(folder):
    """A run tested on a single image, which int8 names wrongly."""
    run = SmallRun(folder, n=1)
    run.add_model("teacher", 0, 40.0)
    run.add_model("baseline", 1, 9.0)
    student = run.add_model("student", 0, 9.0)
    run.add_artifact("onnx", "fp32", 9_000, run.measured("a", student, 3.0, student))
    run.add_artifact("onnx", "int8", 3_000, run.measured("b", run.logits(1), 1.3, student))
    return run.report()


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "gate.toml").write_text(RULES)
    return tmp_path / "gate.toml"


def test_a_report_of_the_first_version_is_shown_made_anew_and_judged(tmp_path, rules):
    runs = tmp_path / "runs"
    for name in ("early", "again"):
        (runs / name).mkdir(parents=True)
        shutil.copy(EARLY, runs / name / summary.FILE)
    assert "onnx int8 65.00 59.44–70.18 98.00 1.30" in ask("show", "early", "--runs", runs)
    listed = ask("show", "--runs", runs)  # by the names that `show` takes, whatever is in them
    assert "early 2026-01-02" in listed and "again 2026-01-02" in listed
    ask("report", "early", "--runs", runs)
    assert "onnx int8" in (runs / "early" / "report.html").read_text(encoding="utf-8")
    words = ("gate", "early", "--against", "again", "--rules", rules, "--runs", runs)
    told = ask(*words, code=1)
    assert "onnx int8, accuracy: passed: 0.00 points" in told
    assert "onnx int8, latency: not judged, and fails: a run has no interval of its p50" in told


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        (NOTHING, {"size"}),
        (NO_ACCURACY, {"size", "parity"}),
        (NO_TIMES, {"size", "parity", "accuracy"}),
        ({"bytes": None}, {"parity", "accuracy"}),
    ],
    ids=["nothing", "accuracy", "times", "size"],
)
def test_what_was_not_measured_is_not_shown_and_not_judged(tmp_path, lost, left):
    whole = usual_run(tmp_path / "records").report()
    report = placed(changed(whole, **lost), tmp_path / "runs" / "bare")
    assert "onnx int8" in ask("show", "bare", "--runs", tmp_path / "runs")
    assert "bare" in ask("show", "--runs", tmp_path / "runs")
    pages.write(report, tmp_path / "runs" / "bare")
    asked = Rules.model_validate({name: {"most": 9} for name in ("accuracy", "parity", "size")})
    found = gate.judge(report, tmp_path, whole, tmp_path, asked)
    judged = {each.rule for each in found if each.state != "not judged" and "onnx" in each.file}
    assert judged == left


def test_a_single_test_image_says_next_to_nothing(tmp_path):
    report = placed(one_image(tmp_path / "records"), tmp_path / "runs" / "one")
    shown = ask("show", "one", "--runs", tmp_path / "runs")
    assert "onnx fp32 100.00 20.65–100.00" in shown  # Wilson, 1 of 1: 1 / (1 + z²)
    assert "onnx int8 0.00 0.00–79.35" in shown
    pages.write(report, tmp_path / "runs" / "one")
    (fp32, int8) = report.artifacts
    worse = report.model_copy(
        update={"artifacts": (fp32.model_copy(update={"correct": int8.correct, "top1": 0.0}),)}
    )
    asked = Rules.model_validate({"files": ["onnx fp32"], "accuracy": {"most": 0.5}})
    (found,) = gate.judge(worse, tmp_path, report, tmp_path, asked)
    assert found.state == "passed"  # one image of one is no certain loss


def test_no_models_and_no_files_are_shown_and_refused_by_the_gate(tmp_path):
    whole = usual_run(tmp_path / "records").report()
    empty = {"models": (), "artifacts": (), "gain": None, "quantization": None}
    report = placed(whole.model_copy(update=empty), tmp_path / "runs" / "empty")
    ask("show", "empty", "--runs", tmp_path / "runs")
    pages.write(report, tmp_path / "runs" / "empty")
    with pytest.raises(ConfigError, match="no rule can be asked of any file"):
        gate.judge(whole, tmp_path, report, tmp_path, Rules.model_validate({"size": {"most": 1}}))


def test_two_files_of_one_title_are_not_judged_by_chance(tmp_path):
    whole = usual_run(tmp_path / "records").report()
    twice = whole.model_copy(update={"artifacts": (*whole.artifacts, whole.artifacts[0])})
    rules = Rules.model_validate({"size": {"most": 1}})
    for now, before in ((twice, whole), (whole, twice)):
        with pytest.raises(ConfigError, match="two files called onnx fp32"):
            gate.judge(now, tmp_path, before, tmp_path, rules)


def test_a_median_of_nothing_is_damage(tmp_path):
    body = json.loads(usual_run(tmp_path / "records").report().to_json())
    body["artifacts"][0]["latency"]["p50_ms"] = 0.0
    (tmp_path / summary.FILE).write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"artifacts\.0\.latency\.p50_ms"):
        summary.read(tmp_path)


def test_runs_under_way_and_stopped_ones_are_listed_as_such(tmp_path):
    runs = tmp_path / "runs"
    placed(usual_run(tmp_path / "records").report(), runs / "again")
    (runs / "stopped").mkdir()
    store = Store(runs / ".store")
    for name in ("stopped", "again"):
        with pytest.raises(RuntimeError), store.referred_by(runs / name):
            raise RuntimeError("no power")
    with store.referred_by(runs / "going"):
        with pytest.raises(StoreError, match="run 'going' has no report: under way since"):
            summary.read(runs / "going")
        told = ask("show", "--runs", runs)
        assert "going: no report: under way since" in told  # it has no folder yet
    assert "stopped: no report: stopped before its report; begun" in told
    assert "again: stopped before its report; begun" in told and "again 2026-01-02" in told
    assert "going" not in ask("show", "--runs", runs)
    with pytest.raises(StoreError, match="stopped before its report; begun"):
        summary.read(runs / "stopped")
    (runs / "bare").mkdir()
    with pytest.raises(StoreError, match="nothing in the store beside it tells of such a run"):
        summary.read(runs / "bare")
    with pytest.raises(StoreError, match="there is no such run"):
        summary.read(runs / "nowhere")
