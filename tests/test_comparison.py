"""Runs side by side: the facts against the statistics they rest on, every rendering, bad input."""

import base64
import json
import re

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console
from scipy.stats import binomtest

from benchmarks.stats import BELIEVED, holm, paired_bootstrap, paired_difference, unpaired_interval
from pipeline import tables
from pipeline.comparison import build, cells, pages, words
from pipeline.comparison.build import Comparison, compare
from pipeline.comparison.facts import Change
from pipeline.errors import StoreError
from pipeline.stages import report as reports_pages
from pipeline.summary import Report
from pipeline.templating import escape_markdown
from pipeline.wording import percent
from tests.small_run import HOST, SmallRun, usual_run

WIDTH = 100
ELSEWHERE = "Another CPU, 8 cores, aarch64"
EVIL = "<script>alert(1)</script>"


def printed(found: Comparison) -> str:
    console = Console(width=WIDTH, record=True, color_system=None, quiet=False)
    with console.capture() as capture:
        console.print(tables.compare(found))
    return capture.get()


def rows_of(text: str, name: str) -> list[list[str]]:
    return [line.split()[len(name.split()) :] for line in text.splitlines() if f" {name} " in line]


def renderings(found: Comparison) -> list[str]:
    """Terminal, Markdown and HTML as running text."""
    texts = (printed(found), pages.to_markdown(found).replace("\\", ""), pages.to_html(found))
    return [" ".join(text.replace("\u00a0", " ").split()) for text in texts]


def changed(report: Report, title: str, **fields) -> Report:
    """`report` with other fields of the row called `title`; `latency` as a dict of its fields."""

    def moved(row):
        if row.title != title:
            return row
        more = dict(fields)
        if isinstance(more.get("latency"), dict):
            more["latency"] = row.latency.model_copy(update=more["latency"])
        return row.model_copy(update=more)

    models, files = (tuple(map(moved, rows)) for rows in (report.models, report.artifacts))
    return report.model_copy(update={"models": models, "artifacts": files})


def row(found: Comparison, title: str, pair: int = 0):
    return next(each for each in found.pairs[pair].rows if each.title == title)


def change_of(found: Comparison, title: str) -> Change:
    change = row(found, title).top1
    assert change is not None
    return change


@pytest.fixture
def other(tmp_path):
    """A second run over the same test images: another student, int8 file and other settings."""
    run = usual_run(tmp_path / "b", seed=1)
    checkpoint, _ = run.models[2]
    student = run.logits(70)
    run.models[2] = (checkpoint, run.measured("student", student, 9.0))
    artifact, _, place = run.artifacts[1]
    run.artifacts[1] = (
        artifact.model_copy(update={"sha256": "cd" * 32, "bytes": 1_800_000}),
        run.measured("b", run.logits(0, base=student, flips=6), 1.3, student),
        place,
    )
    return run.report(run="second", settings={"seed": 1, "distill": {"temperature": 2.0}})


# ---- facts ----


def test_differences_are_those_of_the_paired_statistics(report, other):
    found = change_of(compare([report, other]), "student (PyTorch)")
    a, b = (each.model("student").correctness() for each in (report, other))
    expected = paired_difference(a, b)
    assert found.paired and found.difference == pytest.approx(30 / 1200)
    assert found.ci95 == expected.ci95
    # of the first 100 images, which A names wrongly, B names 30 rightly, and no other way round
    assert (found.only_a, found.only_b) == (0, 30)
    assert found.mcnemar_p == pytest.approx(binomtest(30, 30).pvalue) == pytest.approx(2**-29)
    assert found.bootstrap_ci95 == paired_bootstrap(0, 30, 1200)


def test_the_same_reports_give_the_same_figures_and_json_holds_them_all(report, other):
    found = compare([report, other])
    assert compare([report, other]).to_json() == found.to_json()
    assert Comparison.model_validate_json(found.to_json()) == found


