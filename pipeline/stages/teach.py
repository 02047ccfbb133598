"""The teacher: trained here, or the user's own checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.context import Context
from pipeline.errors import CheckpointError, ConfigError
from pipeline.pretrained import check
from pipeline.records import Checkpoint, Dataset
from pipeline.settings import Pretrained, Recipe, Settings
from pipeline.store import file_sha256

if TYPE_CHECKING:
    from pipeline.jobs import Job


class Teach(Settings):
    """The table [teach]."""

    arch: str = "resnet20_cifar"
    """`resnet<6n+2>_cifar` for small images, or any torchvision or timm classifier by name."""
    width: float = Field(default=1.0, gt=0, le=16)
    """Width multiplier of a CIFAR-style ResNet; other teachers have none."""
    checkpoint: Path | None = None
    """Weights of `arch`, trained elsewhere on the same classes in the same order: a state dict
    (.pt, .pth or .safetensors). Training is skipped."""
    pretrained: Pretrained | None = None
    """Weights of `arch`, trained on other classes, that the training starts from; by default it
    starts at random."""
    recipe: Recipe = Recipe()
    """How it is trained."""

    def check(self) -> None:
        """Raise `CheckpointError` where the given weights are not there; quick."""
        check(self.pretrained, "teach.pretrained", self.arch, self.width)
        if self.checkpoint is not None and self.pretrained is not None:
            raise ConfigError(
                "teach.checkpoint and teach.pretrained are both set",
                remedy="A checkpoint is used as it is; pretrained weights are trained on.",
            )
        if self.checkpoint is not None and not self.checkpoint.is_file():
            what = f"teach.checkpoint: there is no file {self.checkpoint}"
            raise CheckpointError(what, remedy="Check the path.")

    def run(self, context: Context, dataset: Dataset) -> Checkpoint:
        """The teacher's checkpoint.

        Raises `CheckpointError` where the given weights are missing, unreadable or do not fit.
        """
        self.check()
        if self.checkpoint is not None:
            return self._given(context, dataset, self.checkpoint)

        def work(folder: Path) -> Checkpoint:
            from pipeline import jobs, training

            objective = jobs.imitating_labels(self.recipe)
            return training.train(self._job(), dataset, context, folder, objective)

        return context.trained(
            "teach",
            work,
            settings=self.model_copy(update={"pretrained": None}),
            parents=[dataset],
            pretrained=self.pretrained,
        )

    def _job(self) -> Job:
        from pipeline import jobs

        return jobs.Job(
            role="teacher",
            arch=self.arch,
            width=self.width,
            recipe=self.recipe,
            pretrained=self.pretrained,
        )

    def _given(self, context: Context, dataset: Dataset, path: Path) -> Checkpoint:
        def work(folder: Path) -> Checkpoint:
            from pipeline import jobs
            from pipeline.checkpoints import fit_weights, read_weights, write_weights

            job = self._job()
            network = job.network(dataset)
            fit_weights(network, read_weights(path), path, self.arch)
            write_weights(network, folder / "weights.pt")
            return jobs.describe(job, network, dataset, "trained elsewhere")

        settings = {"arch": self.arch, "width": self.width}
        facts = {"sha256": file_sha256(path)}
        return context.store.get(
            Checkpoint, "teach", work, version=1, settings=settings, parents=[dataset], facts=facts
        )
