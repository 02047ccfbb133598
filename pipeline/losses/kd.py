"""Knowledge distillation: the teacher's softened answers (Hinton, Vinyals & Dean 2015, section 2).

https://arxiv.org/abs/1503.02531
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline import settings

if TYPE_CHECKING:
    from torch import Tensor

MIXES = False


class Settings(settings.Settings):
    """The keys of [distill] that belong to method = "kd"."""

    temperature: float = Field(default=4.0, gt=0)
    """Softens both distributions (Hinton, Vinyals & Dean 2015)."""
    hard_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of the cross-entropy with the labels."""
    soft_weight: float | None = Field(default=None, ge=0)
    """Weight of the teacher's term; by default the rest, 1 - `hard_weight`. Standardized logits
    want more: 9 beside a `hard_weight` of 0.1 (Sun et al. 2024)."""


def distance(student: Tensor, teacher: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """w · T² · KL(softmax(teacher / T) ‖ softmax(student / T)), w = `soft_weight`."""
    from pipeline.logits import soft_kl

    weight = settings.soft_weight
    weight = 1 - settings.hard_weight if weight is None else weight
    return weight * soft_kl(student, teacher, settings.temperature)