def test_json_has_the_golden_shape(report, other):
    body = json.loads(compare([report, other]).to_json())
    assert set(body) == {"schema", "across_hosts", "pairs", "leaderboard"}
    assert body["schema"] == 1 and body["leaderboard"] == []
    (pair,) = body["pairs"]
    names = {"a", "b", "same_images", "rows", "only_a", "only_b", "differs", "shipped"}
    assert set(pair) == names
    assert [each["title"] for each in pair["rows"]] == [each.title for each in report.rows]
    int8 = pair["rows"][4]
    assert set(int8) == {
        *("title", "role", "same_file", "a", "b", "top1", "latency", "faster", "load", "memory"),
        *("size", "apart", "runtimes"),
    }
    assert pair["shipped"] == int8 and int8["role"] is None
    assert [each["role"] for each in pair["rows"][:3]] == ["teacher", "baseline", "student"]
    assert set(int8["top1"]) == {
        *("difference", "ci95", "paired", "mcnemar_p", "only_a", "only_b", "bootstrap_ci95"),
    }
    assert int8["size"] == {"value": 0.75, "ci95": None, "why": None, "refused": False}
    assert int8["memory"]["value"] == int8["load"]["value"] == 1.0
    coreml = pair["rows"][5]
    assert coreml["top1"] is None
    assert coreml["latency"]["why"] == (
        "not measured in the first: needs macOS; not measured in the second: needs macOS"
    )


def test_ratios_of_p50_have_the_interval_of_both(report, other):
    def timed(found, share):
        p50 = next(each for each in found.artifacts if each.title == "onnx fp32").latency.p50_ms
        return changed(found, "onnx fp32", latency={"p50_ci95": (p50 / share, p50 * share)})

    found = compare([timed(report, 1.03), timed(other, 1.04)])
    # Where both p50 are the same: exp of the root of log² 1.03 and log² 1.04, 1.050.
    assert row(found, "onnx fp32").latency.ci95 == pytest.approx((0.9522, 1.0502), abs=5e-4)
    assert row(found, "onnx int8").latency.ci95 is None
    for text in renderings(found):
        assert "0.95–1.05" in text and "time files in turn" in text
        assert "Where a p50 has no interval of its own, its ratio has none." in text


def test_what_differs_is_named_but_not_the_runs_name(report, other):
    report = report.model_copy(update={"settings": {"name": "a", **report.settings}})
    differs = {each.name: (each.a, each.b) for each in compare([report, other]).pairs[0].differs}
    assert differs == {
        "seed": ("0", "1"),
        "distill.temperature": ("4.0", "2.0"),
        "distill.loss": ("kd", None),
    }


def test_only_the_rows_of_both_are_compared(run, report):
    run.add_artifact("ort", "fp32", 10, run.artifacts[0][1])
    found = compare([report, run.report(run="more")])
    assert found.pairs[0].only_b == ("ort fp32",) and found.pairs[0].only_a == ()
    for text in renderings(found):
        assert "Only in B: ort fp32." in text and "Only in A" not in text
        assert "ettings, data and versions" in text and "equal" in text


def test_the_answer_speaks_of_the_file_to_ship(report, other):
    claim, evidence = words.headline(compare([report, other]).pairs[0])
    assert re.match(
        r"onnx int8 of second against that of quick: 2\.\d\d points more accurate", claim
    )
    assert claim.endswith("no certain difference in speed, 0.75× the size.")
    assert "paired over 1,200 test images" in evidence and "(McNemar p < 0.0001)" in evidence
    same = compare([report, changed(report, "onnx int8", load_ms=13.0)])
    assert "are the same file, byte for byte." in words.headline(same.pairs[0]).claim
    none = changed(report, "onnx int8", sha256="x")
    claim = words.headline(compare([report, none]).pairs[0]).claim
    assert "no certain difference in accuracy" in claim and claim.endswith("the same size.")


def of_speed(report: Report, other: Report, p50: float, share: float | None) -> str:
    """The headline where the shipped file takes 1.3 ms, and that of `other` `p50`, each within a
    factor of `share`."""

    def timed(found, ms):
        ends = share and (ms / share, ms * share)
        return changed(found, "onnx int8", latency={"p50_ms": ms, "p50_ci95": ends})

    return words.headline(compare([timed(report, 1.3), timed(other, p50)]).pairs[0]).claim


def test_a_drift_of_the_host_is_no_difference_in_speed(report, other):
    """Two runs time the same file differently, however narrow their intervals."""
    for ratio in (0.94, 1.05, 1.08):
        claim = of_speed(report, other, 1.3 * ratio, 1.001)
        assert "accurate, no certain difference in speed, " in claim
        assert claim.split(", ")[1] == of_speed(report, other, 1.3 * ratio, None).split(", ")[1]
    assert "accurate, takes 1.2× as long, 0.75×" in of_speed(report, other, 1.56, 1.02)
    assert "accurate, 1.5× as fast, 0.75×" in of_speed(report, other, 1.3 / 1.5, 1.02)
    # its interval reaches into the drift
    assert "no certain difference in speed" in of_speed(report, other, 1.56, 1.08)
    for text in renderings(compare([report, other])):
        assert "from 0.87 to 1.15 is taken for no difference" in text and "in_turn = true" in text


