"""Several processes train as one would: same losses, one writer, and a clear end when one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import models
from pipeline.team import Team, is_lost, join
from tests.pictures import make_set
from tests.test_resume import command, finish, states, without_memory

pytest.importorskip("timm", reason="needs timm, for a network without batch normalisation")

ROOT = Path(__file__).parents[1]
# Without batch normalisation, whose statistics on a CPU are those of each process's own share.
ALIKE = {
    "teach": {
        "arch": "timm/test_efficientnet_gn",
        "recipe": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "precision": "fp32"},
    },
    "distill": {"views": 2},
}


def torchrun(*words):
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr"]
    return [*start, *where, "127.0.0.1", *words]


def two(images, store, seconds):
    return torchrun(*command(images, store, seconds, ALIKE)[1:])


def finish_two(images, store):
    done = subprocess.run(
        two(images, store, 1e9), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return found, done.stderr


def environment():
    return os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("set"), train=60)


@pytest.fixture(scope="module")
def together(images, tmp_path_factory):
    """What each of two processes printed, and their store."""
    store = tmp_path_factory.mktemp("together")
    return finish_two(images, store)[0], store


@pytest.mark.slow
def test_two_processes_lose_what_one_does(images, together, tmp_path):
    found, store = together
    assert sorted(each["team"]["rank"] for each in found) == [0, 1]
    one, other = (without_memory(each) for each in found)
    assert one["teacher"] == other["teacher"] and one["student"] == other["student"]
    alone, _ = finish(images, tmp_path, seconds=1e9, more=ALIKE)
    assert found[0]["teacher"]["losses"] == pytest.approx(alone["teacher"]["losses"], rel=2e-3)
    assert found[0]["teacher"]["val"] == pytest.approx(alone["teacher"]["val"], abs=2.5 / 18)
    # One writer, and the same files of it.
    kinds = [sorted((p.parts[-3], p.name) for p in s.glob("*/*/*")) for s in (store, tmp_path)]
    assert kinds[0] == kinds[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_the_job_with_a_message_and_it_can_go_on(images, together, tmp_path):
    process = subprocess.Popen(
        two(images, tmp_path, 0.0),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        while process.poll() is None and not states(tmp_path, "teach"):
            time.sleep(0.001)
        os.kill(rank_1_of(process.pid), signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    # Whichever is first: the closed connection, or the launcher's signal to end.
    lost = "connection to another process of this job was lost" in said
    assert (lost and "Start the same job again" in said) or "Run the same command again" in said
    assert states(tmp_path, "teach")
    found, said = finish_two(images, tmp_path)
    assert "teacher: going on after step" in said
    for role in ("teacher", "student"):
        assert found[0][role]["sha256"] == together[0][0][role]["sha256"]
        assert found[0][role]["losses"] == together[0][0][role]["losses"]


@pytest.mark.slow
def test_the_whole_command_runs_under_torchrun(images, tmp_path):
    """Streamed images, and a pretrained teacher whose body is frozen at first, among them."""
    start = models.build("resnet8_cifar", classes=5, channels=1, image_size=16)
    torch.save(start.state_dict(), tmp_path / "start.pt")
    (tmp_path / "two.toml").write_text(
        f"""
        name = "two"
        device = "cpu"
        threads = 1
        data = {{ source = "folder", folder = {json.dumps(str(images))}, memory_limit_mb = 0 }}
        [teach]
        arch = "resnet8_cifar"
        pretrained = {{ weights = {json.dumps(str(tmp_path / "start.pt"))}, frozen_epochs = 1 }}
        recipe = {{ epochs = 2, batch_size = 16 }}
        [student]
        arch = "mobilenet_v2"
        width = 0.25
        recipe = {{ epochs = 1, batch_size = 16 }}
        # After so short a training the answers hardly differ, and rounding weighs as much as they.
        [export]
        formats = ["onnx"]
        onnx = {{ max_difference = 1, max_drop = 100 }}
        [measure]
        profile = "smoke"
        """
    )
    words = ["-m", "pipeline", "run", str(tmp_path / "two.toml"), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        torchrun(*words), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Files to ship") == 1 and done.stderr.count("measure ") == 1
    found = json.loads((tmp_path / "runs" / "two" / "report.json").read_text(encoding="utf-8"))
    assert [row["device"] for row in found["models"]] == 3 * ["2 × cpu"]
    assert found["artifacts"][0]["parity"]["top1_agreement"] == 1


def rank_1_of(launcher):
    """The process of rank 1 among the children of `launcher`."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no process of rank 1 among {children}")


def test_a_job_of_one_process_needs_no_connection():
    team = join({})
    assert team == Team() and team.leads
    assert team.tell("x") == "x" and team.gather(3) == [3]


def test_what_a_broken_connection_says_is_known():
    assert is_lost(RuntimeError("[gloo/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost(ValueError("Connection closed by peer"))
