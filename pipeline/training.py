"""The one training loop that teacher, baseline and student share.

Images stay uint8 [n, size, size, channels], in memory or on the GPU where they fit; a batch is an
index into them, augmented as a tensor. What is trained is the `Classifier`, which normalises the
uint8 images itself, exactly as the exported file will.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import models
from models.classifier import Classifier
from pipeline.augment import augment
from pipeline.batches import Batches
from pipeline.checkpoints import write_weights
from pipeline.context import Context
from pipeline.errors import CannotRunHereError, DataError, TrainingError
from pipeline.images import Images, open_split
from pipeline.machine import cores, cpu_has_bfloat16
from pipeline.progress import bar
from pipeline.records import Checkpoint, Dataset, Epoch, Role
from pipeline.settings import Device, Recipe

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images uint8 [b, size, size, channels], logits [b, classes], labels int64 [b]) -> scalar."""

EVALUATION_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to be trained."""

    role: Role
    arch: str
    recipe: Recipe
    width: float = 1.0
    stem_stride: models.StemStride = "auto"
    dropout: float = 0.0

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


def pick_device(wanted: Device) -> torch.device:
    """The device that `wanted` means here; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises `CannotRunHereError` where a device is asked for by name and is not there.
    """
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if wanted == "auto":
        return torch.device(next((name for name, found in there.items() if found()), "cpu"))
    if wanted in there and not there[wanted]():
        raise CannotRunHereError(
            f'device = "{wanted}", and torch {torch.__version__} finds none on this machine',
            remedy='Use device = "auto" or "cpu", or install a driver and a torch that fit it.',
        )
    return torch.device(wanted)


def pick_precision(recipe: Recipe, network: nn.Module, device: torch.device) -> torch.dtype:
    """The arithmetic of the forward pass; see `Recipe.precision`."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if recipe.precision != "auto":
        return named[recipe.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # Depthwise convolutions are slower in bf16 on CPUs (measured); dense ones gain twofold.
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    dense_on_cpu = device.type == "cpu" and not depthwise and cpu_has_bfloat16()
    return torch.bfloat16 if dense_on_cpu else torch.float32


def prepare(context: Context) -> torch.device:
    """Set threads and seed; return the device.

    float32 stays float32: on CUDA, TF32 would make the student's own answers, by which every file
    is judged, differ from themselves in the third digit.
    """
    torch.set_num_threads(context.threads or cores())
    torch.manual_seed(context.seed)
    device = pick_device(context.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
    return device


def train(
    job: Job, dataset: Dataset, context: Context, folder: Path, objective: Objective
) -> Checkpoint:
    """Train `job` on the training split; write ``weights.pt`` of the last epoch into `folder`.

    The validation split is looked at after each epoch, and decides nothing; the test split is not
    touched. Raises `DataError` where there are fewer images than one batch.
    """
    device = prepare(context)
    network = job.network(dataset)
    dtype = pick_precision(job.recipe, network, device)
    model = Classifier(network, dataset.input).to(device).to(memory_format=torch.channels_last)
    history = tuple(_epochs(job, model, dataset, context, device, dtype, objective))
    write_weights(network, folder / "weights.pt")
    return describe(job, network, dataset, where(device), dtype, history)


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
        macs=count_macs(network, dataset),
        device=device,
        precision=str(dtype).removeprefix("torch."),
        history=history,
    )


def where(device: torch.device) -> str:
    """The device in words, with the card's name."""
    return f"cuda ({torch.cuda.get_device_name()})" if device.type == "cuda" else device.type


def count_macs(network: nn.Module, dataset: Dataset) -> int:
    """Multiply-adds of one image: half of what torch's FLOP counter says."""
    spec = dataset.input
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(1, spec.channels, spec.size, spec.size))
    return counter.get_total_flops() // 2


def _epochs(
    job: Job,
    model: Classifier,
    dataset: Dataset,
    context: Context,
    device: torch.device,
    dtype: torch.dtype,
    objective: Objective,
) -> Iterator[Epoch]:
    recipe = job.recipe
    train_images, val_images = open_split(dataset, "train"), open_split(dataset, "val")
    batch_size = min(recipe.batch_size, len(train_images))
    if batch_size < 2:
        raise DataError("the training split has fewer than two images", remedy="Add images.")
    generator = torch.Generator().manual_seed(context.seed)
    batches = Batches(train_images, batch_size, device, generator)
    step = _Step(model, recipe, len(batches) * recipe.epochs, device, dtype, objective)
    with bar(job.role, len(batches) * recipe.epochs) as shown:
        for number in range(1, recipe.epochs + 1):
            since = time.perf_counter()
            model.train()
            total = torch.zeros((), device=device)
            for images, labels in batches:
                images = augment(images, recipe.flip, recipe.crop_padding, generator)
                total += step(images, labels)
                shown.advance()
            guess = predict(model, val_images, device, dtype).argmax(1)
            val_top1 = float((guess == val_images.labels).mean())
            shown.advance(0, note=f"epoch {number}/{recipe.epochs}, validation {val_top1:.2%}")
            loss = float(total) / len(batches)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the {job.role}'s training diverged in epoch {number}: its loss is {loss}",
                    remedy="Lower the recipe's learning_rate, or lengthen its warmup.",
                )
            seconds = time.perf_counter() - since
            yield Epoch(epoch=number, loss=loss, val_top1=val_top1, seconds=seconds)


class _Step:
    """One update of the weights; nothing in it waits for the GPU."""

    def __init__(
        self,
        model: Classifier,
        recipe: Recipe,
        steps: int,
        device: torch.device,
        dtype: torch.dtype,
        objective: Objective,
    ) -> None:
        self._model, self._objective = model, objective
        self._autocast = autocast(device, dtype)
        self._optimizer = _optimizer(model.network, recipe, fused=device.type in ("cpu", "cuda"))
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        warmup = max(1, round(recipe.warmup * steps))
        rise = torch.optim.lr_scheduler.LinearLR(self._optimizer, 0.1, total_iters=warmup)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, max(1, steps - warmup))
        self._schedule = torch.optim.lr_scheduler.SequentialLR(
            self._optimizer, [rise, fall], [warmup]
        )

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the batch, still on the device."""
        with self._autocast:
            logits = self._model(images)
        loss = self._objective(images, logits, labels)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        return loss.detach()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in `dtype`; nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _optimizer(network: nn.Module, recipe: Recipe, *, fused: bool) -> torch.optim.Optimizer:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=fused
    )


def predict(
    model: Classifier, images: Images, device: torch.device, dtype: torch.dtype = torch.float32
) -> NDArray[np.float32]:
    """Logits [n, classes] of a whole split, in order, in evaluation mode."""
    model.eval()
    answers = []
    with torch.inference_mode(), autocast(device, dtype):
        for batch, _ in images.batches(EVALUATION_BATCH):
            answers.append(model(torch.from_numpy(batch).to(device)).float().cpu().numpy())
    return np.concatenate(answers)