def test_without_intervals_four_times_as_long_is_told_and_that_there_are_none(report, other):
    assert "takes 4.0× as long (no interval), " in of_speed(report, other, 5.2, None)
    assert "accurate, 4.0× as fast (no interval), " in of_speed(report, other, 1.3 / 4, None)


def of_files(report: Report, *titles: str) -> Report:
    """`report` with those of its files alone."""
    kept = tuple(each for each in report.artifacts if each.title in titles)
    return report.model_copy(update={"artifacts": kept})


def test_files_to_ship_of_different_kinds_are_set_side_by_side(report, other):
    one, two = of_files(report, "onnx fp32"), of_files(other, "onnx int8")
    pair = compare([one, two]).pairs[0]
    assert (pair.a.ships, pair.b.ships) == ("onnx fp32", "onnx int8") and pair.lead is pair.shipped
    claim, evidence = words.headline(pair)
    assert claim.startswith(
        "onnx int8 of second against onnx fp32 of quick, the files that they ship, of different "
        "kinds: "
    )
    a, b = one.artifacts[0].correctness(), two.artifacts[0].correctness()
    assert a is not None and b is not None
    expected = paired_difference(a, b)
    top1 = pair.shipped and pair.shipped.top1
    assert top1 and top1.ci95 == expected.ci95 and top1.only_b == expected.only_b
    assert "takes" not in claim and "2.3× as fast (no interval)" in claim
    assert "p50 1.30 against 3.00 ms" in evidence
    for text in renderings(compare([one, two])):
        assert "teacher (PyTorch) of" not in text and "of different kinds" in text
    noisy = changed(two, "onnx int8", latency={"noisy": "busy"})
    assert words.doubts(compare([one, noisy])) == ["The host was too noisy to time onnx int8 of B."]
    elsewhere = changed(two, "onnx int8", latency={"host": ELSEWHERE})
    (doubt,) = words.doubts(compare([one, elsewhere]))
    assert doubt.endswith("(onnx int8 against onnx fp32).")


def test_where_one_ships_nothing_the_headline_has_a_stand_in_but_never_the_teacher(report, other):
    unlike = report.artifacts[1].parity.model_copy(update={"max_abs_diff": None})
    faulty = report
    for title in ("onnx fp32", "onnx int8"):
        faulty = changed(faulty, title, parity=unlike)
    pair = compare([faulty, other]).pairs[0]
    claim, evidence = words.headline(pair)
    assert pair.a.ships is None and claim.startswith("onnx int8 of second against that of quick: ")
    assert evidence.startswith(
        "A stand-in, as quick has no file to ship: the most accurate file that both have. Top-1 "
    )
    claim, evidence = words.headline(compare([of_files(report), other]).pairs[0])
    assert claim.startswith("student (PyTorch) of second against that of quick: ")
    assert evidence.startswith("A stand-in, as quick has no file to ship: the student. ")
    teachers = tuple(each for each in other.models if each.role == "teacher")
    bare = of_files(other).model_copy(update={"models": teachers})
    assert words.headline(compare([report, bare]).pairs[0]).claim == (
        "quick and second have no file or student whose accuracy both measured."
    )


def test_runs_of_one_name_are_told_apart_by_their_letters(report, other):
    twin = other.model_copy(update={"run": "quick"})
    assert words.headline(compare([report, twin]).pairs[0]).claim.startswith(
        "onnx int8 of B against that of A: "
    )
    found = compare([report, other, twin])
    claims = [words.headline(pair).claim for pair in found.pairs]
    assert claims[0].startswith("onnx int8 of second against that of A: ")
    assert claims[1].startswith("onnx int8 of C against that of A: ")
    assert "Top-1 of C minus that of A, with" in pages.to_html(found)
    moved = twin.model_copy(update={"labels": report.labels[::-1], "date": "2026-02-03"})
    with pytest.raises(StoreError, match="'quick' of 2026-02-03 and 'quick' of 2026-01-02"):
        compare([report, moved])


