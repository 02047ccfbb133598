"""DIST (Huang et al., NeurIPS 2022): the teacher's preferences by correlation, not its values.

https://arxiv.org/abs/2205.10536, for teachers so much stronger that the student cannot match them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipeline import settings

if TYPE_CHECKING:
    from torch import Tensor

MIXES = False


class Settings(settings.Settings):
    """The keys of [distill] that belong to method = "dist"."""

    temperature: float = Field(default=4.0, gt=0)
    """Softens both distributions; the authors take 4 for CIFAR-100 and 1 for ImageNet."""
    hard_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy with the labels (α = 1 in the paper)."""
    inter: float = Field(default=2.0, ge=0)
    """Weight of the relation between the classes of one image (β = 2 in the paper); left out
    where there are only two."""
    intra: float = Field(default=2.0, ge=0)
    """Weight of the relation between the images of a batch in one class (γ = 2 in the paper)."""


def distance(student: Tensor, teacher: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """T² · (β · inter + γ · intra), section 4, with T² as in the authors' code.

    Both are means of 1 - Pearson correlation: of the rows of softmax(z / T), and of its columns.
    Two numbers correlate by +1 or -1 whatever they are, so that rows of two classes, like columns
    of two images, have nothing to teach, and are left out: what gradient they have is the 1e-8
    below and rounding, and near equal numbers it grows so large that it undoes the training.
    """
    from pipeline.logits import widen

    temperature = settings.temperature
    own = (widen(student) / temperature).softmax(dim=1)
    target = (widen(teacher.detach()) / temperature).softmax(dim=1)
    loss = 0 * own.sum()  # so that there is a gradient, of zeros, where both are left out
    for weight, rows, others in (
        (settings.inter, own, target),
        (settings.intra, own.T, target.T),
    ):
        if rows.shape[1] > 2:
            loss = loss + weight * (1 - _correlation(rows, others)).mean()
    return temperature**2 * loss


def _correlation(rows: Tensor, others: Tensor) -> Tensor:
    """Pearson correlation of each of `rows` with its row of `others`, [n, m] to [n].

    0, without a gradient, where one of the two is constant. 1e-8 as in the authors' code: it also
    mutes columns of classes that nobody thinks of.
    """
    from pipeline.logits import centred

    rows, others = centred(rows), centred(others)
    return (rows * others).sum(dim=1) / (rows.norm(dim=1) * others.norm(dim=1) + 1e-8)
