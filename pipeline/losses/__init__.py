"""The distillation methods: one file each, found by its name; importing this imports no torch.

To add a method, write ``pipeline/losses/<name>.py`` with what `Loss` asks for, from the pieces in
`pipeline.logits`. The settings file, the distill stage and the contract tests pick it up by
themselves; only what its values should be has to be said in `CASES` of tests/test_losses.py. A
module imports torch inside its function only: settings are checked without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

from pipeline import settings as shared

if TYPE_CHECKING:
    from torch import Tensor

    class LossSettings(shared.Settings):
        """The settings of any method, as the distill stage sees them."""

        hard_weight: float = 0.0
        """Weight of the cross-entropy with the labels: a field, or a ClassVar where the method
        leaves no choice."""


class Loss(Protocol):
    """What the module of a method exposes."""

    Settings: type[LossSettings]
    """The keys that stand in [distill] with this method: of `pipeline.settings.Settings`."""
    MIXES: bool
    """Whether the method is defined for mixed images only: it needs mixup or cutmix."""

    def distance(
        self, student: Tensor, teacher: Tensor, labels: Tensor, settings: LossSettings
    ) -> Tensor:
        """All of the loss but the cross-entropy, weighted: a scalar, the mean over the batch.

        `student` and `teacher` are logits [batch, classes] of any float type and any number of
        classes from two, `labels` int64 [batch]; for mixed images they are those of the larger
        share. Computed in float32; without a gradient to the teacher; 0 where both agree (but for
        answers that are constant, where a method compares correlations).
        """
        ...


def names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Loss:
    """The module of that name."""
    return cast(Loss, importlib.import_module(f"pipeline.losses.{name}"))
