"""Files tried on emulated CPUs: how the emulators are fetched, and what they answer."""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import runtime
from pipeline import emulators, fetching
from pipeline.errors import (
    CannotRunHereError,
    ExportError,
    NotInstalledError,
    PipelineError,
    StoreError,
    UnavailableError,
)

ROOT = Path(__file__).parents[1]
NAMES = ("arm64", "haswell")
on_x86_linux = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="needs Linux on x86-64"
)


@pytest.fixture(scope="session")
def fetched():
    """The emulators, fetched where they are not there yet: a quarter of a minute, once."""
    try:
        fetching.fetch()
        emulators.arm64()
    except PipelineError as error:
        pytest.skip(f"no emulators: {error.message}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of its own."""
    monkeypatch.setenv(emulators.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stamped(cache):
    """Writes a stamp as of now but for some facts, and nothing that it speaks of."""

    def write(**facts):
        now = {
            "schema": emulators.SCHEMA,
            "onnxruntime": version("onnxruntime"),
            "qemu": "1.2",
            "python": "python3",
        }
        emulators.home().mkdir(parents=True)
        (emulators.home() / "stamp.json").write_text(json.dumps(now | facts))

    return write


@pytest.fixture
def fake_apt(tmp_path, monkeypatch):
    """Puts a shell script in apt-get's place."""

    def make(script):
        folder = tmp_path / "tools"
        folder.mkdir(exist_ok=True)
        for name, text in (("apt-get", script), ("dpkg", "echo amd64")):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return make


def available(name):
    return runtime.load(name).availability()


def noise(checkpoint, n=40):
    """More than one batch of the worker's."""
    size, channels = checkpoint.input.size, checkpoint.input.channels
    random = np.random.default_rng(3)
    return random.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def command_lines():
    """Of all processes; one may end while it is looked at."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_no_format_is_theirs():
    assert [name for name in NAMES if runtime.load(name).FORMATS] == []
    assert runtime.for_file("onnx", "model.onnx") == "onnx_runtime"


@on_x86_linux
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_fetched_is_said(cache, name, tmp_path):
    found = available(name)
    assert not found.ok
    assert found.detail == f"not fetched into {cache}/emulators"
    assert emulators.COMMAND in found.remedy
    with pytest.raises(NotInstalledError, match="not fetched"):
        runtime.load(name).open(tmp_path / "any.onnx", 1)


@on_x86_linux
def test_another_onnx_runtime_is_stale_for_arm64_alone(stamped):
    stamped(onnxruntime="0.1.0")
    found = available("arm64")
    assert not found.ok
    assert "stale" in found.detail and "0.1.0" in found.detail and emulators.COMMAND in found.remedy
    assert available("haswell").ok  # it runs the one installed here


@on_x86_linux
@pytest.mark.parametrize("stamp", ['{"schema": 0}', "{", "[]", "{}"])
def test_an_unusable_stamp_is_as_none(cache, stamp):
    emulators.home().mkdir(parents=True)
    (emulators.home() / "stamp.json").write_text(stamp)
    for name in NAMES:
        found = available(name)
        assert not found.ok and emulators.COMMAND in found.remedy


@on_x86_linux
def test_a_root_folder_that_nothing_can_enter(stamped):
    stamped()
    found = available("arm64")
    assert not found.ok and "nor proot can enter" in found.detail


def test_arm64_runs_natively_on_arm64(monkeypatch, cache, float_onnx, checkpoint):
    here = runtime.load("onnx_runtime").open(float_onnx.path, 1)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert available("arm64").ok and "native" in available("arm64").detail
    session = runtime.load("arm64").open(float_onnx.path, 1)
    assert session.name == f"{here.name} on arm64 (native)"
    images = noise(checkpoint)
    np.testing.assert_array_equal(session.run(images), here.run(images))
    found = available("haswell")
    assert not found.ok and "aarch64" in found.detail


def test_elsewhere_nothing_is_fetched(monkeypatch, cache):
    monkeypatch.setattr(platform, "system", lambda: "Plan9")
    assert [available(name).ok for name in NAMES] == [False, False]
    with pytest.raises(CannotRunHereError, match="need Linux on x86-64"):
        fetching.fetch()


@on_x86_linux
def test_without_debians_tools(monkeypatch, cache, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRunHereError, match="no apt-get and no dpkg here") as caught:
        fetching.fetch()
    assert "Debian" in caught.value.remedy
    assert not cache.exists()


@on_x86_linux
def test_a_fetch_that_fails_says_why_and_leaves_nothing(cache, fake_apt):
    fake_apt(
        'case "$*" in *update) echo "W: no route" >&2;; *) echo "E: no qemu" >&2; exit 1; esac'
    )
    with pytest.raises(UnavailableError, match=r"qemu-user-static.*E: no qemu W: no route"):
        fetching.fetch()
    assert [path.name for path in cache.iterdir()] == ["emulators.lock"]


@on_x86_linux
def test_a_fetch_that_is_killed_leaves_nothing_that_looks_whole(cache, fake_apt):
    fake_apt("sleep 60")
    command = [sys.executable, "-m", "pipeline", "fetch", "emulators"]
    going = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL, env=os.environ
    )
    try:
        end = time.monotonic() + 60
        while not list(cache.glob(".fetch-*/apt/status")):
            assert going.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.killpg(going.pid, signal.SIGKILL)
        going.wait()
    assert not emulators.home().exists() and "not fetched" in available("arm64").detail
    fake_apt("exit 1")
    with pytest.raises(UnavailableError):
        fetching.fetch()
    assert not list(cache.glob(".fetch-*"))


@on_x86_linux
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian's apt-get")
def test_a_full_disk_is_no_place_to_fetch_to(cache, monkeypatch):
    monkeypatch.setattr(fetching, "ROOM", 1 << 60)
    with pytest.raises(StoreError, match="No space left") as caught:
        fetching.fetch()
    assert emulators.CACHE in caught.value.remedy


@on_x86_linux
def test_a_cache_that_cannot_be_written(cache, fake_apt):
    fake_apt("exit 1")
    cache.write_text("a file in its place")
    with pytest.raises(StoreError, match=f"cannot write {cache}"):
        fetching.fetch()


@pytest.mark.arm64
def test_what_is_there_is_not_fetched_again(fetched, fake_apt):
    fake_apt("exit 1")
    command = [sys.executable, "-m", "pipeline", "fetch", "emulators"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert str(emulators.home()) in done.stdout and "there already" in done.stderr


@pytest.mark.arm64
@pytest.mark.parametrize("name", NAMES)
def test_float_answers_are_the_same_there(fetched, name, float_onnx, checkpoint):
    images = noise(checkpoint)
    session = runtime.load(name).open(float_onnx.path, threads=2)
    assert version("onnxruntime") in session.name and name in session.name.lower()
    logits = session.run(images)
    assert logits.dtype == np.float32
    here = runtime.load("onnx_runtime").open(float_onnx.path, threads=1)
    np.testing.assert_allclose(logits, here.run(images), rtol=0, atol=1e-4)


@pytest.mark.arm64
def test_the_emulated_cpus_are_the_ones_named(fetched):
    code = (
        "import json, numpy._core._multiarray_umath as m; "
        "print(json.dumps([x for x, there in m.__cpu_features__.items() if there]))"
    )
    arm, x86 = (
        set(json.loads(make().python("-c", code).stdout))
        for make in (emulators.arm64, emulators.haswell)
    )
    assert {"ASIMD", "ASIMDDP"} <= arm
    assert "AVX2" in x86 and not [name for name in x86 if name.startswith("AVX512")]


@pytest.mark.arm64
def test_several_may_run_at_once(fetched, float_onnx, checkpoint):
    session = runtime.load("arm64").open(float_onnx.path, threads=1)
    images = noise(checkpoint, 2)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(session.run, [images[:1], images[1:]]))
    np.testing.assert_allclose(np.concatenate(both), session.run(images), rtol=0, atol=1e-5)


@pytest.mark.arm64
@pytest.mark.parametrize("way", ["unshare", "proot"])
def test_ordinary_users_have_a_way_in(fetched, way, monkeypatch):
    """Here for whoever runs the tests: root may go the ordinary users' ways, too."""
    there = emulators.home()
    ways = [found for found in emulators.ways_in(there) if Path(found[0]).name == way]
    if not ways or not emulators.leads_in(there, ways[0]):
        pytest.skip(f"{way} is not there, or not allowed, on this machine")
    monkeypatch.setattr(emulators, "way_in", lambda there: ways[0])
    emulator = emulators.arm64()
    assert Path(emulator.command[0]).name == way
    done = emulator.python("-c", "import onnxruntime as o, platform as p; print(p.machine())")
    assert done.stdout.split() == ["aarch64"], done.stderr


@pytest.mark.arm64
def test_an_interruption_ends_what_was_started(fetched, monkeypatch):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    there = emulators.home()
    way = (str(there / "bin/proot"), "-r", str(there / "arm64"))
    if not emulators.leads_in(there, way):
        pytest.skip("proot is not allowed on this machine")
    monkeypatch.setattr(emulators, "way_in", lambda there: way)
    mark = f"mark = {os.getpid()}"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.alarm(3)
        with pytest.raises(KeyboardInterrupt):
            emulators.arm64().python("-c", f"import time; {mark}; time.sleep(60)")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    end = time.monotonic() + 10
    while going := [line for line in command_lines() if mark.encode() in line]:
        assert time.monotonic() < end, going
        time.sleep(0.05)


@pytest.mark.arm64
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_file_is_told_in_the_childs_words(fetched, name, tmp_path, checkpoint):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    session = runtime.load(name).open(broken, threads=1)
    with pytest.raises(ExportError, match=r"broken\.onnx gave no answer .*INVALID_PROTOBUF"):
        session.run(noise(checkpoint, 1))
    left = emulators.home() / "arm64/tmp"
    assert not list(left.glob("distillery-*"))
    with pytest.raises(ExportError, match=r"no file .*missing\.onnx"):
        runtime.load(name).open(tmp_path / "missing.onnx", threads=1)
