"""Runs without a report: what their folders show of them, with real locks and real metrics."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from pipeline import summary, unfinished
from pipeline.errors import StoreError
from pipeline.metrics import Logs
from pipeline.records import Epoch

HOLD = """import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold():
    """Hold a lock in another process."""
    started = []

    def go(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-c", HOLD, str(path)]
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield go
    for process in started:
        if process.poll() is None:
            process.communicate("\n", timeout=20)


@pytest.fixture
def folder(tmp_path):
    """A run's folder whose training wrote an epoch of 100 s at second 1,000,000."""
    home = tmp_path / "runs" / "going"
    epoch = Epoch(epoch=1, loss=1.0, val_top1=0.5, seconds=100.0)
    Logs(home).show("student-seed0", [epoch])
    os.utime(home / "metrics" / "student-seed0.jsonl", (1_000_000, 1_000_000))
    return home


def test_a_run_that_wrote_lately_may_be_under_way(folder):
    told = unfinished.told(folder, now=1_000_000 + 500)
    assert told == (
        "it may be under way: the last epoch of student-seed0 ended at 1970-01-12 13:46 UTC"
    )


def test_a_run_that_is_silent_has_stopped(folder):
    told = unfinished.told(folder, now=1_000_000 + 601)
    assert told.startswith("it stopped before its report: the last epoch, of student-seed0")


def test_long_epochs_are_waited_for(folder):
    epoch = Epoch(epoch=1, loss=1.0, val_top1=0.5, seconds=3600.0)
    Logs(folder).show("teacher-seed0", [epoch])
    os.utime(folder / "metrics" / "teacher-seed0.jsonl", (1_000_001, 1_000_001))
    assert "may be under way" in unfinished.told(folder, now=1_000_000 + 3 * 3600)
    assert "stopped" in unfinished.told(folder, now=1_000_000 + 3 * 3600 + 2)


def test_pages_being_written_are_under_way_for_certain(folder, hold):
    hold(folder / ".lock")
    assert unfinished.told(folder) == "it is under way: its pages are being written"
    with pytest.raises(StoreError, match="run 'going' has no report: it is under way"):
        summary.read(folder)


def test_a_stage_at_work_in_the_store_may_be_this_runs(folder, hold):
    process = hold(folder.parent / ".store" / ".locks" / "measure-0123")
    assert "it may be under way" in unfinished.told(folder)  # silent since 1970
    shutil.rmtree(folder / "metrics")
    assert unfinished.told(folder) == "it may be under way: a run is at work"
    process.communicate("\n", timeout=20)
    assert unfinished.told(folder) == "no training in it ended an epoch"


def test_a_look_leaves_the_locks_free_and_makes_none(folder):
    lock = folder / ".lock"
    lock.touch()
    assert "stopped" in unfinished.told(folder)
    with FileLock(lock, timeout=0):
        pass
    shutil.rmtree(folder)
    assert unfinished.told(folder) == "there is no such run"
    assert not folder.exists() and not (folder.parent / ".store").exists()


def test_damaged_metrics_still_have_a_date(folder):
    file = folder / "metrics" / "student-seed0.jsonl"
    file.write_text('{"seconds": ')
    now = time.time()
    assert "may be under way" in unfinished.told(folder, now=now)
    assert "stopped" in unfinished.told(folder, now=now + 700)
