"""The whole pipeline on a small real set: the command as a user types it, killed and continued."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from pipeline import flow
from pipeline.records import Measurement
from pipeline.store import Store
from tests.pictures import CLASSES, make_set
from tests.signals import heed_interrupts

ROOT = Path(__file__).parents[1]
STAGES = (
    *("data", "teach", "baseline", "distill", "quantize"),
    *("export-onnx", "export-coreml", "export-tensorrt", "measure"),
)
SETTINGS = """
name = "small"
device = "cpu"
threads = 2

[data]
source = "folder"
folder = {folder}

[teach]
arch = "resnet8_cifar"
recipe = {{ epochs = 3, batch_size = 16, learning_rate = 0.05 }}

[student]
arch = "mobilenet_v2"
width = 0.25
stem_stride = 2
recipe = {{ epochs = 3, batch_size = 16, learning_rate = 0.01 }}

[quantize]
calibration = "minmax"
fine_tune = {{ batch_size = 16 }}
sensitivity_images = 0
cpu_images = 0

[export]
formats = ["onnx", "coreml", "tensorrt"]

[measure]
profile = "smoke"
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The settings file of a small run, in a folder with its images."""
    folder = tmp_path_factory.mktemp("small")
    make_set(folder / "set", train=120, test=40)
    settings = SETTINGS.format(folder=json.dumps(str(folder / "set")))
    (folder / "small.toml").write_text(settings, encoding="utf-8")
    return folder


def command(small, runs, *more):
    head = [sys.executable, "-m", "pipeline", "run", str(small / "small.toml")]
    return [*head, "--runs", str(runs), *more]


def run(small, runs, *more):
    done = subprocess.run(command(small, runs, *more), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The runs folder of a run that was never stopped."""
    runs = tmp_path_factory.mktemp("finished")
    run(small, runs)
    return runs


def report(runs, name="small"):
    return json.loads((runs / name / "report.json").read_text(encoding="utf-8"))


def sums(runs):
    found = report(runs)
    return {
        (row["format"], row["precision"], row["variant"]): row["sha256"]
        for row in found["artifacts"]
    }


@pytest.mark.parametrize("worked", [False, True])
def test_what_was_done_before_the_first_stage_is_not_its_work(worked, tmp_path, capsys):
    """`fit` has searched and trained by the time it runs the pipeline on the same store."""
    store = Store(tmp_path)

    def make(stage):
        store.get(
            Measurement, stage, lambda folder: Measurement(load_ms=1.0), version=1, settings=0
        )

    make("data")
    say = flow._Speaker(store)
    make("teach" if worked else "data")
    say("data", "some images")
    assert say.worked == worked
    assert ("there already" in capsys.readouterr().err) != worked


def test_report_follows_the_schema_with_measured_numbers(finished):
    found = report(finished)
    assert found["schema"] == 1 and found["run"] == "small" and found["labels"] == list(CLASSES)
    assert found["input"]["size"] == 16 and found["input"]["channels"] == 1
    assert found["input"]["layout"] == "NHWC" and found["input"]["dtype"] == "uint8"
    assert {"data", "teach", "baseline", "distill", "quantize", "export", "measure"} == set(
        found["seconds"]
    )
    assert [row["role"] for row in found["models"]] == ["teacher", "baseline", "student"]
    for row in found["models"]:
        low, high = row["top1_ci95"]
        assert row["n"] == 120 and 0 <= low <= row["top1"] <= high <= 1
        assert row["params"] > 0 and row["macs"] > 0 and row["key"]
    assert found["models"][0]["top1"] > 0.8
    rows = {(r["format"], r["precision"], r["variant"]): r for r in found["artifacts"]}
    kinds = (("fp32", None), ("fp16", None), ("int8", None), ("int8", "symmetric"))
    for precision, variant in kinds:
        row = rows["onnx", precision, variant]
        assert row["skipped"] is None and row["n"] == 120 and row["parity"]["n"] == 120
        assert row["evaluated_with"].startswith("onnxruntime ")
        times = row["latency"]
        assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
        assert times["profile"] == "smoke" and times["n"] >= 20 and row["load_ms"] > 0
        assert row["peak_rss_bytes"] > 10_000_000
    fp32 = rows["onnx", "fp32", None]["parity"]
    assert fp32["top1_agreement"] == 1.0 and fp32["max_abs_diff"] < 1e-3
    for precision in ("fp16", "w8a16", "w6a16", "w4a16"):
        row = rows["coreml", precision, None]
        assert row["n"] == 120 and row["latency"] is None
        assert row["evaluated_with"].startswith("coreml reference") and "Mac" in row["skipped"]
    assert "the plain file will do" in rows["onnx", "fp32", "mobile"]["skipped"]
    graph = rows["tensorrt", "int8", None]
    assert graph["n"] == 120 and graph["latency"] is None and "no engine" in graph["skipped"]