def test_a_difference_is_claimed_only_where_interval_and_test_agree(report, other):
    found = change_of(compare([report, other]), "student (PyTorch)")
    assert found.certain
    # 35 against 20 of 10,000: the interval leaves zero out, and the exact test gives 0.058
    a, b = np.ones(10_000, dtype=bool), np.ones(10_000, dtype=bool)
    a[:35], b[35:55] = False, False
    test = paired_difference(a, b)
    assert test.ci95[0] > 0 and test.mcnemar_p == pytest.approx(binomtest(20, 55).pvalue)
    assert test.mcnemar_p > 0.05
    doubtful = found.model_copy(update={"ci95": test.ci95, "mcnemar_p": test.mcnemar_p})
    assert not doubtful.certain
    assert not found.model_copy(update={"ci95": (-0.01, 0.05)}).certain


# ---- what is doubtful or refused ----


def test_other_test_images_are_compared_unpaired_and_that_is_said(report, other):
    dataset = other.dataset.model_copy(update={"test_digest": "another"})
    found = compare([report, other.model_copy(update={"dataset": dataset})])
    loose = change_of(found, "student (PyTorch)")
    assert not loose.paired and loose.mcnemar_p is None and loose.bootstrap_ci95 is None
    assert loose.ci95 == unpaired_interval(1100 / 1200, 1200, 1130 / 1200, 1200)
    for text in renderings(found):
        assert (
            "A and B were tested on different images (A: 1,200 of three kinds of things; " in text
        )
        assert "the test images differ" in text and "Newcombe’s" in text
        assert "unpaired (1,200 and 1,200 test images)" in text


def test_answers_that_were_not_kept_leave_it_unpaired(report, other):
    found = compare([report, changed(other, "student (PyTorch)", correct=None)])
    assert not change_of(found, "student (PyTorch)").paired
    assert change_of(found, "onnx int8").paired
    notes = words.notes(found.pairs[0])
    assert "Differences are unpaired (student (PyTorch)): answers were not kept." in notes
    fewer = compare([report, changed(other, "student (PyTorch)", n=1100)])
    assert (
        "Differences are unpaired (student (PyTorch)): the numbers of test images differ."
        in words.notes(fewer.pairs[0])
    )


def test_times_of_different_hosts_are_refused_unless_asked_for(tmp_path, report):
    elsewhere = usual_run(tmp_path / "c", host=ELSEWHERE).report(run="far")
    found = compare([report, elsewhere])
    why = f"measured on different hosts: {HOST} / {ELSEWHERE}"
    for each in ("latency", "load", "memory"):
        ratio = getattr(row(found, "onnx fp32"), each)
        assert ratio.value is None and ratio.why == why and ratio.refused
    assert row(found, "onnx fp32").size.value == 1.0
    for text in renderings(found):
        assert f"Latencies of A and B are not compared, nor load times and memory: {why}." in text
    assert rows_of(printed(found), "onnx fp32")[1] == [
        *("3.00", "3.00", "refused", "–", "refused", "refused", "1.00×")
    ]
    forced = compare([report, elsewhere], across_hosts=True)
    assert forced.across_hosts and row(forced, "onnx fp32").latency.value == 1.0
    for text in renderings(forced):
        assert f"are compared as --across-hosts asks, though {why}." in text
        assert "not compared" not in text and "refused" not in text


def test_times_of_different_profiles_are_refused_row_by_row(report):
    other = changed(report, "onnx fp32", latency={"profile": "phone-4t", "threads": 4})
    found = compare([report, other])
    assert row(found, "onnx fp32").latency.value is None
    assert "phone-1t, 1 thread / phone-4t, 4 threads" in str(row(found, "onnx fp32").latency.why)
    assert row(found, "onnx int8").latency.value == 1.0
    (doubt,) = words.doubts(found)
    assert doubt.endswith("(onnx fp32).")


def test_memory_in_different_runtimes_is_refused_unless_asked_for(report):
    other = changed(report, "onnx fp32", evaluated_with="onnxruntime 1.31.0")
    found = compare([report, other])
    ratios = row(found, "onnx fp32")
    why = "measured in different runtimes: onnxruntime 1.32.0 / onnxruntime 1.31.0"
    assert ratios.memory.why == why and ratios.latency.value == ratios.load.value == 1.0
    assert words.doubts(found) == [f"Peak memory of A and B is not compared: {why} (onnx fp32)."]
    forced = compare([report, other], across_hosts=True)
    assert row(forced, "onnx fp32").memory.value == 1.0
    assert "as --across-hosts asks" in words.doubts(forced)[0]


def test_a_noisy_host_is_told(report):
    other = changed(report, "onnx fp32", latency={"noisy": "preempted"})
    assert words.doubts(compare([report, other])) == [
        "The host was too noisy to time onnx fp32 of B."
    ]


