"""report.json: built from real small records, and read back."""

import ast
import inspect
import json

import numpy as np
import pytest

from benchmarks.stats import paired_difference
from pipeline import records, summary
from pipeline.errors import StoreError
from pipeline.records import Epoch, Measurement, Parity
from tests.small_run import LABELS, SmallRun, run_of_seeds


def test_names_of_the_schema_are_present(run):
    body = json.loads(run.report().to_json())
    for name in ("schema", "run", "seconds", "environment", "input", "labels", "models"):
        assert name in body
    assert body["schema"] == 1
    assert body["input"]["layout"] == "NHWC" and body["input"]["dtype"] == "uint8"
    assert {"role", "arch", "params", "macs", "top1", "top1_ci95", "n", "key"} <= set(
        body["models"][0]
    )
    onnx = body["artifacts"][0]
    assert {"format", "precision", "variant", "path", "bytes", "sha256", "skipped"} <= set(onnx)
    assert {"evaluated_with", "load_ms", "peak_rss_bytes", "top1", "top1_ci95", "n"} <= set(onnx)
    assert {"reference", "max_abs_diff", "top1_agreement", "n"} <= set(onnx["parity"])
    assert {"profile", "p50_ms", "p90_ms", "p99_ms", "n", "warmup"} <= set(onnx["latency"])
    assert onnx["path"] == "bundle/onnx-fp32.bin"


def test_written_and_read_back_is_the_same(run, tmp_path):
    report = run.report()
    (tmp_path / "report.json").write_text(report.to_json())
    assert summary.read(tmp_path) == report
    assert summary.read(tmp_path / "report.json") == report


@pytest.mark.parametrize("module", [records, summary])
def test_no_field_is_declared_twice(module):
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ClassDef):
            fields = [ast.unparse(n.target) for n in node.body if isinstance(n, ast.AnnAssign)]
            assert len(fields) == len(set(fields)), node.name


def test_a_row_is_called_what_its_file_is_called(run):
    files = [artifact.title for artifact, _, _ in run.artifacts]
    run.add_artifact("onnx", "int8", 9, run.artifacts[1][1], variant="symmetric")
    titles = [row.title for row in run.report().artifacts]
    assert titles == [*files, "onnx int8 (symmetric)"]


def test_correctness_survives_packing(run):
    for row, (_, found) in zip(run.report().models, run.models, strict=True):
        named = np.load(found.folder / found.accuracy.predictions).argmax(axis=1)
        np.testing.assert_array_equal(row.correctness(), named == run.truth)
        assert row.correctness().mean() == pytest.approx(row.top1)


def test_class_accuracies_are_those_of_the_predictions(run):
    report = run.report()
    student = report.model("student")
    right = student.correctness()
    expected = [right[run.truth == index].mean() for index in range(len(LABELS))]
    assert student.class_top1 == pytest.approx(expected)
    assert report.dataset.class_counts == tuple(np.bincount(run.truth))


def test_a_class_without_test_images_has_no_accuracy(tmp_path):
    run = SmallRun(tmp_path, labels=(*LABELS, "unseen"))
    run.truth[run.truth == 3] = 0
    run.add_model("baseline", 5, 9.0)
    run.add_model("student", 4, 9.0)
    by_class = run.report().models[-1].class_top1
    assert by_class is not None and by_class[0] is not None and by_class[3] is None


def test_agreement_is_with_the_student(run):
    report = run.report()
    assert report.model("student").agreement == 1.0
    assert report.model("teacher").agreement == pytest.approx(1 - 40 / 1200)
    assert report.artifacts[1].agreement == pytest.approx(1 - 6 / 1200)


def test_without_test_labels_there_is_no_detail(run):
    report = run.report(test_labels=None)
    assert report.model("student").top1 is not None
    assert report.model("student").correctness() is None
    assert report.dataset.class_counts is None