def test_what_is_shipped_is_what_was_measured(finished):
    for row in report(finished)["artifacts"]:
        if row["variant"] == "mobile":
            continue
        assert row["path"] is not None, row["skipped"]
        path = finished / "small" / row["path"]
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
            assert path.stat().st_size == row["bytes"]


def test_shipped_onnx_takes_uint8_and_names_its_classes(finished):
    for row in report(finished)["artifacts"]:
        if row["format"] != "onnx" or row["path"] is None:
            continue
        model = onnx.load(finished / "small" / row["path"])
        image = model.graph.input[0].type.tensor_type
        assert image.elem_type == onnx.TensorProto.UINT8
        assert [d.dim_value for d in image.shape.dim][1:] == [16, 16, 1]
        props = {prop.key: prop.value for prop in model.metadata_props}
        assert json.loads(props["labels"]) == list(CLASSES)
        assert json.loads(props["input"])["size"] == 16


def test_the_bundle_is_whole_and_says_what_was_measured(finished):
    from pipeline import bundle

    folder = finished / "small" / "bundle"
    assert bundle.check(folder) == []
    told = {(file.format, file.precision, file.variant): file for file in bundle.read(folder).files}
    for row in report(finished)["artifacts"]:
        file = told[row["format"], row["precision"], row["variant"]]
        assert (file.sha256, file.top1, file.n) == (row["sha256"], row["top1"], row["n"])
    done = subprocess.run(
        [sys.executable, "selftest.py"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok" in done.stdout


def test_pages_are_written(finished):
    for page in ("report.html", "report.md"):
        text = (finished / "small" / page).read_text(encoding="utf-8")
        assert "baseline" in text and "int8" in text


def test_second_run_does_nothing_and_says_so(small, finished):
    before = {p: p.stat().st_mtime_ns for p in (finished / "small").rglob("*") if p.is_file()}
    done = run(small, finished)
    assert "Nothing to do" in done.stderr
    del before[finished / "small" / ".lock"]
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize(
    ("lost", "how"),
    [
        ("report.md", "gone"),
        ("report.json", "gone"),
        ("report.json", "cut"),
        ("bundle/web/onnx/int8/model.onnx", "gone"),
        ("bundle/web/onnx/int8/model.onnx", "cut"),
        ("bundle/labels.txt", "cut"),
        ("bundle/golden/expected.json", "gone"),
        ("bundle/nvidia/tensorrt/fp32/build_engine.sh", "gone"),
    ],
)
def test_a_lost_page_or_file_is_written_anew(small, finished, lost, how):
    path = finished / "small" / lost
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2])
    assert "Nothing to do" not in run(small, finished).stderr
    assert len(path.read_bytes()) > 0.9 * len(whole)
    if path.suffix == ".onnx":
        assert path.read_bytes() == whole
    assert report(finished)["schema"] == 1


def test_pages_of_an_older_version_are_made_anew_without_measuring(small, finished):
    home = finished / "small"
    (home / ".state").write_text("of an older version")
    body = report(finished)
    del body["disagreements"], body["class_gains"]
    (home / "report.json").write_text(json.dumps(body))
    done = run(small, finished)
    lines = {line.split()[0]: line for line in done.stderr.splitlines() if line.strip()}
    assert all("there already" in lines[stage] for stage in ("teach", "export", "measure"))
    found = report(finished)
    told = {row.get("role") or f"{row['format']} {row['precision']}" for row in rows_with(found)}
    assert told == {"teacher", "baseline", "student", "onnx int8"}
    assert len(found["class_gains"]) == len(CLASSES)
    shown = found["disagreements"]["shown"]
    assert all(each["image"].startswith("data:image/png;base64,") for each in shown)


def rows_with(found):
    """The rows of a report whose confidence was assessed."""
    return [row for row in (*found["models"], *found["artifacts"]) if row["confidence"]]


def test_one_changed_setting_repeats_only_what_depends_on_it(small, finished):
    done = run(small, finished, "--set", "quantize.calibration_images=64", "--set", "name=other")
    lines = {line.split()[0]: line for line in done.stderr.splitlines() if line.strip()}
    for stage in ("data", "teach", "baseline", "distill"):
        assert "there already" in lines[stage], lines[stage]
    for stage in ("quantize", "export", "measure"):
        assert "there already" not in lines[stage], lines[stage]
    assert report(finished, "other")["settings"]["quantize"]["calibration_images"] == 64


