"""The distilled student: the same network and budget as the baseline, guided by the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.context import Context
from pipeline.records import Checkpoint, Dataset
from pipeline.settings import Settings, Student

if TYPE_CHECKING:
    from pipeline.training import Objective


class Distill(Settings):
    """The table [distill]."""

    temperature: float = Field(default=4.0, gt=0)
    """Softens both distributions (Hinton, Vinyals & Dean 2015)."""
    hard_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of the cross-entropy with the labels; the teacher's term has the rest."""

    def run(
        self, context: Context, student: Student, teacher: Checkpoint, dataset: Dataset
    ) -> Checkpoint:
        """The student's checkpoint."""

        def work(folder: Path) -> Checkpoint:
            from pipeline import training

            job = training.Job(role="student", **dict(student))
            objective = self._objective(context, student, teacher)
            return training.train(job, dataset, context, folder, objective)

        return context.store.get(
            Checkpoint,
            "distill",
            work,
            version=1,
            settings={"distill": self, "student": student},
            parents=[dataset, teacher],
            facts=context.training_facts(),
        )

    def _objective(self, context: Context, student: Student, teacher: Checkpoint) -> Objective:
        import torch

        import models
        from pipeline import training
        from pipeline.losses import knowledge_distillation

        device = training.pick_device(context.device)
        guide = models.load(teacher).to(device).to(memory_format=torch.channels_last)
        precision = training.autocast(
            device, training.pick_precision(student.recipe, guide.network, device)
        )

        def objective(
            images: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
        ) -> torch.Tensor:
            with torch.no_grad(), precision:
                answer = guide(images)
            return knowledge_distillation(
                logits,
                answer,
                labels,
                temperature=self.temperature,
                hard_weight=self.hard_weight,
                label_smoothing=student.recipe.label_smoothing,
            )

        return objective
