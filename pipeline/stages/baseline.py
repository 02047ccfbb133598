"""The baseline: the student trained without a teacher, so that a report says what one bought."""

from __future__ import annotations

from pathlib import Path

from pipeline.context import Context
from pipeline.records import Checkpoint, Dataset
from pipeline.settings import Settings, Student


class Baseline(Settings):
    """The table [baseline]. The budget is the student's own: `student.recipe`."""

    enabled: bool = True
    """Without it a report cannot say what distillation bought."""

    def run(self, context: Context, student: Student, dataset: Dataset) -> Checkpoint | None:
        """The baseline's checkpoint; None where it is switched off."""
        if not self.enabled:
            return None

        def work(folder: Path) -> Checkpoint:
            from pipeline import jobs, training

            job = jobs.Job(role="baseline", **dict(student))
            objective = jobs.imitating_labels(student.recipe)
            return training.train(job, dataset, context, folder, objective)

        return context.trained(
            "baseline",
            work,
            settings=student.model_copy(update={"pretrained": None}),
            parents=[dataset],
            pretrained=student.pretrained,
        )
