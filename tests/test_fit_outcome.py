"""What a fit comes to, in words; the trained student's files against the budget; fit.json."""

import shutil

import pytest

from benchmarks.published.workload import Workload
from pipeline import summary
from pipeline.fit import fitting, judging, outcome, phone
from pipeline.fit.budget import Budget
from pipeline.fit.outcome import Final, Fit, Row
from pipeline.fit.shots import Shot
from pipeline.fit.space import Network
from pipeline.records import Measurement, Precision
from tests.small_run import usual_run

BOARD, _ = phone.find("RB3 Gen 2")
WORK = Workload(
    dense_macs=3 * 10**8,
    depthwise_macs=2 * 10**7,
    parameters=3 * 10**6,
    moved_elements=10**7,
    peak_elements=10**6,
    kernels=60,
)


def shot(
    budget, precision: Precision = "fp32", latency=2.0, size=3_000_000, memory=8_000_000, **more
):
    """A file that costs so much, by a real prediction that is told to be of `latency`."""
    fields = {"latency_ms": latency, "interval80": (0.8 * latency, 1.25 * latency)} | more
    found = phone.predicted(WORK, "fp32", BOARD).model_copy(update=fields)
    return Shot.of(precision, size, memory, found, budget)


def row(width, *shots):
    network = Network(arch="mobilenet_v2", width=width, stem_stride=2, size=28)
    return Row(key="k", network=network, params=1, macs=1, shots=shots, front=True, seconds=1.0)


def a_fit(budget, *rows, **more):
    fields = {"run": "x-fit", "command": "fit", "date": "today", "data": "digits"}
    fields |= {"phone": BOARD.title, "budget": budget, "space": len(rows), "rows": rows}
    return Fit.model_validate(fields | {"refused": {}, "epochs": 8, "seconds": {}} | more)


def trained(budget, shots, **more):
    """A fit of two networks, the first of which was trained in full and has the files `shots`."""
    rows = (row(1.0, *shots), row(0.5, *shots))
    top1 = {each.precision: (0.9, (0.88, 0.92), 1000) for each in shots}
    final = Final(network=rows[0].network, shots=shots, top1=top1, **more.pop("final", {}))
    return a_fit(budget, *rows, winner=rows[0].network, final=final, **more)


# ---- what would fit ----


def test_the_least_of_any_is_that_of_any_file_and_names_it():
    budget = Budget(latency_ms=1.0, bytes=1_000_000, memory_bytes=1_000_000)
    slow = shot(budget, "int8", 3.0, 3_000_000, 9_000_000)
    small = row(1.0, shot(budget, "fp32", 2.0, 10_000_000, 8_000_000), slow)
    other = row(0.5, shot(budget, "fp32", 2.5, 9_000_000, 7_000_000))
    told = " ".join(outcome.answer(a_fit(budget, small, other)))
    assert "The least latency of any: 2.00 ms (mobilenet_v2, stem 2, 28 px, fp32)" in told
    assert "The least size of any: 3.00 MB (mobilenet_v2, stem 2, 28 px, int8)" in told
    assert "The least memory of any: 7.00 MB (mobilenet_v2 ×0.5, stem 2, 28 px, fp32)" in told


def test_with_sure_the_least_latency_is_the_least_upper_end():
    budget = Budget(latency_ms=1.0, sure=True)
    doubtful = row(1.0, shot(budget, latency=2.0, interval80=(1.0, 5.0)))
    known = row(0.5, shot(budget, latency=3.0, interval80=(2.5, 4.0)))
    told = " ".join(outcome.answer(a_fit(budget, doubtful, known)))
    assert "The least latency of any: 4.00 ms (mobilenet_v2 ×0.5" in told


# ---- what the numbers do not promise ----


def test_the_front_is_said_to_compare_one_file_of_each_network():
    budget = Budget(latency_ms=5.0)
    told = " ".join(outcome.answer(trained(budget, (shot(budget),))))
    assert "none of the other 1 networks" in told and "each by the file named in the table" in told


