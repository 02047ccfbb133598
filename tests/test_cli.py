"""Wrong input at the command line: exit code 2, a message that helps, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.resnet import cifar
from tests.pictures import make_set

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


def nothing_left(tmp_path):
    return not [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and p.name[0] != "d"]


def test_unknown_key(tmp_path):
    done = run(tmp_path, 'name = "x"\n[data]\nsource = "digits"\n[distill]\ntemprature = 1\n')
    refused(done, "distill.temprature", "did you mean `temperature`?")
    assert not (tmp_path / "runs").exists()


def test_markup_in_an_error_is_printed_as_it_is(tmp_path):
    refused(pipeline("run", tmp_path / "[red]x[/red].toml"), "[red]x[/red].toml")


def test_debug_shows_the_traceback(tmp_path):
    done = run(tmp_path, "name = 1", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr and "ConfigError" in done.stderr


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_run_that_is_not_there(tmp_path, command):
    refused(pipeline(command, "nothing", "--runs", tmp_path), "nothing")


def test_compare_needs_two_runs(tmp_path):
    refused(pipeline("compare", "one", "--runs", tmp_path), "two runs")


def test_an_option_that_does_not_exist():
    assert pipeline("run", "x.toml", "--sett", "a=1").returncode == 2


def test_folders_without_images_or_with_one_class(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(run(tmp_path, folder_settings(tmp_path / "empty")), "no images", str(tmp_path))
    make_set(tmp_path / "one")
    for name in ("dots", "rings"):
        for split in ("train", "test"):
            for path in (tmp_path / "one" / split / name).iterdir():
                path.unlink()
            (tmp_path / "one" / split / name).rmdir()
    refused(run(tmp_path, folder_settings(tmp_path / "one")), "one class", "bars")


def test_a_truncated_image_is_named(tmp_path):
    make_set(tmp_path / "set")
    bad = tmp_path / "set" / "train" / "dots" / "0003.png"
    bad.write_bytes(bad.read_bytes()[:60])
    refused(run(tmp_path, folder_settings(tmp_path / "set")), "0003.png")
    assert not list((tmp_path / "runs" / ".store" / ".partial").iterdir())


def test_classes_that_differ_between_train_and_test(tmp_path):
    make_set(tmp_path / "set")
    (tmp_path / "set" / "test" / "dots").rename(tmp_path / "set" / "test" / "specks")
    refused(run(tmp_path, folder_settings(tmp_path / "set")), "dots", "specks")


def test_a_checkpoint_for_other_classes(tmp_path):
    make_set(tmp_path / "set")
    other = cifar("resnet8_cifar", classes=5, channels=1, width=1)
    torch.save(other.state_dict(), tmp_path / "t.pt")
    text = folder_settings(tmp_path / "set") + (
        f'[teach]\narch = "resnet8_cifar"\ncheckpoint = "{tmp_path / "t.pt"}"\n'
    )
    refused(run(tmp_path, text), "5 classes", "the image set has 3")


def test_a_checkpoint_that_is_not_there(tmp_path):
    make_set(tmp_path / "set")
    text = folder_settings(tmp_path / "set") + '[teach]\ncheckpoint = "gone.pt"\n'
    refused(run(tmp_path, text), "gone.pt")


def test_an_unknown_network(tmp_path):
    make_set(tmp_path / "set")
    text = folder_settings(tmp_path / "set") + '[teach]\narch = "resnet20_cfar"\n'
    refused(run(tmp_path, text), "Did you mean `resnet20_cifar`?")


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(tmp_path):
    make_set(tmp_path / "set")
    done = run(tmp_path, 'device = "cuda"\n' + folder_settings(tmp_path / "set"))
    refused(done, 'device = "cuda"')


def test_doctor_names_formats_runtimes_and_devices():
    done = pipeline("doctor")
    assert done.returncode == 0
    for word in ("onnx", "coreml", "tensorrt", "tensorrt_rtx", "cuda", "cpu", "mps", "pytorch"):
        assert word in done.stdout
