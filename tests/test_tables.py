"""The terminal tables, and the comparison of two runs."""

import pytest
from rich.console import Console

from benchmarks.stats import paired_difference
from pipeline import tables
from pipeline.stages import report as pages
from tests.small_run import rescued, run_of_seeds, skipped, studied, studied_run, usual_run

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


# ---- tables ----


def test_a_run_begins_with_what_to_ship_a_line_a_target(report):
    lines = printed(tables.show(report)).splitlines()
    keep = "of 2 onnx files that keep the accuracy."
    assert [line.rstrip() for line in lines[:4]] == [
        f"Android CPU: onnx int8. The fastest on this host {keep}",
        "iOS: none. No file was verified, so none is recommended.",
        "NVIDIA: none. There is no file.",
        f"Browser: onnx int8. The fastest natively on this host {keep}",
    ]


def test_all_runs_are_listed_the_latest_first(report, other, tmp_path):
    home = tmp_path / "runs"
    for found, date in ((report, "2026-11-01 10:00 UTC"), (other, "2026-11-02 10:00 UTC")):
        dated = found.model_copy(update={"date": date})
        pages.write(dated, home / found.run)
    (home / "going" / "metrics").mkdir(parents=True)
    (home / "torn").mkdir()
    (home / "torn" / "report.json").write_text("{")
    (home / ".store").mkdir()
    text = printed(tables.runs(home))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert text.index("\n second ") < text.index(f"\n {report.run} ")
    assert "going: no report: under way" in text and "torn: the report of run 'torn'" in text
    assert ".store" not in text and "2026-11-02" in text


def test_compare_tells_the_intervals_of_latency_ratios(report, other):
    def timed(found, share):
        rows = [
            row.model_copy(
                update={"latency": row.latency.model_copy(update={"p50_ci95": ends(row, share)})}
            )
            if row.latency
            else row
            for row in found.artifacts
        ]
        return found.model_copy(update={"artifacts": tuple(rows)})

    def ends(row, share):
        return row.latency.p50_ms / share, row.latency.p50_ms * share

    told = " ".join(printed(tables.compare([timed(report, 1.03), timed(other, 1.04)])).split())
    # Where both p50 are the same: exp of the root of log² 1.03 and log² 1.04, 1.050.
    assert "onnx fp32 0.95 to 1.05" in told and "takes files in turn" in told
    assert "intervals of the two" not in printed(tables.compare([report, other]))


def test_show_fits_a_hundred_columns(run):
    run.add_artifact("tensorrt_rtx", "int8", 123_456_789, run.artifacts[1][1], variant="symmetric")
    text = printed(tables.show(run.report()))
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "…" not in text
    assert "89.97–93.10" in text and "coreml fp16: needs macOS" in text
    assert "! Exported but not run here" in text


def test_show_tells_student_teacher_and_seeds(tmp_path):
    text = " ".join(printed(tables.show(run_of_seeds(tmp_path).report())).split())
    assert (
        "Over 3 seeds: mean gain +2.50 points, 95 % interval +1.26 to +3.74 (each seed's own"
        in text
    )
    assert "Student: mobilenet_v2, 2.24 M parameters, 6.50 M MACs; teacher 95.00 %." in text


def test_show_tells_how_int8_came_about_and_where_it_was_not_tried(tmp_path):
    run = studied_run(tmp_path, *skipped("haswell", "arm64"), quantized=studied(rescue=rescued()))
    text = " ".join(printed(tables.show(run.report())).split())
    assert (
        "int8: u8s8 (uint8 activations, int8 weights), ranges by percentile from 512 images; "
        "99.9 % of the multiply-adds in integer kernels, 4 float islands." in text
    )
    assert "with 2 layers in float it loses 0.40." in text
    assert (
        "onnx int8 was not tried on x86 without VNNI and arm64: not fetched into "
        "/cache/emulators. python -m pipeline fetch emulators (" in text
    )
    assert "! onnx int8" not in text


def test_compare_names_both_students(report, other):
    text = printed(tables.compare([report, other]))
    assert "A: Student: mobilenet_v2, " in text and "B: Student: mobilenet_v2, " in text


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