def test_how_far_away_the_nearest_network_is_has_a_digit_after_the_point():
    budget = Budget(latency_ms=5.0)
    far = shot(budget, distance=1.4, outside=("parameters",))
    told = " ".join(outcome.doubts(a_fit(budget, row(1.0, far))))
    assert "a factor of 1.4)" in told


@pytest.mark.parametrize(
    ("runtime", "files", "words"),
    [
        ("ncnn", {}, ["by ncnn, for which no file is made here", "those of the ONNX file"]),
        ("qnn", {}, ["by qnn, for which no file is made here"]),
        ("litert", {}, ["no litert file of it was run here", "those of the ONNX file"]),
        ("litert", {"fp32": "litert fp32"}, ["trained one are those of its litert fp32 file"]),
    ],
)
def test_sizes_of_other_files_than_those_that_run_are_told(runtime, files, words):
    budget = Budget(latency_ms=5.0)
    found = trained(budget, (shot(budget),), runtime=runtime, final={"files": files})
    told = " ".join(outcome.doubts(found))
    assert [word for word in words if word not in told] == []
    same = found.model_copy(update={"runtime": "onnxruntime"})
    assert "ONNX file" not in " ".join(outcome.doubts(same))


# ---- the trained student's files ----


@pytest.fixture
def run(tmp_path, float_onnx):
    """The usual run, with real files behind its float rows."""
    made = usual_run(tmp_path)
    (tmp_path / "bundle").mkdir()
    for name in ("onnx-fp32.bin", "onnx-fp16.bin"):
        shutil.copy(float_onnx.path, tmp_path / "bundle" / name)
    return made


def judged(run, runtime, device, budget):
    way = phone.find(device, runtime)[0]
    network = Network(arch="mobilenet_v2", width=1.0, stem_stride=2, size=28)
    return way, judging.judge(network, run.report(), run.folder, way, budget)


def test_bytes_and_accuracy_are_of_the_file_that_the_runtime_opens(run):
    """8.9 MB of ONNX break the bound that 4 MB of LiteRT keep."""
    student = run.logits(300)
    budget = Budget(bytes=5_000_000)
    run.add_artifact("onnx", "fp16", 4_600_000, run.measured("c", run.logits(0), 3.0))
    run.add_artifact("litert", "fp32", 4_000_000, run.measured("d", student, 3.0))
    way, final = judged(run, "litert", "Galaxy S24", budget)
    (only,) = final.shots
    assert way.precisions == ("fp16",) and only.bytes == 4_000_000 and not only.over
    assert final.files == {"fp16": "litert fp32"}
    assert final.top1["fp16"][0] == pytest.approx(900 / 1200)
    _, on_ort = judged(run, "onnxruntime", "Galaxy S24", budget)
    assert on_ort.files == {} and on_ort.shots[0].bytes == 4_600_000


def test_a_file_that_did_not_run_here_does_not_stand_in(run):
    unseen = Measurement(skipped="needs ai-edge-litert")
    run.add_artifact("onnx", "fp16", 4_600_000, run.measured("c", run.logits(0), 3.0))
    run.add_artifact("litert", "fp32", 4_000_000, unseen)
    _, final = judged(run, "litert", "Galaxy S24", Budget(bytes=5_000_000))
    assert final.files == {} and final.shots[0].bytes == 4_600_000


# ---- fit.json ----


def test_a_fit_without_a_report_says_whose_the_one_in_its_folder_is(tmp_path):
    budget = Budget(latency_ms=5.0)
    whole = trained(budget, (shot(budget),))
    stopped = whole.model_copy(update={"final": None})
    written = tmp_path / outcome.FILE
    fitting._write(stopped, tmp_path)
    assert Fit.model_validate_json(written.read_text()).notes == ()
    (tmp_path / summary.FILE).write_text("{}")
    fitting._write(stopped, tmp_path)
    (note,) = Fit.model_validate_json(written.read_text()).notes
    assert "report.html and bundle/" in note and "earlier fit" in note
    fitting._write(whole, tmp_path)
    assert Fit.model_validate_json(written.read_text()).notes == ()