def test_show_report_and_compare(small, finished):
    def ask(*words):
        line = [sys.executable, "-m", "pipeline", *words, "--runs", str(finished)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "onnx int8" in ask("show", "small")
    page = finished / "small" / "report.html"
    page.unlink()
    ask("report", "small")
    assert "onnx int8" in page.read_text(encoding="utf-8")
    again = finished / "again"
    again.mkdir()
    (again / "report.json").write_text(json.dumps({**report(finished), "run": "again"}))
    compared = ask("compare", "small", "again")
    assert "student" in compared and "0.00" in compared
    shutil.rmtree(again)


def test_a_runs_student_is_exported_alone(small, finished):
    line = [sys.executable, "-m", "pipeline", "export", "small", "--runs", str(finished)]
    done = subprocess.run(
        [*line, "--format", "ort"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "small-export/bundle" in done.stdout
    found, before = report(finished, "small-export"), report(finished)
    assert found["models"][0]["key"] == before["models"][-1]["key"]
    assert found["dataset"]["test_digest"] == before["dataset"]["test_digest"]
    rows = {(r["format"], r["precision"], r["variant"]): r for r in found["artifacts"]}
    assert rows["onnx", "fp32", None]["sha256"] == sums(finished)["onnx", "fp32", None]
    assert rows["ort", "int8", None]["n"] == 120


def test_a_run_without_baseline_and_quantization(small, finished):
    run(
        *(small, finished, "--set", "baseline.enabled=false", "--set", "quantize.enabled=false"),
        *("--set", "name=bare", "--set", 'export.formats=["onnx"]'),
    )
    found = report(finished, "bare")
    assert [row["role"] for row in found["models"]] == ["teacher", "student"]
    skipped = {(r["precision"], r["variant"]): r["skipped"] for r in found["artifacts"]}
    assert skipped["fp32", None] is None
    assert "quantize.enabled is false" in skipped["int8", None]


def test_seeds_train_pairs_and_ship_the_first(small, finished):
    run(small, finished, "--set", "seeds=[0, 1]", "--set", "name=seeds")
    found = report(finished, "seeds")
    assert [row["seed"] for row in found["seeds"]] == [0, 1]
    assert found["seeds"][0]["gain"] == found["gain"] and found["gain_over_seeds"]["n"] == 2
    assert sums(finished) == {
        (r["format"], r["precision"], r["variant"]): r["sha256"] for r in found["artifacts"]
    }
    curves = {path.name for path in (finished / "seeds" / "metrics").iterdir()}
    roles = ("teacher", "baseline", "student")
    assert curves == {f"{r}-seed0.jsonl" for r in roles} | {f"{r}-seed1.jsonl" for r in roles[1:]}


def test_every_epoch_is_in_a_plain_file(finished):
    for row in report(finished)["models"]:
        path = finished / "small" / "metrics" / f"{row['role']}-seed0.jsonl"
        epochs = [json.loads(line) for line in path.read_text().splitlines()]
        assert [e["loss"] for e in epochs] == [e["loss"] for e in row["history"]]


def stopped_in(stage, small, runs, how):
    """Start the run, and stop it as soon as it works on `stage`; return its exit code."""
    process = subprocess.Popen(
        command(small, runs),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=heed_interrupts,
    )
    partial = runs / ".store" / ".partial"
    try:
        while process.poll() is None:
            if partial.exists() and any(p.name.startswith(stage) for p in partial.iterdir()):
                process.send_signal(how)
                break
            time.sleep(0.001)
        return process.wait(60)
    finally:
        process.kill()


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_files(small, finished, tmp_path):
    for stage in STAGES:
        assert stopped_in(stage, small, tmp_path, signal.SIGKILL) == -signal.SIGKILL, stage
        done = {p.parent.parent.name for p in (tmp_path / ".store").glob("[!.]*/*/record.json")}
        if stage not in ("measure", "export-onnx"):  # these hold several results
            assert stage not in done
    run(small, tmp_path)
    assert sums(tmp_path) == sums(finished)
    assert not any((tmp_path / ".store" / ".partial").iterdir())


def test_interrupted_it_leaves_nothing_half_written(small, tmp_path):
    assert stopped_in("teach", small, tmp_path, signal.SIGINT) == 130
    assert not any((tmp_path / ".store" / ".partial").iterdir())
    assert not (tmp_path / "small").exists()
    assert not (tmp_path / ".store" / "teach").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")
@pytest.mark.parametrize("stage", ["data", "teach", "baseline"])
def test_a_full_disk_ends_with_a_message_and_nothing_half_written(stage, small, finished, tmp_path):
    """A limit on file sizes stands in for a disk that fills: just too little for that stage."""
    store = finished / ".store"
    needed = max(p.stat().st_size for p in (store / stage).rglob("*") if p.is_file())
    before = [p for name in STAGES[: STAGES.index(stage)] for p in (store / name).rglob("*.*")]
    assert all(p.stat().st_size < needed for p in before if p.is_file()), "an earlier stage fails"
    limited = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({needed - 1},) * 2); "
        "sys.argv = sys.argv[1:]; import runpy; runpy.run_module('pipeline', run_name='__main__')"
    )
    words = command(small, tmp_path)[2:]
    done = subprocess.run(
        [sys.executable, "-c", limited, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "no space left" in done.stderr and "Traceback" not in done.stderr
    assert not any((tmp_path / ".store" / ".partial").iterdir())
    assert not (tmp_path / ".store" / stage).exists()
