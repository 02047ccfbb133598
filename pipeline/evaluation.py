"""What a network answers to a split, and what it costs."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.classifier import Classifier
from pipeline.devices import autocast
from pipeline.images import Images, batch_size
from pipeline.records import InputSpec
from pipeline.team import Team


def predict(
    model: Classifier, images: Images, device: torch.device, dtype: torch.dtype = torch.float32
) -> NDArray[np.float32]:
    """Logits [n, classes] of a whole split, in order, in evaluation mode."""
    model.eval()
    answers = []
    with torch.inference_mode(), autocast(device, dtype):
        for batch, _ in images.batches(batch_size(images.size)):
            answers.append(model(torch.from_numpy(batch).to(device)).float().cpu().numpy())
    return np.concatenate(answers)


def top1(
    model: Classifier, images: Images, device: torch.device, dtype: torch.dtype, team: Team
) -> float:
    """Share of the images that `model` names rightly, each process of the `team` doing its part."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=device)
    size = batch_size(images.size)
    starts = range(0, len(images), size)[team.rank :: team.size]
    slices = [slice(start, start + size) for start in starts]
    with torch.inference_mode(), autocast(device, dtype):
        for part, batch in zip(slices, images.ahead(slices), strict=True):
            labels = torch.from_numpy(images.labels[part]).to(device)
            right += (model(torch.from_numpy(batch).to(device)).argmax(1) == labels).sum()
    return int(team.total(right)) / len(images)


def count_macs(network: nn.Module, spec: InputSpec) -> int:
    """Multiply-adds of one image: half of what torch's FLOP counter says."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(1, spec.channels, spec.size, spec.size))
    return counter.get_total_flops() // 2