def test_every_seed_is_there_with_its_paired_gain(tmp_path):
    run = run_of_seeds(tmp_path)
    report = run.report()
    assert [(row.seed, row.student_top1) for row in report.seeds] == [
        (0, 1100 / 1200),
        (1, 1094 / 1200),
        (7, 1108 / 1200),
    ]
    assert report.seeds[0].gain == report.gain
    named = [np.load(tmp_path / f"{role}-7.npy").argmax(1) for role in ("baseline", "student")]
    expected = paired_difference(*(each == run.truth for each in named))
    assert report.seeds[2].gain == expected and expected.difference == pytest.approx(36 / 1200)


def test_what_holds_over_seeds_is_written_too(tmp_path):
    report = run_of_seeds(tmp_path / "records").report()
    (tmp_path / "report.json").write_text(report.to_json())
    assert summary.read(tmp_path) == report
    body = json.loads(report.to_json())
    half = 4.302652729911275 * 0.005 / np.sqrt(3)  # gains of 2.5, 2 and 3 points: s = 0.5
    assert body["gain_over_seeds"]["n"] == 3
    assert body["gain_over_seeds"]["mean"] == pytest.approx(0.025)
    assert body["gain_over_seeds"]["ci95"] == pytest.approx([0.025 - half, 0.025 + half])
    assert body["baseline_over_seeds"]["mean"] == pytest.approx(1 - 388 / 3600)
    assert body["student_over_seeds"]["mean"] == pytest.approx(1 - 298 / 3600)


def test_one_seed_has_no_spread(run):
    body = json.loads(run.report().to_json())
    assert body["seeds"] == [] and body["gain_over_seeds"] is None


