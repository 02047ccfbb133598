"""A training that is killed and continued ends in the same bits as one that never was."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.resume import Resume
from tests.pictures import make_set

ROOT = Path(__file__).parents[1]
MORE = {"distill": {"method": "dkd", "views": 2}}
STEPS = 10
"""Of an epoch: 162 training images in batches of 16. There are three epochs."""


def command(images, store, seconds=0.0, more=None):
    head = [sys.executable, "-m", "tests.train_small", str(images), str(store)]
    return [*head, str(seconds), json.dumps(MORE if more is None else more)]


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


def without_memory(found):
    return {name: {k: v for k, v in each.items() if k != "memory"} for name, each in found.items()}


@pytest.mark.slow
def test_killed_at_random_steps_it_ends_in_the_same_bits(images, unbroken, tmp_path):
    seed = random.randrange(1 << 30)
    print(f"random.Random({seed})")
    chance = random.Random(seed)
    went_on = []
    for role, stage in (("teacher", "teach"), ("student", "distill")):
        # In each epoch once, and always at the first step of the second.
        steps = (chance.randint(4, STEPS - 1), STEPS, chance.randint(2 * STEPS, 3 * STEPS - 1))
        for step in steps:
            words = [role, str(step), str(chance.randint(1, 4))]
            done = subprocess.run(
                [*command(images, tmp_path), *words], cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == -signal.SIGKILL, done.stderr
            assert states(tmp_path, stage)
            went_on += re.findall(rf"{role}: going on after step (\d+) of {3 * STEPS}", done.stderr)
    found, said = finish(images, tmp_path, seconds=1e9)
    assert "student: going on after step" in said and len(went_on) == 4
    assert without_memory(found) == without_memory(unbroken)
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
