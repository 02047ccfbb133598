"""The pages: what they say, that they stand alone, and that user input cannot break them."""

import json
import re
import subprocess
import sys

import pytest
from plotly.offline import get_plotlyjs

from pipeline import answers, figures, summary, verdict
from pipeline.errors import StoreError
from pipeline.records import Measurement
from pipeline.stages import report as pages
from tests.small_run import (
    HASWELL,
    HOST,
    SmallRun,
    check,
    rescued,
    run_of_seeds,
    skipped,
    studied,
    studied_run,
    usual_run,
)

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return usual_run(tmp_path_factory.mktemp("records")).report()


@pytest.fixture(scope="module")
def whole_page(report):
    return pages.to_html(report)


@pytest.fixture(scope="module")
def page(whole_page):
    """Without plotly's own code."""
    return whole_page.replace(get_plotlyjs(), "")


def test_three_files_are_written_and_nothing_else(report, tmp_path):
    pages.write(report, tmp_path / "runs" / "quick")
    names = sorted(path.name for path in (tmp_path / "runs" / "quick").iterdir())
    assert names == ["report.html", "report.json", "report.md"]
    assert summary.read(tmp_path / "runs" / "quick") == report


def test_a_failed_write_leaves_the_old_report_and_no_rubbish(report, tmp_path):
    pages.write(report, tmp_path)
    before = (tmp_path / "report.json").read_text()
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()  # a file cannot be renamed over a folder
    with pytest.raises(OSError):
        pages.write(report.model_copy(update={"run": "other"}), tmp_path)
    assert (tmp_path / "report.json").read_text() == before
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_file_in_place_of_the_folder_is_named(report, tmp_path):
    (tmp_path / "quick").write_text("")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        pages.write(report, tmp_path / "quick")


def test_pages_are_functions_of_the_report(report, whole_page):
    assert pages.to_html(report) == whole_page
    assert pages.to_markdown(report) == pages.to_markdown(report)


def test_the_page_needs_no_network(page):
    assert not re.findall(r"""(?:src|href|action|data)\s*=\s*["']?[a-z]*:?//""", page)
    assert not re.findall(r"@import|url\(|<link|<iframe", page)
    pictures = re.findall(r"<img[^>]*>", page)
    assert pictures and all(' src="data:image/png;base64,' in picture for picture in pictures)


def test_plotly_is_inlined_whole(whole_page):
    assert whole_page.count(get_plotlyjs()) == 1


def minimal_report(**more):
    body = {
        "schema": 1,
        **{"run": "r", "date": "d", "command": "c", "labels": ["a"]},
        **{"seconds": {}, "environment": {}, "settings": {}, "models": [], "artifacts": []},
        "input": {"size": 8, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3},
        "dataset": {
            **{"source": "s", "licence": "l", "digest": "x", "test_digest": "y"},
            **{"train": 1, "val": 1, "test": 1},
        },
    }
    latency = {"profile": "p", "threads": 1, "host": "h", "n": 1, "warmup": 1, "first_ms": 1.0}
    latency |= {"p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": 1.0}
    row = {"key": "k", "format": "onnx", "precision": "fp32", "path": "bundle/a.onnx"}
    body["artifacts"] = [row | {"top1": 0.5, "top1_ci95": [0.1, 0.9], "n": 1, "latency": latency}]
    return summary.Report.model_validate_json(json.dumps(body | more))


def test_a_report_of_next_to_nothing_still_renders(tmp_path):
    for report in (minimal_report(), minimal_report(artifacts=[])):
        assert "The student was not measured." in pages.to_html(report)
        assert "The student was not measured." in pages.to_markdown(report)


def test_a_run_without_baseline_says_so(run):
    report = run.report(gain=None)
    report = report.model_copy(update={"models": (report.models[0], report.models[2])})
    page = pages.to_html(report)
    assert "The student reaches a top-1 of 91.67" in page
    assert "no baseline to compare it with" in page


PARTS = ("Calibration", "Layer by layer", "Layers kept in float", "On other CPUs")


def bars_of(report):
    """What is drawn of the layers."""
    figure = figures.layers(report)
    assert figure is not None
    return json.loads(str(figure.to_json()))


