"""The commands `predict`, `phone` and `adb`: what they tell and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from benchmarks import estimates
from benchmarks.predict import evaluate

ROOT = Path(__file__).parents[1]


def command(*words):
    line = [sys.executable, "-m", "benchmarks", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def evaluated():
    return estimates.Evaluated(evaluation=evaluate())


def test_goals_that_are_missed_are_said_to_be(evaluated):
    told = estimates.evaluation_facts(evaluated)
    for score in evaluated.evaluation.families:
        name = f"{score.runtime} {score.unit} {score.precision}"
        lines = [line for line in told if line.startswith(name)]
        if score.unit == "CPU" and score.models >= 12:
            word = "met" if score.error <= 0.10 else "missed"
            assert any(line.endswith(f"goal at most 10%: {word}") for line in lines)
        assert any("80 % interval" in line for line in lines) == (not 0.7 <= score.cover80 <= 0.9)
        assert score.error < min(score.nearest, score.scalar)


def test_a_worse_prediction_than_a_plain_one_is_named(evaluated):
    first, *others = evaluated.evaluation.families
    worse = first.model_copy(update={"error": 2 * first.scalar})
    whole = evaluated.evaluation.model_copy(update={"families": (worse, *others)})
    told = estimates.evaluation_facts(estimates.Evaluated(evaluation=whole))
    assert any("no better than a plain baseline" in line for line in told)


def test_each_group_and_family_has_a_row(evaluated):
    families, groups = estimates.evaluation_tables(evaluated)
    assert families.row_count == len(evaluated.evaluation.families)
    assert groups.row_count == len(evaluated.evaluation.groups)


def test_files_are_predicted_by_what_they_are(sources, tmp_path):
    int8, plain = (sources.files[title].path for title in ("onnx int8", "onnx fp32"))
    assert estimates.precision_of(int8) == "int8" and estimates.precision_of(plain) == "fp32"
    out = tmp_path / "told.md"
    done = command("predict", plain, int8, "--out", out)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["files"]
    precisions = [{row["precision"] for row in rows} for rows in told.values()]
    assert precisions == [{"fp32", "fp16", "fp32/fp16"}, {"int8"}]
    for rows in told.values():
        for row in rows:
            low80, high80 = row["interval80"]
            low95, high95 = row["interval95"]
            assert low95 < low80 < row["latency_ms"] < high80 < high95
    assert "promise nothing" in out.read_text(encoding="utf-8")  # 32 px: like none of them


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict",), "one of the two"),
        (("predict", "--evaluate", "quick"), "one of the two"),
        (("predict", "nowhere"), "nor a run"),
        (("phone", "nowhere"), "nowhere is no run"),
        (("adb", "nowhere", "--binary", "x"), "nowhere is no run"),
    ],
)
def test_what_names_nothing_is_refused(words, said, tmp_path):
    done = command(*words, "--runs", tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_graph_of_unknown_size_is_refused(sources, tmp_path):
    model = onnx.load(sources.files["onnx fp32"].path)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dim.Clear()
        dim.dim_param = "any"
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "free.onnx")
    done = command("predict", tmp_path / "free.onnx", "--out", tmp_path / "told.md")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "told.md").exists()
