"""At the command line: wrong input and interruptions, each with its exit code and a message."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models.resnet import cifar
from pipeline import __main__ as command_line
from pipeline.stages import report as pages
from tests.pictures import make_set
from tests.signals import heed_interrupts
from tests.small_run import usual_run

ROOT = Path(__file__).parents[1]


def pipeline(*words):
    line = [sys.executable, "-m", "pipeline", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def run(tmp_path, text, *more):
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    return pipeline("run", tmp_path / "run.toml", "--runs", tmp_path / "runs", *more)


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    told = " ".join(done.stderr.split())
    for word in words:
        assert word in told
    return told


def folder_settings(folder):
    return f'name = "x"\n[data]\nsource = "folder"\nfolder = "{folder}"\n'


def nothing_left(runs, *done):
    """No run, nothing half-written, and results of no stage but those `done` before the error."""
    store = runs / ".store"
    assert not list((store / ".partial").glob("*"))
    results = {path.parent for path in store.glob("[!.]*/*/record.json")}
    assert {result.parent.name for result in results} == set(done)
    assert set(store.glob("[!.]*/*")) == results
    assert not [path.name for path in runs.glob("*") if path != store]


def test_unknown_key(tmp_path):
    done = run(tmp_path, 'name = "x"\n[data]\nsource = "digits"\n[distill]\ntemprature = 1\n')
    refused(done, "distill.temprature", "did you mean `temperature`?")
    assert not (tmp_path / "runs").exists()


def test_help_and_usage():
    asked = pipeline("run", "--help")
    assert asked.returncode == 0 and "--set" in asked.stdout
    for words in (["run"], ["run", "x.toml", "--sett", "a=1"], ["walk"]):
        done = pipeline(*words)
        assert done.returncode == 2 and "Usage: python -m pipeline" in done.stderr
        assert "Traceback" not in done.stderr


def test_markup_in_an_error_is_printed_as_it_is(tmp_path):
    refused(pipeline("run", tmp_path / "[red]x[/red].toml"), "[red]x[/red].toml")


def test_debug_shows_the_traceback(tmp_path):
    done = run(tmp_path, "name = 1", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr and "ConfigError" in done.stderr
    assert "Error: " in done.stderr
    nothing_left(tmp_path / "runs")


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_run_that_is_not_there(tmp_path, command):
    refused(pipeline(command, "nothing", "--runs", tmp_path), "nothing")


@pytest.fixture
def two_runs(tmp_path):
    """A folder of runs: one and two, and one whose labels stand in another order."""
    for name in ("one", "two", "turned"):
        found = usual_run(tmp_path / "records" / name).report(run=name)
        if name == "turned":
            found = found.model_copy(update={"labels": found.labels[::-1]})
        pages.write(found, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_compare_writes_what_is_asked_for(two_runs, tmp_path):
    asked = {"--markdown": "c.md", "--json": "c.json", "--html": "c.html"}
    words = [word for option, name in asked.items() for word in (option, tmp_path / name)]
    done = pipeline("compare", "one", two_runs / "two", "--runs", two_runs, *words)
    assert done.returncode == 0, done.stderr
    assert "A = one" in done.stdout and "student (PyTorch)" in done.stdout
    assert (tmp_path / "c.md").read_text(encoding="utf-8").startswith("## A = one, B = two\n")
    assert json.loads((tmp_path / "c.json").read_text())["pairs"][0]["b"]["run"] == "two"
    assert "</html>" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_what_compare_cannot_do_is_refused(two_runs, tmp_path):
    def compare(*words):
        return pipeline("compare", *words, "--runs", two_runs)

    refused(compare("one"), "two runs")
    refused(compare("one", two_runs / "one"), "'one'", "is named twice")
    refused(compare("one", "turned"), "the order differs, of 'shirt' (0 and 2), 'bag' (2 and 0)")
    refused(compare("one", "three"), "run 'three' has no report: there is no such run")
    nowhere = tmp_path / "nowhere" / "c.md"
    refused(compare("one", "two", "--markdown", nowhere), "No such file or directory", str(nowhere))


def test_folders_without_images_or_with_one_class(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(run(tmp_path, folder_settings(tmp_path / "empty")), "no images", str(tmp_path))
    nothing_left(tmp_path / "runs")
    make_set(tmp_path / "one")
    for name in ("dots", "rings"):
        for split in ("train", "test"):
            for path in (tmp_path / "one" / split / name).iterdir():
                path.unlink()
            (tmp_path / "one" / split / name).rmdir()
    refused(run(tmp_path, folder_settings(tmp_path / "one")), "one class", "bars")
    nothing_left(tmp_path / "runs")


def test_a_truncated_image_is_named(tmp_path):
    make_set(tmp_path / "set")
    bad = tmp_path / "set" / "train" / "dots" / "0003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    refused(run(tmp_path, folder_settings(tmp_path / "set")), "0003.png")
    nothing_left(tmp_path / "runs")


def test_classes_that_differ_between_train_and_test(tmp_path):
    make_set(tmp_path / "set")
    (tmp_path / "set" / "test" / "dots").rename(tmp_path / "set" / "test" / "specks")
    refused(run(tmp_path, folder_settings(tmp_path / "set")), "dots", "specks")
    nothing_left(tmp_path / "runs")


def test_a_checkpoint_for_other_classes(tmp_path):
    make_set(tmp_path / "set")
    other = cifar("resnet8_cifar", classes=5, channels=1, width=1)
    torch.save(other.state_dict(), tmp_path / "t.pt")
    text = folder_settings(tmp_path / "set") + (
        f'[teach]\narch = "resnet8_cifar"\ncheckpoint = "{tmp_path / "t.pt"}"\n'
    )
    refused(run(tmp_path, text), "5 classes", "the image set has 3")
    nothing_left(tmp_path / "runs", "data")


def test_a_checkpoint_that_is_not_there(tmp_path):
    make_set(tmp_path / "set")
    text = folder_settings(tmp_path / "set") + '[teach]\ncheckpoint = "gone.pt"\n'
    refused(run(tmp_path, text), "gone.pt")
    nothing_left(tmp_path / "runs")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_checkpoint_that_cannot_be_read(tmp_path):
    """/proc/self/mem is a file that not even root can read from its start."""
    make_set(tmp_path / "set")
    text = folder_settings(tmp_path / "set") + '[teach]\ncheckpoint = "/proc/self/mem"\n'
    refused(run(tmp_path, text), "Error: Input/output error", "--debug")
    nothing_left(tmp_path / "runs", "data")


def test_settings_that_are_a_folder(tmp_path):
    refused(pipeline("run", tmp_path, "--runs", tmp_path / "runs"), str(tmp_path))
    nothing_left(tmp_path / "runs")


def test_a_report_that_is_a_folder(tmp_path):
    (tmp_path / "x" / "report.json").mkdir(parents=True)
    refused(pipeline("show", "x", "--runs", tmp_path), "report.json", "--debug")
    done = pipeline("--debug", "show", "x", "--runs", tmp_path)
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_a_fault_of_the_program_keeps_its_traceback():
    assert command_line.explained(ValueError("x")) is None


def test_out_of_memory_on_a_gpu_says_what_to_lower():
    told = command_line.explained(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nMore"))
    assert told is not None and told.message == "out of memory: CUDA out of memory. Tried 2 GiB."
    assert "Lower batch_size" in told.remedy


def test_the_command_can_be_typed_again(monkeypatch):
    words = ["run", "my settings.toml", "--set", 'export.formats=["onnx"]']
    monkeypatch.setattr(sys, "argv", ["__main__.py", *words])
    assert shlex.split(command_line._command()) == ["python", "-m", "pipeline", *words]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_go_on(tmp_path, how):
    make_set(tmp_path / "set")
    (tmp_path / "run.toml").write_text(folder_settings(tmp_path / "set"), encoding="utf-8")
    words = ["run", str(tmp_path / "run.toml"), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        while process.poll() is None:
            if any((tmp_path / "runs" / ".store" / ".partial").glob("teach-*")):
                process.send_signal(how)
                break
            time.sleep(0.001)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Stopped. Run the same command again to go on where it was." in told
    assert "Traceback" not in told
    nothing_left(tmp_path / "runs", "data")


def test_an_unknown_network(tmp_path):
    make_set(tmp_path / "set")
    text = folder_settings(tmp_path / "set") + '[teach]\narch = "resnet20_cfar"\n'
    refused(run(tmp_path, text), "Did you mean `resnet20_cifar`?")
    nothing_left(tmp_path / "runs", "data")


def test_a_missing_optional_package(tmp_path):
    """A folder that hides scikit-learn stands in for an environment without it."""
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text(
        "raise ModuleNotFoundError('no sklearn', name='sklearn')"
    )
    (tmp_path / "run.toml").write_text('name = "x"\n[data]\nsource = "digits"\n')
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", tmp_path / "run.toml", "--runs", tmp_path / "r"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    refused(done, "`sklearn` is not installed", '".[digits]"')
    nothing_left(tmp_path / "r")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(tmp_path):
    make_set(tmp_path / "set")
    done = run(tmp_path, 'device = "cuda"\n' + folder_settings(tmp_path / "set"))
    refused(done, 'device = "cuda"')
    nothing_left(tmp_path / "runs")


def test_doctor_names_formats_runtimes_and_devices():
    done = pipeline("doctor")
    assert done.returncode == 0
    for word in ("onnx", "coreml", "tensorrt", "tensorrt_rtx", "cuda", "cpu", "mps", "pytorch"):
        assert word in done.stdout
