"""What is trained and towards what: the parts of a training that a stage decides."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import models
from pipeline import evaluation
from pipeline.batches import Batch
from pipeline.logits import cross_entropy
from pipeline.records import Checkpoint, Dataset, Epoch, InputSpec, Role
from pipeline.settings import Pretrained, Recipe

Objective = Callable[[Batch, Tensor], Tensor]
"""(the batch, its logits [b, classes]) -> scalar."""


def imitating_labels(recipe: Recipe) -> Objective:
    """The objective without a teacher: cross-entropy, smoothed as `recipe` says."""

    def objective(batch: Batch, logits: Tensor) -> Tensor:
        smoothing = recipe.label_smoothing
        return cross_entropy(logits, batch.labels, smoothing, batch.others, batch.share)

    return objective


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to be trained."""

    role: Role
    arch: str
    recipe: Recipe
    width: float = 1.0
    stem_stride: models.StemStride = "auto"
    dropout: float = 0.0
    pretrained: Pretrained | None = None

    def network(self, dataset: Dataset) -> nn.Module:
        """The untrained network, for the classes and images of `dataset`."""
        return models.build(
            self.arch,
            classes=len(dataset.labels),
            channels=dataset.input.channels,
            image_size=dataset.input.size,
            width=self.width,
            stem_stride=self.stem_stride,
            dropout=self.dropout,
        )

    def input(self, dataset: Dataset) -> InputSpec:
        """How the network wants its images normalised."""
        return dataset.input

    @property
    def table(self) -> str:
        """The table of the settings file that it comes from."""
        return "teach" if self.role == "teacher" else "student"


def describe(
    job: Job,
    network: nn.Module,
    dataset: Dataset,
    device: str,
    dtype: torch.dtype = torch.float32,
    history: tuple[Epoch, ...] = (),
) -> Checkpoint:
    """The record of a trained `network` whose weights lie in ``weights.pt``."""
    strided = job.arch in models.STUDENTS
    return Checkpoint(
        role=job.role,
        arch=job.arch,
        width=job.width,
        stem_stride=models.stride_of_stem(job.stem_stride, dataset.input.size) if strided else None,
        labels=dataset.labels,
        input=job.input(dataset),
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=evaluation.count_macs(network.to("cpu"), dataset.input),
        device=device,
        precision=str(dtype).removeprefix("torch."),
        start=str(job.pretrained.weights) if job.pretrained else "random",
        history=history,
    )
