"""The one training loop that teacher, baseline and student share.

Images stay uint8 [n, size, size, channels], in memory or on the GPU where they fit; a batch is an
index into them, augmented as a tensor. What is trained is the `Classifier`, which normalises the
uint8 images itself, exactly as the exported file will.

Every random number follows from the seed, the epoch and the step (see `pipeline.batches`), so that
a training that was killed and continued ends in the same weights, bit for bit on a CPU, as one that
was not. Several processes share the images of each step; they differ from one process in dropout,
in what `distill.method = "dist"` relates to one another, and, on CPUs, in the statistics of batch
normalisation, which there are those of each process's share.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.classifier import Classifier
from pipeline import evaluation
from pipeline.batches import Batch, Batches, seed_of
from pipeline.checkpoints import write_weights
from pipeline.context import Context
from pipeline.cuda_graph import Recorded, Step
from pipeline.devices import (
    autocast,
    compiled,
    forget_peak,
    peak_memory,
    pick_precision,
    prepare,
    where,
)
from pipeline.errors import ConfigError, DataError, DivergedError, TrainingError
from pipeline.guidance import Recall
from pipeline.images import open_split
from pipeline.jobs import Job, Objective, describe
from pipeline.metrics import Metrics, title
from pipeline.optimizing import Average, hold_rates, make_optimizer, rate_at, set_rate
from pipeline.pretrained import start_from
from pipeline.progress import Bar, bar, console
from pipeline.records import Checkpoint, Dataset, Epoch
from pipeline.resume import Resume
from pipeline.store import resume_folder

DROPOUT = 0xD409
"""Sets the numbers of dropout apart from those that shuffle and augment."""


def train(
    job: Job,
    dataset: Dataset,
    context: Context,
    folder: Path,
    objective: Objective,
    views: int = 0,
    recall: Recall | None = None,
) -> Checkpoint:
    """Train `job` on the training split; write ``weights.pt`` of the last epoch into `folder`.

    With `views` the augmented views of the split repeat in a cycle of that length, and `recall`
    looks up what the teacher said of them; else each epoch has its own. The validation split is
    looked at after each epoch, and decides nothing; the test split is not touched. Where
    `store.resume_folder` holds the state of an interrupted training of this job, it goes on from
    there.

    Raises `DataError` where there are fewer than two images, `ConfigError` where the batch cannot
    be shared evenly or padding can hide an image, `TrainingError` where the loss is no number any
    more.
    """
    trainer = _Trainer(job, dataset, context, objective, views, recall)
    resume = Resume(resume_folder(folder), context.checkpoint_seconds, writes=context.team.leads)
    metrics = (
        Metrics(folder, context.logs, title(job.role, context.seed)) if context.team.leads else None
    )
    history = trainer.run(resume, metrics)
    if context.team.leads:
        write_weights(trainer.result, folder / "weights.pt")
    return describe(job, trainer.result, dataset, trainer.where, trainer.dtype, history)


class _Trainer:
    """One training from its start, or from where it was interrupted, to its end."""

    def __init__(
        self,
        job: Job,
        dataset: Dataset,
        context: Context,
        objective: Objective,
        views: int,
        recall: Recall | None,
    ) -> None:
        self._job, self._recipe, self._context = job, job.recipe, context
        self._team, self._objective, self._recall = context.team, objective, recall
        self._device = prepare(context)
        network = job.network(dataset)
        self._head = {name for name, _ in network.named_parameters()}
        if job.pretrained is not None:
            self._head = start_from(network, job.arch, job.pretrained, f"{job.table}.pretrained")
        self.dtype = pick_precision(job.recipe, network, self._device)
        self._model = self._placed(Classifier(network, job.input(dataset)))
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
        hold_rates(self._optimizer, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self.dtype == torch.float16)
        images = open_split(dataset, "train")
        _check_padding(job, images.size)
        self._batches = Batches(
            images,
            _batch_size(job, len(images), self._team.size),
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
        if self._team.tell(self._done) != self._done:
            raise TrainingError(
                f"the process of rank {self._team.rank} read another saved state than the leader",
                remedy="All machines of the job must see the same store; name it with --store.",
            )
        if self._done and self._team.leads:
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
            model.network = synchronised(model.network)
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
        forward: nn.Module = self._model
        if self._team.size > 1:
            forward = DistributedDataParallel(self._model)
        self._forward = compiled(forward, self._recipe.compile)
        # The scaler of fp16 waits for the GPU, and communication between GPUs was not tried.
        recordable = self._device.type == "cuda" and self._team.size == 1
        records = recordable and not self._scaler.is_enabled()
        self._work: Step = Recorded(self._launch) if records else self._launch

    def _run_epoch(self, resume: Resume, shown: Bar) -> None:
        epoch, before = len(self._history), self._seconds
        since = time.perf_counter()
        forget_peak(self._device)
        self._set_phase(epoch)
        for batch in self._batches.epoch(epoch, skip=self._step):
            if self._recall is not None:
                batch = self._recall(batch)
            self._loss += self._team.total(self._update(batch)) / self._team.size
            self._step += 1
            shown.advance()
            if resume.is_due():
                self._seconds = before + time.perf_counter() - since
                resume.write(self._state())
        float(self._loss)  # waits for the GPU, so that the time is the whole time
        self._seconds = before + time.perf_counter() - since

    def _update(self, batch: Batch) -> Tensor:
        """One update of the weights; nothing in it waits for the GPU but the scaler of fp16."""
        done, steps = self._done, len(self._batches) * self._recipe.epochs
        # For dropout: a function of the step, so that there is no generator's state to save.
        torch.manual_seed(seed_of(self._context.seed, done, self._team.rank, DROPOUT))
        set_rate(self._optimizer, rate_at(done, steps, self._recipe.warmup))
        loss = self._work(batch)
        if self._average is not None:
            self._average.update(done)
        return loss

    def _launch(self, batch: Batch) -> Tensor:
        """The part of an update that is work for the device; its loss."""
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
        return loss.detach()

    def _finish_epoch(self) -> Epoch:
        number, steps = len(self._history) + 1, len(self._batches)
        loss = float(self._loss) / steps
        if not math.isfinite(loss):
            raise DivergedError(
                f"the {self._job.role}'s training diverged in epoch {number}: its loss is {loss}",
                remedy="Lower the recipe's learning_rate, lengthen its warmup or set clip_norm.",
            )
        since = time.perf_counter()
        judged = self._average.network if self._average else self._model
        self._team.align(judged.buffers())  # running statistics are each process's own
        val_top1 = evaluation.top1(judged, self._val, self._device, self.dtype, self._team)
        epoch = Epoch(
            epoch=number,
            loss=loss,
            val_top1=val_top1,
            seconds=self._seconds + time.perf_counter() - since,
            learning_rate=float(self._optimizer.param_groups[0]["lr"]),
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
        hold_rates(self._optimizer, self._device)
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.network.load_state_dict(state["average"])


def synchronised(network: nn.Module) -> nn.Module:
    """`network` with batch normalisation over the processes of a job; for CUDA."""
    if any(type(module).__module__.startswith("timm.") for module in network.modules()):
        # timm's normalisation layers hold the activation too, which torch's conversion would lose.
        from timm.layers.norm_act import convert_sync_batchnorm

        return convert_sync_batchnorm(network)
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def _check_padding(job: Job, image_size: int) -> None:
    if job.recipe.augment.crop_padding >= image_size:
        raise ConfigError(
            f"{job.table}.recipe.augment.crop_padding: {job.recipe.augment.crop_padding} pixels of "
            f"padding can push images of {image_size} px out of sight",
            remedy="An eighth of the image size is usual.",
        )


def _batch_size(job: Job, images: int, processes: int) -> int:
    """Images a step over all processes."""
    wanted, key = job.recipe.batch_size, f"{job.table}.recipe.batch_size"
    if images < 2 * processes:
        raise DataError(
            f"the training split has {images} images, fewer than two for each process",
            remedy="Add images.",
        )
    if wanted % processes or wanted < 2 * processes:
        raise ConfigError(
            f"{key}: {wanted} images cannot be shared evenly by {processes} processes, two each "
            "at least",
            remedy="Choose a multiple of the number of processes.",
        )
    return min(wanted, images - images % processes)
