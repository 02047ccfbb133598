"""Function matching (Beyer et al., CVPR 2022): a patient student of a consistent teacher.

https://arxiv.org/abs/2106.05237. Distillation as the matching of two functions, on many mixed views
of the images, the same for both, over long schedules; labels play no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pipeline import settings

if TYPE_CHECKING:
    from torch import Tensor

MIXES = True


class Settings(settings.Settings):
    """The keys of [distill] that belong to method = "function_matching"."""

    temperature: float = Field(default=1.0, gt=0)
    """Softens both distributions (1 in the authors' recipe for ImageNet)."""
    hard_weight: ClassVar[float] = 0.0
    """No cross-entropy: a mixed image has no true label."""


def distance(student: Tensor, teacher: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), as in the authors' code."""
    from pipeline.logits import soft_kl

    return soft_kl(student, teacher, settings.temperature)
