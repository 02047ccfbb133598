"""PyTorch eager on the CPU: shown beside the exported files, as what they are compared with.

It opens a checkpoint's folder in the store (``record.json`` and its weights).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckpointError
from pipeline.machine import package_version
from runtime import Availability

FORMATS = ("checkpoint",)
VERSION = 1
TIMED = True
CAVEAT = ""


def availability() -> Availability:
    """torch is a plain dependency: always there."""
    return Availability(True, f"torch {package_version('torch')}, eager, CPU")


def warm_import() -> None:
    """Import torch and the networks, so that a load time does not count it."""
    import torchvision  # noqa: F401

    import models.classifier  # noqa: F401


class EagerSession:
    """One checkpoint in PyTorch eager, uint8 NHWC images in, float32 logits out."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        import models
        from pipeline.records import Checkpoint
        from pipeline.store import Store

        torch.set_num_threads(threads)
        checkpoint = Store.load(Checkpoint, folder)
        if checkpoint is None:
            raise CheckpointError(f"{folder} holds no checkpoint", remedy="Run the pipeline again.")
        classifier = models.load(checkpoint)
        self._classifier = classifier.to(memory_format=torch.channels_last)
        self.name = f"pytorch {torch.__version__}"

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits [batch, classes] of uint8 `images` [batch, height, width, channels]."""
        import torch

        with torch.inference_mode():
            return self._classifier(torch.from_numpy(images)).numpy()


def open(path: Path, threads: int) -> EagerSession:
    """Load the checkpoint folder `path`. Raises `CheckpointError` if there is none."""
    return EagerSession(path, threads)
