"""The store: whole or not at all, once or again, and two runs at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.records import Measurement
from pipeline.store import Store, digest, file_sha256, size_of, writing

ROOT = Path(__file__).parents[1]


def get(store, work, *, version=1, settings=None, facts=None):
    return store.get(
        Measurement, "measure", work, version=version, settings=settings or {}, facts=facts
    )


def wrote(folder):
    (folder / "a.bin").write_bytes(b"12345")
    return Measurement(load_ms=1.5)


def never(folder):
    raise AssertionError("should have been reused")


def test_second_time_is_reused_and_equal(tmp_path):
    first = get(Store(tmp_path), wrote)
    store = Store(tmp_path)
    again = get(store, never)
    assert again == first and again.load_ms == 1.5
    assert (again.folder / "a.bin").read_bytes() == b"12345"
    assert store.outcomes[-1].reused


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"settings": {"x": 1}}, {"facts": {"torch": "2"}}]
)
def test_whatever_decides_the_result_changes_the_key(tmp_path, change):
    store = Store(tmp_path)
    assert get(store, wrote).key != get(store, wrote, **change).key


def test_an_error_leaves_nothing(tmp_path):
    def fails(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        get(Store(tmp_path), fails)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and ".locks" not in p.parts]
    assert left == []


@pytest.mark.parametrize("damage", ["cut", "gone", "record"])
def test_a_damaged_result_is_made_anew(tmp_path, damage):
    home = get(Store(tmp_path), wrote).folder
    if damage == "cut":
        (home / "a.bin").write_bytes(b"12")
    elif damage == "gone":
        (home / "a.bin").unlink()
    else:
        (home / "record.json").write_text("{")
    store = Store(tmp_path)
    assert (get(store, wrote).folder / "a.bin").read_bytes() == b"12345"
    assert not store.outcomes[-1].reused


def test_a_result_of_another_schema_is_made_anew(tmp_path):
    home = get(Store(tmp_path), wrote).folder
    body = json.loads((home / "record.json").read_text())
    (home / "record.json").write_text(json.dumps(body | {"schema": 0}))
    store = Store(tmp_path)
    get(store, wrote)
    assert not store.outcomes[-1].reused


def test_a_store_can_be_moved(tmp_path):
    get(Store(tmp_path / "here"), wrote)
    (tmp_path / "here").rename(tmp_path / "there")
    found = get(Store(tmp_path / "there"), never)
    assert found.folder.is_relative_to(tmp_path / "there")
    assert "here" not in (found.folder / "record.json").read_text()


RACER = """
import sys, time
from pathlib import Path
from pipeline.records import Measurement
from pipeline.store import Store

def work(folder):
    with open(sys.argv[2], "a") as log:
        log.write("worked\\n")
    time.sleep(3)
    (folder / "a.bin").write_bytes(b"12345")
    return Measurement(load_ms=1.0)

Store(Path(sys.argv[1])).get(Measurement, "measure", work, version=1, settings={})
"""


def test_two_processes_on_one_key_work_once(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", RACER, str(tmp_path / "store"), str(log)]
    racers = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [racer.communicate(timeout=60)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert sum("waiting for it" in text for text in told) == 2
    assert log.read_text() == "worked\n"


def test_a_full_disk_is_said_so(tmp_path):
    """/dev/full answers every write with "no space left on device"."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which only Linux has")

    def work(folder):
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)
        return Measurement()

    with pytest.raises(StoreError, match="no space left"):
        get(Store(tmp_path), work)


def test_a_read_only_folder_is_said_so(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="may not write"):
        get(Store(tmp_path / "store"), wrote)


def test_other_errors_pass_through():
    with pytest.raises(FileNotFoundError), writing(Path()):
        Path("no/such/file").read_text()


def test_digest_tells_apart_and_repeats():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    with pytest.raises(TypeError):
        digest({"a": object()})


def test_a_folder_s_sum_covers_names_and_contents(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    assert file_sha256(tmp_path / "x") == file_sha256(tmp_path / "y")
    (tmp_path / "y" / "file").rename(tmp_path / "y" / "other")
    assert file_sha256(tmp_path / "x") != file_sha256(tmp_path / "y")
    assert size_of(tmp_path / "x") == 7
