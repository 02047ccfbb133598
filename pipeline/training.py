"""The one training loop that teacher, baseline and student share.

Images stay uint8 [n, size, size, channels], in memory or on the GPU where they fit; a batch is an
index into them, augmented as a tensor. What is trained is the `Classifier`, which normalises the
uint8 images itself, exactly as the exported file will.

Every random number follows from the seed, the epoch and the step (see `pipeline.batches`), so that
a training that was killed and continued ends in the same weights, bit for bit on a CPU, as one that
was not, and several processes compute what one would.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import models
from models.classifier import Classifier
from pipeline import evaluation
from pipeline.batches import Batch, Batches
from pipeline.checkpoints import write_weights
from pipeline.context import Context
from pipeline.devices import autocast, peak_memory, pick_precision, prepare, where
from pipeline.errors import ConfigError, DataError, TrainingError
from pipeline.images import open_split
from pipeline.logits import cross_entropy
from pipeline.metrics import Metrics
from pipeline.optimizing import Average, make_optimizer, rate_at, set_rate
from pipeline.pretrained import start_from
from pipeline.progress import Bar, bar, console
from pipeline.records import Checkpoint, Dataset, Epoch, Role
from pipeline.resume import Resume
from pipeline.settings import Pretrained, Recipe
from pipeline.store import resume_folder

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


def train(
    job: Job,
    dataset: Dataset,
    context: Context,
    folder: Path,
    objective: Objective,
    views: int = 0,
) -> Checkpoint:
    """Train `job` on the training split; write ``weights.pt`` of the last epoch into `folder`.

    With `views` the augmented views of the split repeat in a cycle of that length; else each epoch
    has its own. The validation split is looked at after each epoch, and decides nothing; the test
    split is not touched. Where `store.resume_folder` holds the state of an interrupted training
    of this job, it goes on from there.

    Raises `DataError` where there are fewer than two images, `ConfigError` where the batch cannot
    be shared evenly, `TrainingError` where the loss is no number any more.
    """
    trainer = _Trainer(job, dataset, context, objective, views)
    resume = Resume(resume_folder(folder), context.checkpoint_seconds, writes=context.team.leads)
    metrics = None
    if context.team.leads:
        board = context.tensorboard and context.tensorboard / _title(job, context)
        metrics = Metrics(folder, board)
    history = trainer.run(resume, metrics)
    network = trainer.result
    if context.team.leads:
        write_weights(network, folder / "weights.pt")
    return describe(job, network, dataset, trainer.where, trainer.dtype, history)


def _title(job: Job, context: Context) -> str:
    return f"{job.role}-seed{context.seed}"


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
        input=dataset.input,
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=evaluation.count_macs(network.to("cpu"), dataset),
        device=device,
        precision=str(dtype).removeprefix("torch."),
        start=str(job.pretrained.weights) if job.pretrained else "random",
        history=history,
    )


class _Trainer:
    """One training from its start, or from where it was interrupted, to its end."""

    def __init__(
        self, job: Job, dataset: Dataset, context: Context, objective: Objective, views: int
    ) -> None:
        self._job, self._recipe, self._context = job, job.recipe, context
        self._team, self._objective = context.team, objective
        self._device = prepare(context)
        network = job.network(dataset)
        self._head = {name for name, _ in network.named_parameters()}
        if job.pretrained is not None:
            table = "teach" if job.role == "teacher" else "student"
            self._head = start_from(network, job.arch, job.pretrained, f"{table}.pretrained")
        self.dtype = pick_precision(job.recipe, network, self._device)
        self._model = self._placed(Classifier(network, dataset.input))
        self._forward: Callable[[Tensor], Tensor] = self._model
        self._frozen: bool | None = None
        self._average = Average(self._model, self._recipe.ema) if self._recipe.ema else None
        self._optimizer = make_optimizer(
            self._model.network,
            self._recipe,
            fused=self._device.type in ("cpu", "cuda"),
            head=self._head,
            body_rate=job.pretrained.body_rate if job.pretrained else 1.0,
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self.dtype == torch.float16)
        images = open_split(dataset, "train")
        self._batches = Batches(
            images,
            _batch_size(self._recipe, len(images), self._team.size),
            self._device,
            settings=self._recipe.augment,
            seed=context.seed,
            team=self._team,
            views=views,
        )
        self._val = open_split(dataset, "val")
        self._history: list[Epoch] = []
        self._step = 0
        """Steps done in this epoch."""
        self._loss = torch.zeros((), device=self._device)
        """Sum of their losses."""
        self._seconds = 0.0
        """Time they took."""

    @property
    def result(self) -> nn.Module:
        """The network to keep: the last weights, or their moving average."""
        return (self._average.network if self._average else self._model).network

    @property
    def where(self) -> str:
        """The devices in words."""
        n = self._team.size
        return where(self._device) if n == 1 else f"{n} × {where(self._device)}"

    def run(self, resume: Resume, metrics: Metrics | None) -> tuple[Epoch, ...]:
        """Train to the end."""
        state = resume.read()
        total = len(self._batches) * self._recipe.epochs
        if state is not None:
            self._restore(state)
            if self._team.leads:
                console.print(f"{self._job.role}: going on after step {self._done} of {total}")
        with bar(self._job.role, total) as shown:
            shown.advance(self._done)
            while len(self._history) < self._recipe.epochs:
                self._run_epoch(resume, shown)
                self._history.append(self._finish_epoch())
                if metrics is not None:
                    metrics.write(self._history)
                last = self._history[-1]
                note = f"epoch {last.epoch}/{self._recipe.epochs}, validation {last.val_top1:.2%}"
                shown.advance(0, note=note)
        if metrics is not None:
            metrics.close()
        return tuple(self._history)

    @property
    def _done(self) -> int:
        """Steps done since the start."""
        return len(self._history) * len(self._batches) + self._step

    def _placed(self, model: Classifier) -> Classifier:
        model = model.to(self._device).to(memory_format=torch.channels_last)
        if self._team.size > 1 and self._device.type == "cuda":
            # Statistics of the whole batch: the result must not depend on the number of GPUs.
            model.network = nn.SyncBatchNorm.convert_sync_batchnorm(model.network)
        return model

    def _set_phase(self, epoch: int) -> None:
        """Training mode; in the first epochs of a pretrained network only the head learns."""
        frozen = self._job.pretrained is not None and epoch < self._job.pretrained.frozen_epochs
        self._model.train()
        if frozen:
            for module in self._model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for name, parameter in self._model.network.named_parameters():
            parameter.requires_grad_(not frozen or name in self._head)
        forward: Any = self._model
        if self._team.size > 1:
            forward = DistributedDataParallel(self._model)
        wanted = self._recipe.compile
        if wanted is True or (wanted == "auto" and self._device.type == "cuda"):
            forward = torch.compile(forward)
        self._forward = forward

    def _run_epoch(self, resume: Resume, shown: Bar) -> None:
        epoch, before = len(self._history), self._seconds
        since = time.perf_counter()
        self._set_phase(epoch)
        for batch in self._batches.epoch(epoch, skip=self._step):
            self._loss += self._update(batch)
            self._step += 1
            shown.advance()
            if resume.is_due():
                self._seconds = before + time.perf_counter() - since
                resume.write(self._state())
        # Waits for the GPU, so that the time is the whole time.
        self._loss = self._team.total(self._loss) / self._team.size
        float(self._loss)
        self._seconds = before + time.perf_counter() - since

    def _update(self, batch: Batch) -> Tensor:
        """One update of the weights; nothing in it waits for the GPU."""
        done, steps = self._done, len(self._batches) * self._recipe.epochs
        # For dropout: a function of the step, so that there is no generator's state to save.
        torch.manual_seed(self._context.seed + (done << 20) + self._team.rank)
        set_rate(self._optimizer, rate_at(done, steps, self._recipe.warmup))
        with autocast(self._device, self.dtype):
            logits = self._forward(batch.images)
        loss = self._objective(batch, logits)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        if self._recipe.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(done)
        return loss.detach()

    def _finish_epoch(self) -> Epoch:
        number, steps = len(self._history) + 1, len(self._batches)
        loss = float(self._loss) / steps
        if not math.isfinite(loss):
            raise TrainingError(
                f"the {self._job.role}'s training diverged in epoch {number}: its loss is {loss}",
                remedy="Lower the recipe's learning_rate, or lengthen its warmup.",
            )
        since = time.perf_counter()
        judged = self._average.network if self._average else self._model
        val_top1 = evaluation.top1(judged, self._val, self._device, self.dtype, self._team)
        epoch = Epoch(
            epoch=number,
            loss=loss,
            val_top1=val_top1,
            seconds=self._seconds + time.perf_counter() - since,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            images_per_second=steps * self._batches.size / self._seconds,
            memory_bytes=peak_memory(self._device),
        )
        self._step, self._seconds = 0, 0.0
        self._loss = torch.zeros((), device=self._device)
        return epoch

    def _state(self) -> dict[str, Any]:
        return {
            "history": [epoch.model_dump() for epoch in self._history],
            "step": self._step,
            "loss": self._loss,
            "seconds": self._seconds,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": self._average.network.state_dict() if self._average else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._history = [Epoch(**epoch) for epoch in state["history"]]
        self._step, self._seconds = state["step"], state["seconds"]
        self._loss = state["loss"].to(self._device)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.network.load_state_dict(state["average"])


def _batch_size(recipe: Recipe, images: int, processes: int) -> int:
    """Images a step over all processes."""
    if images < 2 * processes:
        raise DataError(
            f"the training split has {images} images, fewer than two for each process",
            remedy="Add images.",
        )
    if recipe.batch_size % processes:
        raise ConfigError(
            f"a batch of {recipe.batch_size} images cannot be shared evenly by {processes} "
            "processes",
            remedy="Choose a batch_size that is a multiple of the number of processes.",
        )
    return min(recipe.batch_size, images - images % processes)
