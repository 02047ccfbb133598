"""What the report says of phones: what they measured, and what is only predicted."""

import json
import re

import pytest

from benchmarks.predict import predict
from benchmarks.published.fitting import workloads
from pipeline import device_figures, on_device, phones, summary
from pipeline.phones import Phone, PhoneFile
from pipeline.stages import report as pages
from pipeline.verdict import headline, warnings
from tests.small_run import SmallRun


def measured(sha256="a" * 64, **changes):
    facts = {
        "title": "onnx fp32",
        "sha256": sha256,
        "how": "wasm, 4 threads",
        **{"load_ms": 30.0, "p50_ms": 4.0, "p90_ms": 5.0, "p99_ms": 9.0, "n": 400},
        "curve_ms": (4.0, 4.0, 4.0, 5.0, 6.0, 6.0, 6.0),
        "curve_s": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
        "golden": (16, 16),
        **{"top1": 0.9, "top1_ci95": (0.86, 0.93), "images": 256, "here_top1": 0.91},
    }
    return PhoneFile.model_validate(facts | changes)


def phone(*files, **changes):
    facts = {
        **{"id": "pixel-1", "device": "Pixel 8", "system": "Android 14", "runtime": "Chrome 140"},
        **{"via": "browser", "date": "2026-11-27 10:00 UTC", "facts": ("cores: 9",)},
    }
    return Phone.model_validate(facts | {"files": files or (measured(),)} | changes)


@pytest.fixture
def report(tmp_path):
    """A report with one plain ONNX file that has a place and a checksum."""
    run = SmallRun(tmp_path / "records")
    answers = run.logits(100)
    run.add_model("student", 100, 1.0)
    run.add_artifact("onnx", "fp32", 9_000, run.measured("onnx", answers, 0.5))
    found = run.report()
    rows = [
        row.model_copy(update={"sha256": "a" * 64}) if row.format == "onnx" else row
        for row in found.artifacts
    ]
    return found.model_copy(update={"artifacts": tuple(rows)})


def with_predictions(report, name="mobilenet_v2"):
    found = tuple(predict(workloads()[name], "fp32"))
    rows = [row.model_copy(update={"predicted": found}) for row in report.artifacts]
    return report.model_copy(update={"artifacts": tuple(rows)})


def traces(report):
    figure = device_figures.phones(report)
    assert figure is not None
    return json.loads(str(figure.to_json()))["data"]


def test_the_table_of_files_has_the_device_known_best_of_each_kind(report):
    told = with_predictions(report)
    (column,) = on_device.columns(told)  # of fp32 alone there is no NPU
    found = column.of(told.artifacts[0])
    assert found and (column.runtime, column.title) == ("onnxruntime", "RB3 Gen 2 (Proxy) CPU")
    own = [each for each in told.artifacts[0].predicted if each.runtime == "onnxruntime"]
    narrowest = min(each.interval80[1] / each.interval80[0] for each in own)
    assert found.interval80[1] / found.interval80[0] == pytest.approx(narrowest)
    note = on_device.columns_note(told)
    assert note.endswith("of other networks; nothing ran there.")
    beyond = found.model_copy(update={"outside": ("parameters",)})
    rows = [row.model_copy(update={"predicted": (beyond,)}) for row in told.artifacts]
    told = told.model_copy(update={"artifacts": tuple(rows)})
    assert on_device.columns_note(told).endswith("even the interval promises nothing.")
    assert on_device.columns(report) == [] and on_device.columns_note(report) == ""


def test_predicted_and_measured_points_look_different(report):
    both = with_predictions(report).model_copy(update={"phones": (phone(),)})
    drawn = traces(both)
    points = {
        trace["hovertemplate"].split("<br>", 1)[0]: trace["marker"]["symbol"]
        for trace in drawn
        if trace["mode"] == "markers"
    }
    said = [trace["hovertemplate"] for trace in drawn if trace["mode"] == "markers"]
    assert set(points.values()) == {"circle", "circle-open"}
    for trace in drawn:
        if trace["mode"] == "markers":
            hollow = trace["marker"]["symbol"] == "circle-open"
            assert ("predicted" in trace["hovertemplate"]) == hollow
            assert ("measured" in trace["hovertemplate"]) != hollow
    assert any("Pixel 8" in text for text in said)


def test_every_prediction_is_drawn_and_told_with_both_intervals(report):
    found = with_predictions(report)
    n = len(found.artifacts[0].predicted)
    drawn = traces(found)
    hollow = [t for t in drawn if t["mode"] == "markers" and "open" in t["marker"]["symbol"]]
    assert len(hollow) == n > 10
    rows = on_device.predicted_rows(found)
    assert len(rows) == n
    for row in rows:
        low80, high80 = map(float, row.interval80.split("–"))
        low95, high95 = map(float, row.interval95.split("–"))
        assert low95 < low80 < float(row.ms) < high80 < high95
    page, text = pages.to_html(found), pages.to_markdown(found)
    assert "All 14 predictions" in page and "nothing ran there" in page
    assert "Predicted for phones, not measured" in text
    assert "promise nothing" not in page


