"""Decoupled knowledge distillation (Zhao et al., CVPR 2022): how sure of the label, and what else.

https://arxiv.org/abs/2203.08679. The authors' code also raises the weight of this loss linearly
over the first 20 epochs; here the warm-up of the learning rate has to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline import settings

if TYPE_CHECKING:
    from torch import Tensor

MIXES = False


class Settings(settings.Settings):
    """The keys of [distill] that belong to method = "dkd"."""

    temperature: float = Field(default=4.0, gt=0)
    """Softens both distributions; the authors take 4 for CIFAR-100 and 1 for ImageNet."""
    hard_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy with the labels (1 in the authors' code)."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the label against all other classes, TCKD (1 in the paper)."""
    beta: float = Field(default=8.0, ge=0)
    """Weight of the other classes among themselves, NCKD: the authors' code has 8 by default, less
    for teachers that are less sure (0.5 for ImageNet)."""


def distance(student: Tensor, teacher: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """T² · (α · TCKD + β · NCKD), equation 7; with two classes NCKD is 0: only one is left."""
    from pipeline.logits import soft_kl

    temperature = settings.temperature
    binary, rest = _decouple(student, labels, temperature)
    binary_target, rest_target = _decouple(teacher, labels, temperature)
    tckd = soft_kl(binary, binary_target, temperature)
    nckd = soft_kl(rest, rest_target, temperature)
    return settings.alpha * tckd + settings.beta * nckd


def _decouple(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits [batch, 2] of the label and of all other classes together, and [batch, classes - 1].

    Everything stays a logit: a probability 1 - p of a sure network would round to 0, and its
    logarithm to infinity.
    """
    import torch

    from pipeline.logits import widen

    logits, labels = widen(logits), labels[:, None]
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    rest = logits.gather(1, places + (places >= labels))
    together = temperature * (rest / temperature).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.gather(1, labels), together], dim=1), rest