def test_inputs_of_another_size_are_told(report, other):
    taken = other.input.model_copy(update={"size": 16, "channels": 3})
    found = compare([report, other.model_copy(update={"input": taken})])
    assert (
        "A and B take different images: 8 × 8 pixels, grey and 16 × 16 pixels, RGB."
        in words.doubts(found)
    )
    assert {"input.size", "input.channels"} <= {each.name for each in found.pairs[0].differs}


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            ("shirt", "boot", "hat"),
            "only 'quick' (three kinds of things) has 'bag'; only 'second' ",
        ),
        (("shirt", "boot"), "only 'quick' (three kinds of things) has 'bag'"),
        (("boot", "shirt", "bag"), "the order differs, of 'shirt' (0 and 1), 'boot' (1 and 0)"),
    ],
)
def test_other_labels_or_another_order_are_refused(report, other, labels, told):
    with pytest.raises(StoreError, match="do not name the same classes") as caught:
        compare([report, other.model_copy(update={"labels": labels})])
    assert told in caught.value.message and "same order" in caught.value.remedy


def test_of_a_thousand_labels_a_few_are_named(tmp_path):
    labels = tuple(f"kind {i}" for i in range(1000))
    a = usual_run(tmp_path / "a", labels=labels).report()
    b = a.model_copy(update={"run": "other", "labels": (*labels[1:], labels[0])})
    with pytest.raises(StoreError) as caught:
        compare([a, b])
    assert "and 997 more" in caught.value.message and len(caught.value.message) < 250


def test_one_run_twice_or_alone_is_refused(report, other):
    with pytest.raises(StoreError, match=r"'quick' of .* is named twice"):
        compare([report, other, report.model_copy()])
    with pytest.raises(StoreError, match="two runs at least"):
        compare([report])


def test_no_disagreement_at_all_has_an_honest_interval(report):
    found = compare([report, report.model_copy(update={"run": "again"})])
    change = change_of(found, "onnx int8")
    assert (change.difference, change.mcnemar_p, change.only_a, change.only_b) == (0, 1, 0, 0)
    assert change.bootstrap_ci95 is None
    half = 1.959963984540054 * np.sqrt(2) / 1202  # Bonett & Price by hand: (0 + 1) twice
    assert change.ci95 == pytest.approx((-half, half))
    for text in renderings(found):
        assert "the two never disagree p is 1 and there is nothing to resample" in text


def test_one_image(tmp_path):
    def of_one(name, wrong):
        run = SmallRun(tmp_path / name, n=1)
        student = run.add_model("student", wrong, 9.0)
        found = run.measured("a", student, 3.0, student)
        run.add_artifact("onnx", "fp32", 900, found, sha256=name)
        return run.report(run=name)

    found = compare([of_one("a", 1), of_one("b", 0)])
    change = change_of(found, "onnx fp32")
    assert change.difference == 1 and change.mcnemar_p == 1 and change.bootstrap_ci95 is None
    assert change.ci95[0] < 0 < change.ci95[1] <= 1
    assert "no certain difference in accuracy" in words.headline(found.pairs[0]).claim
    for text in renderings(found):
        assert "Only 1 test image: every accuracy of A and B is uncertain" in text


def test_what_was_not_measured_says_why(report, other):
    bare = changed(
        other, "onnx fp32", top1=None, top1_ci95=None, latency=None, load_ms=None, skipped="no time"
    )
    found = compare([report, bare])
    for text in renderings(found):
        assert "onnx fp32: in B no top-1 or latency: no time" in text
        assert "coreml fp16: in A and B no top-1 or latency: needs macOS" in text
    assert words.headline(found.pairs[0]).claim.startswith("onnx int8")


def test_runs_without_any_common_row_are_told_apart(report, tmp_path):
    run = SmallRun(tmp_path / "c")
    run.add_artifact("ort", "fp32", 10, run.measured("a", run.logits(9), 3.0))
    found = compare([report, run.report(run="bare")])
    for text in renderings(found):
        assert "ort fp32 of bare against onnx int8 of quick, the files that they ship" in text
        assert "Only in B: ort fp32." in text