def test_a_network_unlike_all_others_is_told(report):
    small = workloads()["mobilenet_v2"].model_copy(update={"dense_macs": 100, "depthwise_macs": 9})
    found = with_predictions(report)
    rows = [
        row.model_copy(update={"predicted": tuple(predict(small, "fp32"))})
        for row in found.artifacts
    ]
    told = on_device.predicted_note(found.model_copy(update={"artifacts": tuple(rows)}))
    assert "in dense multiply-adds" in told and "promise nothing" in told


def test_only_the_runtimes_that_it_is_unlike_are_named():
    rows = predict(workloads()["resnet50"], "fp32")
    told = list(on_device.outside(rows))
    assert len(told) == 1 and "ncnn CPU" in told[0] and "onnxruntime" not in told[0]


def test_what_is_priced_is_looked_at():
    plain = workloads()["mobilenet_v2"]
    greedy = plain.model_copy(update={"peak_elements": 50 * plain.peak_elements})
    dense = plain.model_copy(update={"depthwise_macs": 20 * plain.depthwise_macs})
    assert not list(on_device.outside(predict(plain, "fp32")))
    assert "most memory at one time" in " ".join(on_device.outside(predict(greedy, "fp32")))
    assert "depthwise multiply-adds" in " ".join(on_device.outside(predict(dense, "fp32")))


def test_a_graph_that_cannot_be_counted_has_a_reason(report):
    (row,) = report.artifacts
    assert row.predicted == () and "onnx fp32" in row.unpredicted  # its file is a stand-in
    assert "Nothing is predicted: onnx fp32" in pages.to_html(report)


def test_what_a_phone_measured_is_on_both_pages(report):
    found = report.model_copy(update={"phones": (phone(),)})
    for page in (pages.to_html(found), pages.to_markdown(found)):
        plain = re.sub(r"<[^>]+>", " ", page)
        assert "Measured on Pixel 8, Android 14, Chrome 140" in plain
        for number in ("4.00", "9.00", "×1.50", "16 of 16", "90.00", "91.00"):
            assert number in plain, number
        assert "up to 1.50 times as long" in plain
    (last,) = [each for each in headline(found) if "fastest" in each.claim]
    wrong = measured(p50_ms=1.0, golden=(15, 16), golden_fault="03.png")
    coarse = measured(p50_ms=0.0)
    both = report.model_copy(update={"phones": (phone(wrong, coarse, measured()),)})
    assert on_device.finding(both).claim == last.claim  # neither wrong nor 0 ms is fastest
    assert last.claim == (
        "On Pixel 8, Android 14, Chrome 140 onnx fp32 is fastest (4.00 ms, wasm, 4 threads)."
    )


@pytest.mark.parametrize(
    ("parts", "title"),
    [
        (("Pixel 8", "Android 14", "Chrome 140"), "Pixel 8, Android 14, Chrome 140"),
        (("Linux device", "Linux", "Chromium 150"), "Linux device, Chromium 150"),
        (("iPad", "", "Safari 18"), "iPad, Safari 18"),
        (("iPad", "iPad", "iPad"), "iPad"),
    ],
)
def test_titles_say_nothing_twice(parts, title):
    names = dict(zip(("device", "system", "runtime"), parts, strict=True))
    assert on_device.phone_title(phone(**names)) == title


def test_wrong_answers_and_a_phone_that_left_are_warned_of(report):
    wrong = measured(golden=(15, 16), golden_fault="03.png: names 'bag', not 'boot'")
    left = phone(wrong, left="it went away after 1 of 6 measurements")
    found = report.model_copy(update={"phones": (left,)})
    assert any("did not answer the golden images" in line for line in warnings(found))
    assert "It went away after 1 of 6 measurements." in pages.to_html(found)
    assert not [each for each in headline(found) if "fastest" in each.claim]


def test_a_file_that_did_not_run_says_why(report):
    failed = PhoneFile(title="onnx fp32", sha256="a" * 64, how="WebGPU", skipped="no f16 <here>")
    found = report.model_copy(update={"phones": (phone(failed),)})
    assert "no f16 &lt;here&gt;" in pages.to_html(found)
    assert device_figures.sustained(found) is None


def test_names_from_phones_cannot_break_the_page(report):
    nasty = phone(device="<script>alert(1)</script>|`x`", facts=("<b>",))
    found = with_predictions(report).model_copy(update={"phones": (nasty,)})
    page = pages.to_html(found)
    assert "<script>alert(1)" not in page and "<b>" not in page.replace("<b>onnx", "")
    assert "<script>alert(1)" not in pages.to_markdown(found)


def test_figures_are_kept_and_found_again(report, tmp_path):
    phones.write(tmp_path, phone())
    phones.write(tmp_path, phone(measured("b" * 64), id="other"))
    (found,) = report.with_phones(tmp_path).phones
    assert found == phone()
    text = report.with_phones(tmp_path).to_json()
    (tmp_path / summary.FILE).write_text(text, encoding="utf-8")
    assert summary.read(tmp_path).phones == (phone(),)
