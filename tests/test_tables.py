"""The terminal tables of one run, and of all runs."""

from rich.console import Console

from pipeline import tables
from pipeline.stages import report as pages
from tests.small_run import rescued, run_of_seeds, skipped, studied, studied_run

WIDTH = 100


def printed(renderable) -> str:
    console = Console(width=WIDTH, record=True, color_system=None, quiet=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_run_begins_with_what_to_ship_a_line_a_target(report):
    lines = printed(tables.show(report)).splitlines()
    keep = "of 2 onnx files that keep the accuracy."
    assert [line.rstrip() for line in lines[:4]] == [
        f"Android CPU: onnx int8. The fastest on this host {keep}",
        "iOS: none. No file was verified, so none is recommended.",
        "NVIDIA: none. There is no file.",
        f"Browser: onnx int8. The fastest natively on this host {keep}",
    ]


def test_all_runs_are_listed_the_latest_first(report, tmp_path):
    other = report.model_copy(update={"run": "second"})
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
    assert (
        "going: no report: nothing in the store beside it tells of such a run" in text
        and "torn: the report of run 'torn'" in text
    )
    assert ".store" not in text and "2026-11-02" in text


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


def test_names_are_not_markup(run):
    text = printed(tables.show(run.report(run="[red]mine[/red]")))
    assert "[red]mine[/red]" in text
