"""A training that is killed and continued ends in the same bits as one that never was."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.resume import Resume
from tests.pictures import make_set

ROOT = Path(__file__).parents[1]
KILLS = {"teach": 3, "distill": 3}


def command(images, store, seconds=0.0, more=None):
    head = [sys.executable, "-m", "tests.train_small", str(images), str(store)]
    return [*head, str(seconds), json.dumps(more or {})]


def finish(images, store, **more):
    done = subprocess.run(
        command(images, store, **more), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), train=60)


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    return finish(images, tmp_path_factory.mktemp("unbroken"), seconds=1e9)[0]


def states(store, stage):
    return list((store / ".partial").glob(f"{stage}-*.resume/state.pt"))


def kill_after(images, store, stage, writes):
    """Start the training; SIGKILL it once it has written its state that many times."""
    process = subprocess.Popen(
        command(images, store), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = set()
    try:
        while process.poll() is None and len(seen) < writes:
            seen |= {(p.stat().st_mtime_ns, p.stat().st_ino) for p in states(store, stage)}
            time.sleep(0.0005)
    except FileNotFoundError:  # the training ended between two looks
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, "it ended before it could be killed"
    assert states(store, stage)


@pytest.mark.slow
def test_killed_at_random_steps_it_ends_in_the_same_bits(images, unbroken, tmp_path):
    seed = random.randrange(1 << 30)
    print(f"random.Random({seed})")
    chance = random.Random(seed)
    for stage, times in KILLS.items():
        for _ in range(times):
            kill_after(images, tmp_path, stage, chance.randint(1, 6))
    found, said = finish(images, tmp_path, seconds=1e9)
    assert "student: going on after step" in said
    assert found == unbroken
    assert not any((tmp_path / ".partial").iterdir())


def test_the_state_is_replaced_whole_and_a_damaged_one_is_not_used(tmp_path, capsys):
    resume = Resume(tmp_path, 0, writes=True)
    assert resume.read() is None and resume.is_due()
    for step in (1, 2):
        resume.write({"step": step, "weights": torch.full((3,), float(step))})
    found = resume.read()
    assert found is not None and found["step"] == 2 and found["weights"].tolist() == [2, 2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:-40])
    assert resume.read() is None
    assert "starting anew" in capsys.readouterr().err
    assert not Resume(tmp_path, 3600, writes=True).is_due()
    assert not Resume(tmp_path, 0, writes=False).is_due()