def test_reports_from_before_there_were_intervals_are_compared(report, other):
    body = json.loads(report.to_json())
    body["gain"] = {name: body["gain"][name] for name in ("difference", "ci95", "mcnemar_p", "n")}
    for name in ("seeds", "phones", "gain_over_seeds"):
        del body[name]
    for each in (*body["models"], *body["artifacts"]):
        for name in ("correct", "class_top1", "load_ms", "peak_rss_bytes", "cpus", "predicted"):
            each.pop(name, None)
        if each["latency"]:
            keep = ("profile", "threads", "host", "p50_ms", "p90_ms", "p99_ms", "n", "warmup")
            each["latency"] = {name: each["latency"][name] for name in (*keep, "first_ms")}
    found = compare([Report.model_validate_json(json.dumps(body)), other])
    student = change_of(found, "student (PyTorch)")
    assert student.difference == pytest.approx(30 / 1200) and not student.paired
    assert row(found, "onnx fp32").latency.value == 1.0
    assert row(found, "onnx fp32").load.why == "not measured in the first: no reason given"
    assert all("answers were not kept" in text for text in renderings(found))


# ---- renderings ----


def test_the_table_fits_a_hundred_columns(report, other):
    wide = usual_wide(report, other)
    text = printed(compare(wide))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "…" not in text
    cells_of = rows_of(text, "student (PyTorch)")[0]
    assert cells_of[:3] == ["91.67", "94.17", "+2.50"]
    assert "A = quick" in text and "C = third" in text


def usual_wide(report, other):
    """Three runs with a row of the longest title, uncertain accuracies and slow latencies."""
    found = []
    for i, each in enumerate((report, other, report.model_copy(update={"run": "third"}))):
        last = each.artifacts[1].model_copy(
            update={
                **{"format": "tensorrt_rtx", "variant": "symmetric", "bytes": 123_456_789 + i},
                "latency": each.artifacts[1].latency.model_copy(update={"p50_ms": 1234.5}),
            }
        )
        found.append(each.model_copy(update={"artifacts": (*each.artifacts, last)}))
    return found


def test_markdown_has_the_golden_shape(report, other):
    lines = pages.to_markdown(compare([report, other])).splitlines()
    assert lines[0] == "## A = quick, B = second"
    assert lines[2].startswith("**onnx int8 of second against that of quick: 2.")
    at = lines.index("### B against A")
    assert lines[at + 2 : at + 6] == [
        "| Run | | Date | Images | Test images |",
        "| :-- | :-- | :-- | :-- | --: |",
        "| A | quick | 2026-01-02T03:04:05+00:00 | three kinds of things | 1,200 |",
        "| B | second | 2026-01-02T03:04:05+00:00 | three kinds of things | 1,200 |",
    ]
    at = lines.index("|  | A % | B % | B − A | 95 % interval | bootstrap | A / B alone | p |")
    assert lines[at + 1] == "| :-- | --: | --: | --: | --: | --: | --: | --: |"
    assert lines[at + 2] == (
        "| teacher (PyTorch) | 95.00 | 95.00 | 0.00 | −0.23 to +0.23 | – | 0 / 0 | 1 |"
    )
    assert re.fullmatch(
        r"\| student \(PyTorch\) \| 91\.67 \| 94\.17 \| \+2\.50 \| \+1\.5\d to \+3\.4\d "
        r"\| \+1\.\d\d to \+3\.\d\d \| 0 / 30 \| \\< 0\.0001 \|",
        lines[at + 4],
    )
    at = lines.index("|  | A ms | B ms | p50 B/A | 95 % | load B/A | memory B/A | size B/A |")
    assert lines[at + 5] == "| onnx fp32 | 3.00 | 3.00 | 1.00× | – | 1.00× | 1.00× | 1.00× |"
    assert "| distill.temperature | 4.0 | 2.0 |" in lines and "| distill.loss | kd | – |" in lines
    assert lines[-1].endswith("1 MB is 10^6 bytes.")
    assert "\n\n\n" not in "\n".join(lines)


def test_the_page_is_one_file_with_its_plots_once(report, other):
    found = compare(usual_wide(report, other))
    page = pages.to_html(found)
    assert "http" not in page.replace(get_plotlyjs(), "")
    assert page.count("<script>") == 2 and page.count("</script>") == 2
    assert page.count('class="plot"') == 2 and "prefers-color-scheme: dark" in page
    for pair in found.pairs:
        assert f'Plotly.newPlot("moved-{pair.b.letter}"' in page


def test_the_figure_holds_the_numbers(report, other):
    both = compare([report, other])
    found = both.pairs[0]
    drawn = pages.moved(found)
    assert drawn is not None
    trace = json.loads(str(drawn.to_json()))["data"][0]
    assert trace["x"] == pytest.approx(
        [100 * each.top1.difference for each in found.rows if each.top1]
    )
    low, high = change_of(both, "student (PyTorch)").ci95
    assert trace["error_x"]["array"][2] == pytest.approx(100 * high - 2.5)
    assert trace["error_x"]["arrayminus"][2] == pytest.approx(2.5 - 100 * low)
    assert trace["marker"]["color"][:3] == ["#7f868f", "#7f868f", "#3b7dd8"]


