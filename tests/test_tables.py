"""The verdict in words, the terminal tables, and the comparison of two runs."""

import pytest
from rich.console import Console

from benchmarks.stats import PairedDifference, paired_difference
from pipeline import tables
from tests.test_summary import usual_run

WIDTH = 100


def printed(renderable) -> str:
    console = Console(width=WIDTH, record=True, color_system=None, quiet=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def rows_of(text: str, name: str) -> list[list[str]]:
    return [line.split()[len(name.split()) :] for line in text.splitlines() if f" {name} " in line]


@pytest.fixture
def run(tmp_path):
    return usual_run(tmp_path / "a")


@pytest.fixture
def report(run):
    return run.report()


@pytest.fixture
def other(tmp_path):
    """A second run over the same test images, with another student and other settings."""
    run = usual_run(tmp_path / "b", seed=1)
    checkpoint, _ = run.models[2]
    run.models[2] = (checkpoint, run.measured("student", run.logits(70), 9.0))
    return run.report(run="second", settings={"seed": 1, "distill": {"temperature": 2.0}})


# ---- numbers ----


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.29, "0.290"), (1.5, "1.50"), (12.34, "12.3"), (1234.6, "1,235")],
)
def test_numbers_have_three_digits(value, text):
    assert tables.number(value) == text


def test_points_are_signed_and_zero_has_no_sign():
    assert tables.points(0.0131) == "+1.31"
    assert tables.points(-0.0131) == "−1.31"
    assert tables.points(-0.000001) == "0.00"


# ---- the verdict ----


def gained(report, low, high):
    gain = PairedDifference(difference=(low + high) / 2, ci95=(low, high), mcnemar_p=0.2, n=1200)
    return report.model_copy(update={"gain": gain})


def test_a_gain_is_claimed_only_when_its_interval_excludes_zero(report):
    claim = [tables.headline(gained(report, *ci))[0].claim for ci in ((0.01, 0.03), (-0.01, 0.03))]
    assert claim[0] == "Distillation gained 2.00 points of top-1."
    assert claim[1] == "Distillation made no certain difference."
    assert tables.headline(gained(report, -0.03, -0.01))[0].claim.startswith(
        "Distillation lost 2.0"
    )


def test_an_uncertain_gain_is_a_warning(report):
    assert not any("may be chance" in text for text in tables.warnings(gained(report, 0.01, 0.03)))
    found = [
        text for text in tables.warnings(gained(report, -0.01, 0.03)) if "may be chance" in text
    ]
    assert found and "−1.00 to +3.00 points" in found[0]


def test_int8_is_set_against_float_of_the_same_format(run):
    student = run.logits(100)
    run.add_artifact("coreml", "int8", 10, run.measured("c", student, 2.0, student))
    finding = tables.headline(run.report())[1]
    assert finding.claim.startswith("Against fp32, onnx int8 is 2.3× as fast, 3.7× smaller and ")
    assert "Median 1.30 against 3.00 ms; 2.40 against 8.90 MB" in finding.evidence


def test_a_slow_int8_is_called_slow(run):
    artifact, _, place = run.artifacts[1]
    run.artifacts[1] = (artifact, run.measured("b", run.logits(100), 4.5), place)
    report = run.report()
    assert "onnx int8 is 1.5× as slow" in tables.headline(report)[1].claim
    slow = [text for text in tables.warnings(report) if "slower than fp32 on this host" in text]
    assert slow and "4.50 against 3.00 ms" in slow[0]


def test_a_usual_run_has_only_the_warning_of_what_was_not_run(report):
    expected = "Exported but not run here, so unverified: coreml fp16."
    assert tables.warnings(report) == [expected]


def test_few_test_images_are_a_warning(tmp_path):
    report = usual_run(tmp_path, n=360).report()
    assert any("Only 360 test images" in text for text in tables.warnings(report))


def test_low_agreement_is_a_warning_and_worse_for_a_float_file(run):
    student = run.logits(100)
    wrong = run.logits(0, base=student, flips=60)
    run.add_artifact("ort", "fp32", 10, run.measured("c", wrong, 2.0, student))
    run.add_artifact("ort", "int8", 10, run.measured("c", wrong, 2.0, student))
    found = [text for text in tables.warnings(run.report()) if "names the same class" in text]
    assert "ort fp32" in found[0] and "95.00 %" in found[0] and "faulty export" in found[0]
    assert "ort int8" in found[1] and "faulty export" not in found[1]


