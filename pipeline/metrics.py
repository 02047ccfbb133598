"""The curves of a training: a plain file in any case, and TensorBoard's where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.records import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE = "metrics.jsonl"
"""One JSON object an epoch, with the fields of `records.Epoch`; beside the weights in the store."""


def title(role: str, seed: int) -> str:
    """Names the training of `role` with that seed, among those of a run."""
    return f"{role}-seed{seed}"


@dataclass(frozen=True)
class Logs:
    """The folders of a run where its curves lie, one file or folder a training, by its title."""

    folder: Path
    """The run's."""
    tensorboard: bool = False
    """Whether TensorBoard's event files are written too; needs the package tensorboard."""

    def file(self, title: str) -> Path:
        """The plain file."""
        return self.folder / "metrics" / f"{title}.jsonl"

    def board(self, title: str) -> Path:
        """The folder of event files."""
        return self.folder / "tensorboard" / title

    def show(self, title: str, history: Sequence[Epoch]) -> None:
        """Put there the curves of a training that may have been done in another run."""
        if history:
            _write(self.file(title), history)
        if history and self.tensorboard and not self.board(title).exists():
            writer = _open(self.board(title), 1)
            for epoch in history:
                _scalars(writer, epoch)
            writer.close()


class Metrics:
    """Writes the epochs of one training down as they end."""

    def __init__(self, folder: Path, logs: Logs | None, title: str) -> None:
        self._files = [folder / FILE, *([logs.file(title)] if logs else [])]
        self._board = logs.board(title) if logs and logs.tensorboard else None
        self._writer: SummaryWriter | None = None

    def write(self, history: Sequence[Epoch]) -> None:
        """Write all of `history` down; its last epoch is new."""
        for file in self._files:
            _write(file, history)
        if self._board is not None:
            # Of an interrupted training, what an epoch that is done again had left is taken back.
            self._writer = self._writer or _open(self._board, history[-1].epoch)
            _scalars(self._writer, history[-1])
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def _write(file: Path, history: Sequence[Epoch]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(epoch.model_dump()) + "\n" for epoch in history)
    file.write_text("".join(lines), encoding="utf-8")


def _open(folder: Path, first: int) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first)


def _scalars(writer: SummaryWriter, epoch: Epoch) -> None:
    values = {
        "loss/train": epoch.loss,
        "top1/validation": epoch.val_top1,
        "learning_rate": epoch.learning_rate,
        "speed/images_per_second": epoch.images_per_second,
        "memory/peak_bytes": epoch.memory_bytes,
    }
    for name, value in values.items():
        if value is not None:
            writer.add_scalar(name, value, epoch.epoch)
