"""The state that an interrupted training goes on from.

It holds what changed since the start: weights, optimizer, scaler, average, and how far it came.
Data order, augmentation and dropout need none: their random numbers follow from seed, epoch and
step alone. It is written aside and renamed, so that the last good state is there at any instant.
"""

import io
import os
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.progress import console

FILE = "state.pt"


class Resume:
    """Keeps the state of one training in `folder`, written at most every `seconds`."""

    def __init__(self, folder: Path, seconds: float, *, writes: bool) -> None:
        self._file, self._seconds, self._writes = folder / FILE, seconds, writes
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to write."""
        return self._writes and time.monotonic() - self._last >= self._seconds

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state on disk. Raises `OSError` where it cannot be written."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_suffix(".new")
        buffer = io.BytesIO()  # `torch.save` to a file loses the reason of a failed write
        torch.save(state, buffer)
        with aside.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._file)
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The state on disk; None where there is none, or none that can be read."""
        if not self._file.exists():
            return None
        try:
            return torch.load(self._file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever its unpickler met
            console.print(f"{self._file} cannot be read ({error}); starting anew", highlight=False)
            return None
