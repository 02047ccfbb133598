"""What every stage of one run shares."""

import platform
from dataclasses import dataclass

from pipeline.machine import cuda_devices, versions
from pipeline.settings import Device
from pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class Context:
    """Handed to each stage's `run`."""

    store: Store
    seed: int = 0
    """Decides initial weights, data order and augmentation."""
    device: Device = "auto"
    """Where training happens; see `pipeline.training.pick_device`."""
    threads: int = 0
    """CPU threads for training; 0 is all cores."""

    def training_facts(self) -> dict[str, str | int | None]:
        """What decides a training's result beside its settings and its parents.

        The number of threads is left out: it may change between two runs of the same experiment.
        """
        packages = versions("torch", "torchvision", "timm")
        return {"seed": self.seed, "device": self._kind_of_device(), **packages}

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
