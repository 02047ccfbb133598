"""Trains a small teacher and student as a process of its own: what tests kill.

    python -m tests.train_small IMAGES STORE CHECKPOINT_SECONDS SETTINGS_AS_JSON [ROLE STEP EVERY]

Prints one JSON line: losses by role and the SHA-256 of each weights file. With a ROLE the process
kills itself (SIGKILL) when that training has done STEP steps since its start; it has written its
state after every EVERY steps.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

from pipeline import team
from pipeline.config import Config
from pipeline.context import Context
from pipeline.errors import PipelineError
from pipeline.store import Store, file_sha256

RECIPE = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}


def settings(images: str) -> dict:
    """A teacher without and a student with everything that has a state of its own."""
    augment = {"crop_padding": 1, "policy": "trivial_augment", "erasing": 0.2, "mixup": 0.5}
    student = RECIPE | {"ema": 0.9, "clip_norm": 1.0, "augment": augment, "optimizer": "adamw"}
    student["learning_rate"] = 0.005
    return {
        "name": "small",
        "data": {"source": "folder", "folder": images},
        "teach": {"arch": "resnet8_cifar", "recipe": RECIPE},
        "student": {"arch": "mobilenet_v3_small", "width": 0.25, "dropout": 0.2, "recipe": student},
    }


def train(images: str, store: Path, more: dict, seconds: float) -> dict:
    config = Config.model_validate(settings(images) | more)
    joined = team.join()
    context = Context(
        store=Store(store, joined), threads=1, device="cpu", checkpoint_seconds=seconds
    )
    dataset = config.data.run(context)
    teacher = config.teach.run(context, dataset)
    student = config.distill.run(context, config.student, teacher, dataset)
    found = {
        checkpoint.role: {
            "losses": [epoch.loss for epoch in checkpoint.history],
            "val": [epoch.val_top1 for epoch in checkpoint.history],
            "memory": [epoch.memory_bytes for epoch in checkpoint.history],
            "sha256": file_sha256(checkpoint.weights_path),
        }
        for checkpoint in (teacher, student)
    }
    return found | {"team": dataclasses.asdict(joined)}


def die(role: str, step: int, every: int) -> None:
    """Let the training of `role` end this process in the middle."""
    from pipeline import resume, training

    update, steps = training._Trainer._update, 0

    def counted(self, batch):
        nonlocal steps
        if self._job.role == role and self._done == step:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return update(self, batch)

    training._Trainer._update = counted
    resume.Resume.is_due = lambda self: self._writes and steps % every == 0


def main() -> None:
    images, store, seconds, more, *death = sys.argv[1:]
    if death:
        die(death[0], int(death[1]), int(death[2]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
    try:
        found = train(images, Path(store), json.loads(more), float(seconds))
    except PipelineError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to go on where it was.", file=sys.stderr)
        raise SystemExit(130) from None
    os.write(1, f"{json.dumps(found)}\n".encode())  # at once: two processes may share the pipe
    team.leave()


if __name__ == "__main__":
    main()
