"""The plain file that every training writes; TensorBoard's beside it where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import require
from pipeline.records import Epoch

FILE = "metrics.jsonl"
"""One JSON object an epoch, with the fields of `records.Epoch`."""


class Metrics:
    """Where the epochs of one training are written down as they end."""

    def __init__(self, folder: Path, tensorboard: Path | None) -> None:
        """`tensorboard` is the folder for event files; None writes none.

        Raises `NotInstalledError` where they are wanted and the package is missing.
        """
        self._file = folder / FILE
        self._writer = None
        if tensorboard is not None:
            require("tensorboard", "tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard))

    def write(self, history: Sequence[Epoch]) -> None:
        """Write all of `history` down; its last epoch is new."""
        lines = (json.dumps(epoch.model_dump()) + "\n" for epoch in history)
        self._file.write_text("".join(lines), encoding="utf-8")
        if self._writer is not None:
            _scalars(self._writer, history[-1])
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def _scalars(writer: object, epoch: Epoch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    assert isinstance(writer, SummaryWriter)
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