def test_a_useless_teacher_is_a_warning(run):
    checkpoint, _ = run.models[0]
    run.models[0] = (checkpoint, run.measured("teacher", run.logits(200), 40.0))
    assert any("no better than the baseline" in text for text in tables.warnings(run.report()))


# ---- tables ----


def test_show_fits_a_hundred_columns(run):
    run.add_artifact("tensorrt_rtx", "int8", 123_456_789, run.artifacts[1][1], variant="symmetric")
    text = printed(tables.show(run.report()))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "…" not in text
    assert "89.97–93.10" in text and "coreml fp16: needs macOS" in text
    assert "! Exported but not run here" in text


def test_names_are_not_markup(run):
    text = printed(tables.show(run.report(run="[red]mine[/red]")))
    assert "[red]mine[/red]" in text


def test_compare_is_paired_over_the_same_test_images(report, other):
    changes = {change.a.title: change for change in tables.changes(report, other)}
    moved = changes["student (PyTorch)"].top1
    assert moved is not None and moved.paired
    a, b = report.model("student"), other.model("student")
    expected = paired_difference(a.correctness(), b.correctness())
    assert moved.value == pytest.approx(30 / 1200) == pytest.approx(expected.difference)
    assert moved.ci95 == expected.ci95


def test_compare_is_unpaired_over_other_images(report, other):
    dataset = other.dataset.model_copy(update={"test_digest": "another"})
    changes = tables.changes(report, other.model_copy(update={"dataset": dataset}))
    paired = tables.changes(report, other)
    for loose, tight in zip(changes, paired, strict=True):
        assert loose.top1 is None or not loose.top1.paired
        if loose.top1 and tight.top1:
            assert loose.top1.ci95[1] - loose.top1.ci95[0] > tight.top1.ci95[1] - tight.top1.ci95[0]


def test_compare_fits_a_hundred_columns(report, other):
    text = printed(tables.compare([report, other, report]))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "…" not in text
    assert rows_of(text, "student (PyTorch)")[0][:3] == ["91.67", "94.17", "+2.50"]
    assert "95 % intervals are paired" in text
    assert "B = second" in text


def test_compare_names_the_settings_that_differ(report, other):
    text = printed(tables.compare([report, other]))
    assert rows_of(text, "distill.temperature") == [["4.0", "2.0"]]
    assert rows_of(text, "distill.loss") == [["kd", "–"]]
    assert rows_of(text, "seed") == [["0", "1"]]
    assert "settings, data and versions are equal" in printed(tables.compare([report, report]))


def test_compare_names_the_rows_of_one_side_only(run, report):
    run.add_artifact("ort", "fp32", 10, run.artifacts[0][1])
    text = printed(tables.compare([report, run.report()]))
    assert "only in B: ort fp32" in text and "only in A" not in text


def test_latencies_of_different_hosts_are_refused(tmp_path, report):
    elsewhere = usual_run(tmp_path / "c", host="Another CPU, 8 cores, aarch64").report()
    assert all(change.latency is None for change in tables.changes(report, elsewhere))
    text = printed(tables.compare([report, elsewhere]))
    assert "latencies are not compared: measured on different hosts" in text.replace("\n", " ")
    onnx = rows_of(text, "onnx fp32")[0]
    assert onnx[-2:] == ["–", "1.00×"]
    forced = printed(tables.compare([report, elsewhere], across_hosts=True))
    assert rows_of(forced, "onnx fp32")[0][-2:] == ["1.00×", "1.00×"]
    assert "not compared" not in forced


def test_latencies_of_different_profiles_are_refused(run, report):
    artifact, found, place = run.artifacts[0]
    latency = found.latency.model_copy(update={"profile": "phone-4t", "threads": 4})
    run.artifacts[0] = (artifact, found.model_copy(update={"latency": latency}), place)
    changes = {change.a.title: change for change in tables.changes(report, run.report())}
    assert changes["onnx fp32"].latency is None
    assert "phone-1t, 1 thread / phone-4t, 4 threads" in changes["onnx fp32"].refusal
    assert changes["onnx int8"].latency == pytest.approx(1.0)


def test_comparing_takes_two(report):
    with pytest.raises(ValueError, match="at least two"):
        tables.compare([report])
