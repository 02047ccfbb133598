"""Quantization-aware distillation: the int8 graph's weights learn under a float network's guidance.

What is trained is `simulate.Simulated`, a placed graph in torch, from the float student's weights
with BatchNorm folded into them. It imitates the softened answers of its guide on augmented training
images (Hinton et al. 2015), as Mishra & Marr 2018 and Polino et al. 2018 do for few bits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.context import Context
from pipeline.jobs import Job, Objective
from pipeline.quantization.settings import FineTune
from pipeline.records import Checkpoint, Dataset, InputSpec, Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.batches import Batch


VERSION = 1
"""Raised when `simulate` or the objective give other weights for the same settings."""


@dataclass(frozen=True, kw_only=True)
class Tuning(Job):
    """The training of a placed graph."""

    placed: onnx.ModelProto
    scheme: Scheme
    ready: onnx.ModelProto

    def network(self, dataset: Dataset) -> nn.Module:
        """The simulation of the placed graph."""
        from pipeline.quantization.simulate import Simulated

        return Simulated(self.placed, self.ready, self.scheme)

    def input(self, dataset: Dataset) -> InputSpec:
        """The normalisation of the placed graph."""
        from pipeline.quantization.simulate import normalisation

        return normalisation(self.placed, dataset.input)

    @property
    def table(self) -> str:
        """The table of the settings file that it comes from."""
        return "quantize.fine_tune"


def tune(
    context: Context,
    settings: FineTune,
    job: Tuning,
    guide: Checkpoint,
    student: Checkpoint,
    dataset: Dataset,
) -> Checkpoint:
    """The checkpoint of `job`, trained under `guide`, or the stored one."""

    from pipeline.devices import pick_device

    def work(folder: Path) -> Checkpoint:
        from pipeline import training

        objective = _objective(context, settings, guide, job)
        return training.train(job, dataset, context, folder, objective)

    if pick_device(context.device).type == "mps":  # torch has no fake quantization there
        context = replace(context, device="cpu")
    graph = hashlib.sha256(job.placed.SerializeToString(deterministic=True)).hexdigest()
    return context.trained(
        "fine-tune",
        work,
        settings={
            "fine_tune": settings,
            "recipe": job.recipe,
            "graph": graph,
            "scheme": job.scheme,
        },
        parents=[dataset, guide, student],
        pretrained=None,
    )


def _objective(context: Context, settings: FineTune, guide: Checkpoint, job: Tuning) -> Objective:
    from pipeline import guidance
    from pipeline.jobs import imitating_labels
    from pipeline.logits import soft_kl

    ask, hard = guidance.running(context, guide, job.recipe), imitating_labels(job.recipe)

    def objective(batch: Batch, logits: Tensor) -> Tensor:
        loss = soft_kl(logits, ask(batch), settings.temperature)
        return loss + settings.hard_weight * hard(batch, logits) if settings.hard_weight else loss

    return objective


def tuned_weights(job: Tuning, checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """The trained weights and biases, by their names in the float graph."""
    import torch

    from pipeline.quantization.simulate import Simulated

    network = Simulated(job.placed, job.ready, job.scheme)
    network.load_state_dict(torch.load(checkpoint.weights_path, weights_only=True))
    return {name: np.asarray(value) for name, value in network.trained().items()}
