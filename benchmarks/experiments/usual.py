"""The usual training loop, as the PyTorch tutorials and torchvision's references write it.

It stands apart from all of the pipeline: what `training` holds the pipeline against.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

if TYPE_CHECKING:
    from pipeline.images import Images
    from pipeline.records import InputSpec

TEMPERATURE, HARD_WEIGHT = 4.0, 0.1


class Pictures:
    """The images as torchvision's data sets yield them: one PIL image at a time, transformed."""

    def __init__(self, images: Images, spec: InputSpec, limit: int, padding: int) -> None:
        """Of the first `limit` images, 0 is all; `padding` pixels around them before the crop."""
        self._pixels, self._labels = images[slice(0, limit or None)], images.labels
        steps = [
            transforms.RandomCrop(spec.size, padding=padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
        self._transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = Image.fromarray(self._pixels[index].squeeze())
        return self._transform(picture), int(self._labels[index])


def loading(pictures: Pictures, batch: int, workers: int, device: torch.device) -> DataLoader[Any]:
    """The loader of the tutorials, but for two things that would weigh too much in short epochs.

    Loading processes outlive an epoch, and the last, incomplete batch is left out as it is in ours.
    """
    return DataLoader(
        cast("Any", pictures),
        batch_size=min(batch, len(pictures)),
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
        persistent_workers=workers > 0,
    )


def speeds(
    loader: DataLoader[Any],
    network: nn.Module,
    teacher: nn.Module | None,
    device: torch.device,
    epochs: int,
    *,
    rate: float,
    decay: float,
) -> list[float]:
    """Images/s of each epoch of the loop in PyTorch's tutorials and torchvision's references."""
    optimizer = torch.optim.SGD(
        network.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay
    )
    found = []
    for _ in range(epochs):
        since = time.perf_counter()
        epoch(loader, network, teacher, optimizer, device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - since
        found.append(len(loader) * (loader.batch_size or 0) / seconds)
    return found


def epoch(
    loader: DataLoader[Any],
    network: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> list[float]:
    """One epoch; the losses that it logged, every hundredth as in the tutorials."""
    criterion, logged = torch.nn.CrossEntropyLoss(), []
    network.train()
    for step, (images, labels) in enumerate(loader):
        images, labels = images.to(device), labels.to(device)
        outputs = network(images)
        loss = criterion(outputs, labels)
        if teacher is not None:
            with torch.no_grad():
                answers = teacher(images)
            own = F.log_softmax(outputs / TEMPERATURE, dim=1)
            wanted = F.softmax(answers / TEMPERATURE, dim=1)
            soft = F.kl_div(own, wanted, reduction="batchmean") * TEMPERATURE**2
            loss = HARD_WEIGHT * loss + (1 - HARD_WEIGHT) * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            logged.append(loss.item())
    return logged