def test_markup_in_names_stays_text_everywhere(tmp_path):
    def evil(name, **more):
        run = usual_run(tmp_path / name, labels=(EVIL, "[red]boot[/red]", "a|b"), host=EVIL, **more)
        run.add_artifact("onnx", "fp16", 9, run.artifacts[0][1], variant=f"{EVIL}[bold]x[/bold]")
        return run.report(run=f"{EVIL}[red]{name}[/red]", settings={"k|": f"`{EVIL}` {name}"})

    reports = [evil("a"), evil("b", seed=1), evil("c", seed=2)]
    found = compare(reports)
    page = pages.to_html(found)
    assert EVIL not in page and page.count("</script>") == 2
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    markdown = pages.to_markdown(found)
    assert EVIL not in markdown and escape_markdown(EVIL) in markdown
    assert r"| k\| |" in markdown
    text = "".join(printed(found).split())
    assert f"B={EVIL}[red]b[/red]" in text and "[bold]x[/bold]" in text
    assert json.loads(found.to_json())["pairs"][0]["b"]["run"] == f"{EVIL}[red]b[/red]"
    moved = reports[1].model_copy(update={"labels": ("a|b", EVIL, "[red]boot[/red]")})
    with pytest.raises(StoreError, match=re.escape(f"'{EVIL}' (0 and 1)")):
        compare([reports[0], moved])


def test_plotly_shows_titles_to_the_letter(report, other):
    odd = "x%{y}<b>"
    both = [changed(each, "onnx int8", variant=odd) for each in (report, other)]
    drawn = pages.moved(compare(both).pairs[0])
    assert drawn is not None
    hovers = json.loads(str(drawn.to_json()))["data"][0]["hovertext"]
    assert any("x&#37;{y}&lt;b&gt;" in hover for hover in hovers)
    assert not any("%{y}" in hover for hover in hovers)


def test_a_thousand_classes_leave_the_page_as_small(tmp_path):
    labels = tuple(f"kind {i}" for i in range(1000))
    reports = [
        usual_run(tmp_path / name, labels=labels, seed=seed).report(run=name)
        for seed, name in enumerate("abc")
    ]
    assert len(pages.to_html(compare(reports)).encode()) < 6e6


# ---- the leaderboard ----


def of_wrong(report: Report, name: str, right: np.ndarray) -> Report:
    """`report` as a run whose file to ship names the images rightly that `right` says."""
    packed = base64.b64encode(np.packbits(right).tobytes()).decode()
    fields = {"correct": packed, "top1": float(right.mean()), "sha256": name, "n": right.size}
    return changed(report, "onnx int8", **fields).model_copy(update={"run": name})


def answers(n: int, *wrong: slice) -> np.ndarray:
    found = np.ones(n, dtype=bool)
    for part in wrong:
        found[part] = False
    return found


def test_the_leaderboard_is_by_accuracy_and_marks_what_is_uncertain(report):
    runs = {
        "worst": answers(1200, slice(0, 30)),
        "best": answers(1200, slice(0, 20)),
        "close": answers(1200, slice(0, 25)),
    }
    found = compare([of_wrong(report, name, right) for name, right in runs.items()])
    places = found.leaderboard
    assert [place.run.run for place in places] == ["best", "close", "worst"]
    assert [place.run.letter for place in places] == ["B", "C", "A"]
    # all three pairs count: 10 images apart p = 2/2^10, times 3; 5 apart p = 2/2^5, times 2
    assert [place.holm_p for place in places] == [None, *map(pytest.approx, (4 / 2**5, 6 / 2**10))]
    assert [place.certain for place in places] == [False, False, True]
    assert places[1].behind and places[1].behind.difference == pytest.approx(-5 / 1200)
    names = [each.run for each in cells.places(found)]
    assert names == ["1. B = best", "2. C = close ≈", "3. A = worst"]
    for text in renderings(found):
        assert "≈ marks a run that is not certainly less accurate than the first" in text
        assert "Holm’s method for all pairs of runs" in text


def test_two_runs_have_no_leaderboard(report, other):
    found = compare([report, other])
    assert found.leaderboard == () and all("≈" not in text[:4000] for text in renderings(found)[:2])


