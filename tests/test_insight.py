"""What a report gains from the answers that were kept, and that older ones do without it."""

import json

import numpy as np
import pytest

from benchmarks.stats import paired_difference
from pipeline import confidence, confusions, summary
from pipeline.records import Measurement
from pipeline.stages import report as pages

ROLES = ("teacher", "baseline", "student")


def answers(run, name):
    return np.load(run.folder / f"{name}.npy")


def test_networks_and_the_first_int8_file_are_looked_into(run):
    report = run.report()
    rows = {row.title: row for row in report.rows}
    assessed = [title for title, row in rows.items() if row.confidence]
    assert assessed == [*(f"{role} (PyTorch)" for role in ROLES), "onnx int8"]
    assert [title for title, row in rows.items() if row.class_precision] == assessed
    told = [title for title, row in rows.items() if row.confusions]
    assert told == ["student (PyTorch)", "onnx int8"]
    for title, name in (("student (PyTorch)", "student"), ("onnx int8", "b")):
        row, logits = rows[title], answers(run, name)
        assert row.confidence == confidence.assess(logits, run.truth)
        matrix = confusions.count(logits.argmax(1), run.truth, 3)
        assert row.confusions == confusions.of(matrix)
        assert row.class_top1 == pytest.approx(np.diagonal(matrix) / matrix.sum(1))
        assert row.class_precision == pytest.approx(np.diagonal(matrix) / matrix.sum(0))


def test_gains_by_class_are_paired(run):
    report = run.report()
    right = {
        name: answers(run, name).argmax(1) == run.truth for name in ("baseline", "student", "b")
    }
    for at in range(3):
        of = run.truth == at
        assert report.class_gains[at] == paired_difference(
            right["baseline"][of], right["student"][of]
        )
        assert report.class_changes[at] == paired_difference(right["student"][of], right["b"][of])


def test_disagreements_have_their_images(run):
    found = run.report().disagreements
    named = [answers(run, name).argmax(1) for name in ("teacher", "student", "b")]
    assert found is not None and found.int8 == "onnx int8"
    assert found.n == int(((named[0] != named[1]) | (named[2] != named[1])).sum())
    assert len(found.shown) == 12 and all(each.image for each in found.shown)
    first = [each.index for each in found.shown[:6]]
    assert sorted(first) == np.flatnonzero(named[2] != named[1]).tolist()
    without = run.report(test_images=None).disagreements
    assert without is not None and not any(each.image for each in without.shown)


def test_a_file_that_answers_with_probabilities_is_read_so(run):
    artifact, _, place = run.artifacts[1]
    logits = answers(run, "b")
    before = run.report().artifacts[1].confidence
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = run.measured("b", shares, 1.3, answers(run, "student"))
    run.artifacts[1] = (artifact.model_copy(update={"output": "probabilities"}), found, place)
    report = run.report()
    after = report.artifacts[1].confidence
    assert before is not None and after is not None
    assert after.mean == pytest.approx(before.mean, abs=1e-5)
    assert after.nll == pytest.approx(before.nll, abs=1e-5)
    assert report.disagreements is not None
    said = report.disagreements.shown[0].said["int8"].confidence
    assert said is not None and 0.9 < said < 1


def test_what_was_not_measured_is_left_out(run):
    for at in (0, 1):
        run.models[at] = (run.models[at][0], Measurement(skipped="out of memory"))
    run.artifacts[1] = (run.artifacts[1][0], Measurement(skipped="no runtime"), "x")
    report = run.report(gain=None)
    assert report.class_gains == () and report.class_changes == ()
    assert report.disagreements is None
    assert [row.title for row in report.rows if row.confidence] == ["student (PyTorch)"]
    page = pages.to_html(report)
    assert "What confidence is worth" in page and "Where they disagree" not in page


def test_answers_that_are_no_numbers_cost_only_their_confidence(run):
    artifact, _, place = run.artifacts[1]
    broken = answers(run, "b")
    broken[:, 0] = np.nan
    found = run.measured("b", broken, 1.3)
    run.artifacts[1] = (artifact, found, place)
    report = run.report()
    assert report.artifacts[1].confidence is None and report.artifacts[1].confusions is not None
    assert summary.Report.model_validate_json(report.to_json()) == report
    assert "What confidence is worth" in pages.to_html(report)


def test_it_goes_through_report_json(run, tmp_path):
    report = run.report()
    (tmp_path / "report.json").write_text(report.to_json())
    assert summary.read(tmp_path) == report


ADDED = {
    "row": ("class_precision", "confusions", "confidence"),
    "report": ("class_gains", "class_changes", "disagreements"),
}


def test_a_report_from_before_is_read_and_shown_without_it(run, tmp_path):
    body = json.loads(run.report().to_json())
    for row in (*body["models"], *body["artifacts"]):
        for name in ADDED["row"]:
            del row[name]
    for name in ADDED["report"]:
        del body[name]
    (tmp_path / "report.json").write_text(json.dumps(body))
    report = summary.read(tmp_path)
    assert report.disagreements is None and report.class_gains == ()
    page, text = pages.to_html(report), pages.to_markdown(report)
    assert "<h2>By class</h2>" in page and "Student − baseline, points" in page
    for words in ("What confidence is worth", "taken for what", 'class="pictures"'):
        assert words not in page
    # who changed what is told by what older reports have already
    assert "onnx int8 names another class than the student on 6 of 1,200" in page.replace(
        "\u00a0", " "
    )
    assert "calibrated" not in text