def losses_of(layers=3, **first):
    """The sensitivity of so many layers, the `first` of them changed."""
    found = studied(layers).sensitivity
    assert found is not None
    changed = (found.layers[0].model_copy(update=first), *found.layers[1:])
    return found.model_copy(update={"layers": changed})


def int8_section(page):
    return page.split("<h2>From float to int8</h2>")[1].split("</section>")[0]


def test_a_studied_int8_graph_has_all_its_parts(tmp_path):
    quantized = studied(24, rescue=rescued())
    page = pages.to_html(studied_run(tmp_path, check(HASWELL, 0.899), quantized=quantized).report())
    section = int8_section(page)
    assert re.findall("<h3>(.*?)</h3>", section) == list(PARTS)
    words = ("uint8 activations, int8 weights", "<td>−0.40</td>", "3 float islands, HardSigmoid:")
    for text in (*words, "node_Conv_810: the bias of 2", "In float: node_Conv_812, node_Conv_814."):
        assert text in section
    assert "These are the 20 of 24 layers" in section.replace("\u00a0", " ")
    table = section.split("All 24 layers, in the order of the network")[1].split("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(\d+)\. (\w+)', table)
    assert rows == [(str(i + 1), f"node_Conv_{810 + 2 * i}") for i in range(24)]
    assert "<small>float in the shipped file</small>" in table


def test_an_unstudied_int8_graph_has_no_empty_headings(page, report):
    section = int8_section(page)
    assert "<h3>" not in section and "<ul>" not in section and 'id="layers"' not in section
    assert "100.0 % of the multiply-adds" in section and "No float island" in section
    old = {"method": "minmax", "images": 512, "operators": {"QLinearConv": 52}}
    before = minimal_report(quantization=old)
    section = int8_section(pages.to_html(before))
    assert "minmax, 512 training images" in section and "QLinearConv 52" in section
    assert "<h3>" not in section and "<p" not in section and "u8s8" not in section
    markdown = pages.to_markdown(before).split("From float to int8")[1].split("</details>")[0]
    assert "\n| minmax" not in markdown and markdown.count("\n| :--") == 1
    for text in (pages.to_html(minimal_report()), pages.to_markdown(minimal_report())):
        assert "From float to int8" not in text


def test_markdown_tells_of_int8_in_tables(tmp_path):
    quantized = studied(24, rescue=rescued(), checks=(check(HASWELL, 0.8, scheme="u8u8"),))
    run = studied_run(tmp_path, check(HASWELL, 0.899), *skipped("arm64"), quantized=quantized)
    lines = pages.to_markdown(run.report()).splitlines()
    assert "| fine-tuned | 89.20 | +0.20 | 99.00 | kept |" in lines
    assert r"| 4. node\_Conv\_816 | +2.25 | 89.00 | 0.040 |" in lines
    assert sum(re.match(r"\| \d+\. node", line) is not None for line in lines) == 5
    told = [line for line in lines if line.startswith("| emulated x86 without VNNI")]
    assert len(told) == 1 and told[0].endswith("| u8s8 | 0.10 | 0.30 | 89.90 | 90.00 | 1,000 |")
    assert any(line.startswith("onnx int8 was not tried on arm64: not fetch") for line in lines)


def test_names_of_layers_are_escaped(tmp_path):
    mix = rescued().model_copy(update={"float_layers": (EVIL,)})
    facts = {"sensitivity": losses_of(layer=EVIL), "rescue": mix, "notes": (EVIL,)}
    shot = check(f"{EVIL} (qemu)", 0.1)
    page = pages.to_html(studied_run(tmp_path, shot, quantized=studied(**facts)).report())
    assert EVIL not in page and page.count("</script>") == 3
    assert int8_section(page).count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4


def test_user_input_is_escaped(tmp_path):
    run = usual_run(tmp_path / "records", labels=("boot", EVIL, "a|b"))
    run.dataset = run.dataset.model_copy(update={"source": f"{EVIL} from disk"})
    report = run.report(run=EVIL, command=f"python -m pipeline run {EVIL}", settings={EVIL: EVIL})
    page = pages.to_html(report)
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    markdown = pages.to_markdown(report.model_copy(update={"run": "a|b <b>`x`"}))
    assert markdown.splitlines()[0] == r"## a\|b \<b\>\`x\`"


def test_markup_in_a_variant_stays_text_in_the_figure(run):
    run.add_artifact("onnx", "fp16", 9, run.artifacts[0][1], variant=EVIL)
    page = pages.to_html(run.report())
    assert EVIL not in page
    assert page.count("</script>") == 3  # plotly.js and our two, each ended once


def test_the_answer_comes_first(page):
    section = page.split("<h2>What to ship</h2>")[1].split("</section>")[0]
    text = re.sub(r"<[^>]+>", "", section).replace("\u00a0", " ")
    assert re.findall("<dt>(.*?)</dt>", section) == ["Android CPU", "iOS", "NVIDIA", "Browser"]
    assert "onnx int8 bundle/onnx-int8.bin The fastest on this host of 2 onnx files" in text
    assert "coreml fp16 was exported, not run here, so unverified: needs macOS." in text
    assert "tensorrt int8: needs a GPU to build." in text
    assert "Distillation gained 2.50 points of top-1." in text
    assert "91.67 % against 89.17 % for the same network trained alone" in text
    assert "Against fp32, onnx int8 is 2.3× as fast (no interval), 3.7× smaller and" in text


def test_both_pages_say_what_was_chosen_by_the_test_images(page, report):
    for text in (page, pages.to_markdown(report)):
        assert "1,200 test images" in text and "the files to ship were chosen by them" in text
        assert "no choice was made" not in text and "touched once" not in text


def test_both_pages_set_the_gain_beside_student_teacher_and_seeds(tmp_path):
    report = run_of_seeds(tmp_path).report()
    for page in (pages.to_html(report), pages.to_markdown(report).replace("\\", "")):
        text = page.replace("\u00a0", " ")
        assert "mobilenet_v2, 2.24 M parameters, 6.50 M MACs; teacher 95.00 %." in text
        assert "Over 3 seeds: mean gain +2.50 points, 95 % interval +1.26 to +3.74" in text
        assert "every file, are of seed 0: the first named, not the best." in text
    table = pages.to_html(report).split("<h3>Over seeds</h3>")[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows[1:]]
    assert [tuple(row) for row in cells] == verdict.seed_rows(report)
    assert (
        "| mean | 89.22 (88.98–89.46) | 91.72 (90.27–93.18) | +2.50 | +1.26 to +3.74 |"
        in pages.to_markdown(report).splitlines()
    )


def test_one_seed_has_no_table_of_seeds(page, report):
    assert "Over seeds" not in page and "| Seed |" not in pages.to_markdown(report)


def test_both_pages_show_loss_and_validation_of_the_training(page, report):
    table = page.split('aria-label="Validation top-1 and training loss by epoch">')[1]
    second = re.findall(r'<tr><th scope="row">2</th>(.*?)</tr>', table)[0]
    assert re.findall(r"<td>(.*?)</td>", second) == ["75.00", "0.500"] * 3
    network = r"mobilenet\_v2, 2.24 M parameters, 6.50 M MACs"
    line = f"| teacher | {network} | 3 | 1.00 | 0.333 | 50.00 | 83.33 |"
    effort = "2,500 images/s, at most 810 MB"
    assert f"{line} {effort} |" in pages.to_markdown(report).splitlines()
    assert f"Teacher: {effort}; " in " ".join(page.split())


def test_every_row_is_in_the_table_and_skipped_ones_say_why(page, report):
    table = page.split("Networks and files</h2>")[1].split("</section>")[0]
    for row in report.artifacts:
        assert row.title in table
    assert "needs macOS" in table
    assert "needs a GPU to build" in table
    assert "<small>89.97–93.10</small>" in table  # Wilson's interval of 1100 / 1200
    assert HOST in table and "profile phone-1t, 1 thread" in table


def test_what_is_needed_to_repeat_it_is_there(page, report):
    tail = page.split("To repeat it</h2>")[1]
    for text in (report.command, report.dataset.digest, "ab" * 32, "distill.temperature"):
        assert text in tail
    assert "2.14.1" in tail
    assert "coremltools" not in tail  # not installed: not a fact about this run


def test_both_pages_say_what_each_kind_of_file_takes(run):
    report = run.report()
    for page in (pages.to_html(report), pages.to_markdown(report).replace("\\", "")):
        assert "Files for ONNX Runtime take uint8 images [batch, 8, 8, 1]" in page
        assert "The Core ML files take an image" in page
    without = report.model_copy(update={"artifacts": report.artifacts[:2]})
    for page in (pages.to_html(without), pages.to_markdown(without)):
        assert "Core ML" not in page.replace(get_plotlyjs(), "")


def test_the_curves_say_that_the_last_epoch_is_kept(page):
    caption = page.split('id="curves"')[1].split("</figcaption>")[0]
    assert "it chooses nothing, and the network after the last epoch is kept" in caption


def test_markdown_repeats_the_command_to_the_letter(report):
    command = "python -m pipeline run 'two  spaces.toml' --set 'name=\na'"
    lines = pages.to_markdown(report.model_copy(update={"command": command})).splitlines()
    at = lines.index("    python -m pipeline run 'two  spaces.toml' --set 'name=")
    assert lines[at + 1] == "    a'"


def test_the_curves_hold_the_numbers(report):
    curves, losses = figures.curves(report), figures.losses(report)
    assert curves is not None and losses is not None
    lines = json.loads(str(curves.to_json()))["data"]
    assert [trace["name"] for trace in lines] == ["teacher", "baseline", "student"]
    assert lines[0]["y"] == pytest.approx([50.0, 75.0, 100 * (1 - 0.5 / 3)])
    assert json.loads(str(losses.to_json()))["data"][2]["y"] == pytest.approx([1, 1 / 2, 1 / 3])


def test_bars_show_the_layers_that_gain_most(tmp_path):
    losses = losses_of(24)
    report = studied_run(tmp_path, quantized=studied(24, rescue=rescued())).report()
    figure = bars_of(report)
    bars = figure["data"][0]
    gains = sorted((each.snr_db - losses.int8_snr_db for each in losses.layers), reverse=True)
    assert bars["x"] == pytest.approx(gains[:20])
    colors = dict(zip(figure["layout"]["yaxis"]["ticktext"], bars["marker"]["color"], strict=True))
    assert colors["node_Conv_812"] == figures.BLUE and colors["node_Conv_816"] == figures.ORANGE
    assert "layer 4 of the network, 0.040 M MACs" in bars["hovertext"][0]
    assert figures.layers(usual_run(tmp_path / "b").report()) is None


def test_a_layer_without_any_noise_has_no_bar(tmp_path):
    quantized = studied(sensitivity=losses_of(snr_db=float("inf")))
    assert len(bars_of(studied_run(tmp_path, quantized=quantized).report())["data"][0]["x"]) == 2


def test_classes_that_int8_loses_most_come_first(report):
    rows = answers.class_rows(report)
    changes = [row.change for row in rows if row.change is not None]
    assert len(changes) == 3 and changes == sorted(changes)
    assert sum(row.n or 0 for row in rows) == 1200


def test_a_long_run_has_a_short_table(tmp_path):
    run = SmallRun(tmp_path)
    run.add_model("baseline", 130, 9.0)
    run.add_model("student", 100, 9.0, epochs=240)
    rows = pages.curve_rows(run.report())
    assert len(rows) <= 41
    assert rows[0][0] == 1 and rows[-1][0] == 240
    assert rows[-1][1][0] is None  # the baseline had stopped after 3


def test_many_classes_are_folded_away(tmp_path):
    labels = tuple(f"kind {i}" for i in range(30))
    page = pages.to_html(usual_run(tmp_path, labels=labels).report())
    assert "The other 10 classes" in page
    assert all(f">{label}</th>" in page for label in labels)


def test_a_network_that_was_not_measured_says_why(run):
    checkpoint, _ = run.models[0]
    run.models[0] = (checkpoint, Measurement(skipped="out of memory"))
    assert "<span>out of memory</span>" in pages.to_html(run.report())


def test_nothing_here_imports_torch():
    code = "import sys, pipeline.stages.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
