"""What every stage of one run shares."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.machine import cpu_has_bfloat16, cuda_devices, versions
from pipeline.metrics import Logs
from pipeline.pretrained import facts
from pipeline.records import Checkpoint, Result
from pipeline.settings import Device, Pretrained
from pipeline.store import Store
from pipeline.team import Team

VIEWS = 1
"""Raised when `pipeline.batches` or `pipeline.augment` give other images for the same seed."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Handed to each stage's `run`."""

    store: Store
    seed: int = 0
    """Decides initial weights, data order and augmentation."""
    device: Device = "auto"
    """Where training happens; see `pipeline.devices.pick_device`."""
    threads: int = 0
    """CPU threads for training; 0 is all cores."""
    checkpoint_seconds: float = 60.0
    """How often a training writes the state that it can be continued from."""
    logs: Logs | None = None
    """Where curves are shown while they grow; None shows them nowhere."""

    @property
    def team(self) -> Team:
        """The processes that train together."""
        return self.store.team

    def trained(
        self,
        stage: str,
        work: Callable[[Path], Checkpoint],
        *,
        settings: object,
        parents: Sequence[Result],
        pretrained: Pretrained | None,
    ) -> Checkpoint:
        """The checkpoint of `work`, a training that all processes share, or the stored one.

        `settings` leave `pretrained` out: of a file the content counts, not its name.
        """
        start = {"start": pretrained.model_dump(exclude={"weights"})} if pretrained else {}
        return self.store.get(
            Checkpoint,
            stage,
            work,
            version=2,
            settings=settings,
            parents=parents,
            facts=self.training_facts() | facts(pretrained) | start,
            together=True,
        )

    def training_facts(self) -> dict[str, Any]:
        """What decides a training's result beside its settings and its parents.

        The number of threads is left out: it may change between two runs of the same experiment.
        Several processes share one batch, but not its dropout nor, on CPUs, its statistics.
        """
        kind = self._kind_of_device()
        several = {"processes": self.team.size} if self.team.size > 1 else {}
        bfloat16 = {"bfloat16": cpu_has_bfloat16()} if kind == "cpu" else {}
        packages = versions("torch", "torchvision", "timm", "numpy")
        known = {"seed": self.seed, "device": kind, "views": VIEWS}
        return known | several | bfloat16 | packages

    def _kind_of_device(self) -> str:
        """What `auto` will be, told without torch.

        A machine that was given a GPU must not find the results of its CPU.
        """
        if self.device != "auto":
            return self.device
        if cuda_devices():
            return "cuda"
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        return "mps" if apple else "cpu"
