"""The distilled student: the same network and budget as the baseline, guided by the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import ConfigDict, Field, create_model, field_validator, model_validator

from pipeline import losses
from pipeline.context import Context
from pipeline.errors import ConfigError
from pipeline.progress import console
from pipeline.records import Checkpoint, Dataset
from pipeline.settings import Settings, Student, read_table

if TYPE_CHECKING:
    import torch

    from pipeline.batches import Batch
    from pipeline.guidance import Recall
    from pipeline.jobs import Objective
    from pipeline.losses import LossSettings


class Distill(Settings):
    """The table [distill]; the keys of the chosen method stand beside these."""

    model_config = ConfigDict(extra="allow")

    method: str = "kd"
    """What the student is to imitate: the name of a module in pipeline/losses/, where its own keys
    are explained, such as `temperature` and `hard_weight`."""
    standardize_logits: bool = False
    """Compare the z-scores of the logits, not the logits (Sun et al., CVPR 2024), whose authors
    then take a temperature of 2."""
    views: int = Field(default=0, ge=0)
    """How many augmented views of the training split the teacher answers to, once, before the
    training, which then goes round in them; 0 runs the teacher on a new view in every epoch. Saves
    most of the time where there are many epochs and no GPU; few views overfit."""

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in losses.names():
            raise ValueError(
                f"no method is called `{method}`; there are: {', '.join(losses.names())}"
            )
        return method

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        own = {name: (f.annotation, f) for name, f in type(self).model_fields.items()}
        kind = losses.load(self.method).Settings
        # With its own keys too, so that a mistyped one of either kind finds its neighbour.
        whole: Any = create_model("Distill", __base__=kind, **cast(Any, own))
        read_table(self.model_extra or {}, whole, ("distill",))
        return self

    @property
    def loss(self) -> LossSettings:
        """The keys of the chosen method."""
        return losses.load(self.method).Settings.model_validate(self.model_extra or {})

    def check(self, student: Student) -> None:
        """Raise `ConfigError` where the method and the student's recipe do not fit; quick."""
        augment = student.recipe.augment
        if losses.load(self.method).MIXES and not (augment.mixup or augment.cutmix):
            raise ConfigError(
                f'distill.method = "{self.method}" is made for mixed images, and '
                "student.recipe.augment mixes none",
                remedy="Set student.recipe.augment.mixup to 1 (the baseline then mixes too).",
            )

    def run(
        self, context: Context, student: Student, teacher: Checkpoint, dataset: Dataset
    ) -> Checkpoint:
        """The student's checkpoint. Raises `ConfigError` where `check` does."""
        self.check(student)
        plain = student.model_copy(update={"pretrained": None})
        method = {"name": self.method, "settings": self.loss, "z": self.standardize_logits}

        def work(folder: Path) -> Checkpoint:
            from pipeline import jobs, training

            job = jobs.Job(role="student", **dict(student))
            objective, recall = self._objective(context, student, teacher, dataset)
            return training.train(job, dataset, context, folder, objective, self.views, recall)

        return context.trained(
            "distill",
            work,
            settings={"distill": method, "views": self.views, "student": plain},
            parents=[dataset, teacher],
            pretrained=student.pretrained,
        )

    def _objective(
        self, context: Context, student: Student, teacher: Checkpoint, dataset: Dataset
    ) -> tuple[Objective, Recall | None]:
        """What the student is to reach, and where the teacher's kept answers are looked up."""
        from pipeline import guidance
        from pipeline.devices import prepare
        from pipeline.jobs import imitating_labels
        from pipeline.logits import standardize

        recipe, settings = student.recipe, self.loss
        distance, hard = losses.load(self.method).distance, imitating_labels(recipe)
        if self.standardize_logits and len(dataset.labels) == 2:
            console.print(
                "[yellow]distill.standardize_logits: the z-scores of two logits say only which is "
                "larger; with two classes the teacher teaches nothing by them[/]"
            )
        recall: Recall | None = None
        if self.views:
            views = range(min(self.views, recipe.epochs))
            asking = guidance.Asking(context, teacher, dataset, recipe)
            answers = [asking.about(view) for view in views]
            recall, guide = guidance.kept(answers, prepare(context)), _recalled
        else:
            guide = guidance.running(context, teacher, recipe)

        def objective(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
            wanted, given = guide(batch), logits
            if self.standardize_logits:
                wanted, given = standardize(wanted), standardize(logits)
            loss = distance(given, wanted, batch.leading, settings)
            if not settings.hard_weight:
                return loss
            return loss + settings.hard_weight * hard(batch, logits)

        return objective, recall


def _recalled(batch: Batch) -> torch.Tensor:
    assert batch.answers is not None
    return batch.answers