def test_seeds_without_baseline_have_the_students_spread_only(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("student", 100, 9.0)
    run.add_seed(1, student=112)
    report = run.report()
    assert report.gain_over_seeds is None and report.baseline_over_seeds is None
    assert [row.baseline_top1 for row in report.seeds] == [None, None]
    assert report.student_over_seeds is not None
    assert report.student_over_seeds.mean == pytest.approx(1 - 106 / 1200)


def test_a_report_from_before_there_were_seeds_is_read(run, tmp_path):
    body = json.loads(run.report().to_json())
    for name in ("seeds", "gain_over_seeds", "baseline_over_seeds", "student_over_seeds"):
        del body[name]
    (tmp_path / "report.json").write_text(json.dumps(body))
    assert summary.read(tmp_path) == run.report()


def test_what_an_epoch_learns_to_tell_later_does_no_harm(run):
    class LaterEpoch(Epoch):
        energy_mj: float

    checkpoint, measured = run.models[0]
    later = LaterEpoch(
        **{"epoch": 1, "loss": 0.5, "val_top1": 0.9, "seconds": 1.0},
        **{"memory_bytes": 5, "energy_mj": 3.0},
    )
    run.models[0] = (checkpoint.model_copy(update={"history": (later,)}), measured)
    row = run.report().models[0].history[0]
    assert row.val_top1 == 0.9 and row.memory_bytes == 5


def test_reasons_of_export_and_of_measuring_are_both_kept(run):
    run.add_artifact("ort", "int8", 10, Measurement(skipped="no runtime"), skipped="half done")
    rows = {row.title: row for row in run.report().artifacts}
    assert rows["coreml fp16"].skipped == "needs macOS"
    assert rows["tensorrt int8"].skipped == "needs a GPU to build"
    assert rows["tensorrt int8"].path is None
    assert rows["ort int8"].skipped == "half done; no runtime"


def test_labels_of_another_test_set_are_refused(run):
    with pytest.raises(StoreError, match="1200 predictions for 3 test labels"):
        run.report(test_labels=run.truth[:3])
    with pytest.raises(StoreError, match="its record says"):
        run.report(test_labels=(run.truth + 1) % 3)


def test_what_is_not_a_number_becomes_null(run, tmp_path):
    student = run.logits(100)
    found = run.measured("c", student, 2.0, student)
    broken = Parity(
        max_abs_diff=float("nan"),
        mean_abs_diff=float("nan"),
        relative=1.0,
        top1_agreement=1.0,
        n=1200,
    )
    run.add_artifact("ort", "fp16", 10, found.model_copy(update={"parity": broken}))
    checkpoint, measured = run.models[0]
    history = (Epoch(epoch=1, loss=float("inf"), val_top1=0.1, seconds=1.0),)
    run.models[0] = (checkpoint.model_copy(update={"history": history}), measured)
    (tmp_path / "report.json").write_text(run.report().to_json())
    report = summary.read(tmp_path)
    parity = report.artifacts[-1].parity
    assert parity is not None and parity.max_abs_diff is None
    assert report.models[0].history[0].loss is None


def test_the_test_digest_covers_the_test_split_only(run):
    before = run.report().dataset.test_digest
    run.dataset = run.dataset.model_copy(update={"digest": "e2" * 32})
    assert run.report().dataset.test_digest == before
    np.save(run.folder / "images.npy", np.load(run.folder / "images.npy")[::-1])
    assert run.report().dataset.test_digest != before


def test_a_streamed_test_split_is_covered_by_the_whole_digest(run):
    streamed = run.dataset.test.model_copy(update={"images": None, "files": "files.txt"})
    run.dataset = run.dataset.model_copy(update={"test": streamed})
    before = run.report().dataset.test_digest
    run.dataset = run.dataset.model_copy(update={"digest": "e2" * 32})
    assert run.report().dataset.test_digest != before
    told = summary.DatasetRow.model_fields["test_digest"].description
    assert told and "of images decoded from their files" in " ".join(told.split())


def test_int8_is_paired_with_the_float_file_of_its_format(run):
    student = run.logits(100)
    run.add_artifact("coreml", "int8", 10, run.measured("c", student, 2.0, student))
    titles = [(a.title, b.title) for a, b in run.report().int8_pairs()]
    assert titles == [("onnx fp32", "onnx int8"), ("coreml fp16", "coreml int8")]


def test_a_missing_report_names_the_run(tmp_path):
    (tmp_path / "quick").mkdir()
    with pytest.raises(StoreError, match="run 'quick' has no report"):
        summary.read(tmp_path / "quick")
    with pytest.raises(StoreError, match="run 'quick' has no report"):
        summary.read(tmp_path / "quick" / "report.json")


def test_a_damaged_report_names_the_run(run, tmp_path):
    home = tmp_path / "quick"
    home.mkdir()
    (home / "report.json").write_text(run.report().to_json()[:500])
    with pytest.raises(StoreError, match="report of run 'quick' is damaged"):
        summary.read(home)
    (home / "report.json").write_text("[1, 2]")
    with pytest.raises(StoreError, match="report of run 'quick' cannot be used"):
        summary.read(home)


def test_a_newer_schema_is_refused_before_its_content(tmp_path):
    home = tmp_path / "quick"
    home.mkdir()
    (home / "report.json").write_text('{"schema": 2, "rows": []}')
    with pytest.raises(StoreError, match="'quick' has schema 2; this version reads 1") as caught:
        summary.read(home)
    assert "Update this clone" in caught.value.remedy


def test_a_field_of_the_wrong_type_is_named(run, tmp_path):
    body = json.loads(run.report().to_json())
    body["models"][0]["top1"] = "high"
    (tmp_path / "report.json").write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"models\.0\.top1"):
        summary.read(tmp_path)


def test_fields_added_later_are_ignored(run, tmp_path):
    body = json.loads(run.report().to_json())
    body["phone"] = {"model": "x"}
    body["models"][0]["energy_mj"] = 3
    (tmp_path / "report.json").write_text(json.dumps(body))
    assert summary.read(tmp_path) == run.report()
