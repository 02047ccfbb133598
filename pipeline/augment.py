"""Augmentation of whole batches as uint8 tensors, from one seeded generator."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, flip: bool, crop_padding: int, generator: torch.Generator) -> Tensor:
    """`images`, uint8 [batch, height, width, channels], mirrored and shifted at random.

    The random numbers are drawn on the CPU whatever the device, so that the same seed gives the
    same views everywhere.
    """
    if flip:
        images = mirror(images, generator)
    return shift(images, crop_padding, generator) if crop_padding else images


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images, chosen at random, left to right."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(2), images)


def shift(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image padded with zeros by `padding` on all sides and cut back at a random place."""
    batch, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    offsets = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    each = torch.arange(batch, device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]