def test_equally_good_runs_are_seldom_told_from_the_leader():
    """The same images choose the leader: without a correction for all pairs, that misleads."""
    rng, misled, naive, rounds = np.random.default_rng(3), 0, 0, 300
    for _ in range(rounds):
        hard = rng.random(1500)
        right = [hard + 0.2 * rng.random(1500) < 0.9 for _ in range(5)]
        right.sort(key=lambda each: -each.mean())
        p = {
            (i, j): paired_difference(right[i], right[j]).mcnemar_p
            for i in range(5)
            for j in range(i + 1, 5)
        }
        adjusted = dict(zip(p, holm(list(p.values())), strict=True))
        misled += min(adjusted[0, j] for j in range(1, 5)) < BELIEVED
        naive += min(p[0, j] for j in range(1, 5)) < BELIEVED
    assert misled <= 0.05 * rounds < naive


def test_runs_that_cannot_be_paired_are_marked_and_said(report, other):
    dataset = other.dataset.model_copy(update={"test_digest": "another"})
    loose = other.model_copy(update={"dataset": dataset})
    third = of_wrong(report, "third", answers(1200, slice(0, 90)))
    found = compare([report, loose, third])
    first, *rest = found.leaderboard
    assert first.run.run == "second" and all(place.holm_p is None for place in rest)
    # Newcombe's interval of the 2.5 points to quick ends below zero, that of the 1.3 to third not
    assert [(place.run.run, place.certain) for place in rest] == [("third", False), ("quick", True)]
    for place in rest:
        assert place.behind and place.behind.ci95 == unpaired_interval(
            first.top1 or 0, 1200, place.top1 or 0, 1200
        )
    assert [each.run[-1] for each in cells.places(found)[1:]] == [cells.MARK, "k"]
    assert any("Not paired with B: C and A" in note for note in cells.board_notes(found))
    assert any("their difference (Newcombe’s" in note for note in cells.board_notes(found))


def test_latencies_of_other_hosts_are_left_out_of_the_leaderboards_column(tmp_path, report, other):
    far = usual_run(tmp_path / "c", host=ELSEWHERE).report(run="far")
    shown = {place.run.run: place for place in compare([far, report, other]).leaderboard}
    assert shown["far"].p50_ms is None and "different hosts" in str(shown["far"].why)
    assert shown["quick"].p50_ms == shown["second"].p50_ms == 1.3
    asked = compare([far, report, other], across_hosts=True).leaderboard
    assert [place.p50_ms for place in asked] == [1.3] * 3


def test_a_run_without_a_measured_file_comes_last_with_its_reason(report, other, tmp_path):
    run = SmallRun(tmp_path / "c")
    run.add_model("student", 1, 9.0)
    found = compare([run.report(run="bare"), report, other])
    last = found.leaderboard[-1]
    assert last.run.run == "bare" and last.file is None
    assert "A: it has no file that was measured." in cells.board_notes(found)


def test_a_run_whose_measured_files_are_all_faulty_is_said_so(report, other):
    fields = {"max_abs_diff": None}
    faulty = report.model_copy(update={"run": "faulty"})
    for each in report.artifacts:
        if each.parity:
            faulty = changed(faulty, each.title, parity=each.parity.model_copy(update=fields))
    found = compare([faulty, report, other])
    assert "A: it has no file that may be shipped (its report says why)." in cells.board_notes(
        found
    )


def test_a_page_that_cannot_be_written_is_said_so(report, other, tmp_path):
    found, nowhere = compare([report, other]), tmp_path / "none" / "x.html"
    for page in (nowhere, tmp_path):
        with pytest.raises(StoreError, match="cannot write") as caught:
            pages.write(found, None, None, page)
        assert str(page) in caught.value.message and "folder that is there" in caught.value.remedy


def test_the_leaderboard_ships_what_the_list_of_runs_shows(report, other, tmp_path):
    for each in (report, other):
        reports_pages.write(each, tmp_path / each.run)
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(tables.runs(tmp_path))
    for place in compare([report, other, report.model_copy(update={"run": "c"})]).leaderboard[:2]:
        line = next(line for line in capture.get().splitlines() if f" {place.run.run} " in line)
        assert f" {place.file} " in line and percent(place.top1) in line


def test_letters_do_not_run_out(report):
    many = [report.model_copy(update={"run": str(i)}) for i in range(28)]
    assert [run.letter for run in build.facts.named(many)][24:] == ["Y", "Z", "A2", "B2"]
