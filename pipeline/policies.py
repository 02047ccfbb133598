"""The operations of RandAugment and TrivialAugment on whole batches, one call each.

torchvision's `RandAugment` and `TrivialAugmentWide` treat one image a call; here all images of a
batch that get the same operation are treated at once, each with a strength of its own. Ranges and
results are torchvision's. Everything is worked out element by element or in whole numbers, so that
what becomes of an image does not depend on the images beside it.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.moving import moved

BINS = 31
"""Strengths that a range is divided into."""

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
"""What `apply` can do; an operation's number is its place. All ways to move pixels stand together,
because one call does them all."""

_MOVES = slice(OPERATIONS.index("shear_x"), OPERATIONS.index("rotate") + 1)
_SIGNED = slice(OPERATIONS.index("shear_x"), OPERATIONS.index("sharpness") + 1)


def strengths(policy: Literal["rand_augment", "trivial_augment"], size: int) -> Tensor:
    """The strengths of every operation for images of `size` pixels, float32 [operations, BINS].

    Shear is a tangent, translation whole pixels, rotation degrees, posterize the bits that remain,
    solarize the threshold as a share of 255, the four blends the distance of the factor from 1.

    The ranges are torchvision's: for `rand_augment` those of Cubuk et al. 2020, for
    `trivial_augment` the wide ones of Müller & Hutter 2021, whose translation is up to 32 pixels
    whatever the size.
    """
    wide = policy == "trivial_augment"
    shear, angle, blend = (0.99, 135.0, 0.99) if wide else (0.3, 30.0, 0.9)
    shift = 32.0 if wide else 150 / 331 * size
    ends = (0, shear, shear, shift, shift, angle, blend, blend, blend, blend)
    table = [torch.linspace(0, end, BINS) for end in ends]
    for name in ("translate_x", "translate_y"):
        table[OPERATIONS.index(name)].trunc_()
    bits = (8 - torch.arange(BINS) / ((BINS - 1) / (6 if wide else 4))).round()
    nothing = torch.zeros(BINS)
    return torch.stack([*table, bits, torch.linspace(1, 0, BINS), nothing, nothing])


def signed() -> Tensor:
    """Which operations work both ways, so that their strength gets a random sign; bool."""
    chosen = torch.zeros(len(OPERATIONS), dtype=torch.bool)
    chosen[_SIGNED] = True
    return chosen


def apply(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """`images`, uint8 [b, h, w, c] on any device, each after its own operations.

    `operations` (numbers in `OPERATIONS`) and `strengths`, integer and float32 [b, layers], lie on
    the CPU: there the batch is divided, so that a GPU is never waited for.
    """
    for layer in range(operations.shape[1]):
        images = _layer(images, operations[:, layer], strengths[:, layer])
    return images


def _layer(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    order = operations.argsort(stable=True)
    counts = torch.bincount(operations, minlength=len(OPERATIONS)).tolist()
    first, moves = sum(counts[: _MOVES.start]), sum(counts[_MOVES])
    rows = moved(order, images.device)
    strength = moved(strengths[order], images.device)
    result = images.clone()
    if moves:
        these = order[first : first + moves]
        theta = affine(operations[these], strengths[these], images.shape[1], images.shape[2])
        chosen = rows[first : first + moves]
        result.index_copy_(0, chosen, warp(images[chosen], theta))
    parts = zip(OPERATIONS, rows.split(counts), strength.split(counts), strict=True)
    for name, chosen, amount in parts:
        if name in PHOTOMETRIC and len(chosen):
            changed = PHOTOMETRIC[name](images[chosen], amount[:, None, None, None])
            result.index_copy_(0, chosen, changed)
    return result


def affine(operations: Tensor, strengths: Tensor, height: int, width: int) -> Tensor:
    """Where pixels come from, float32 [n, 6]: x' = t0·x + t1·y + t2 and y' = t3·x + t4·y + t5.

    x and y are pixels from the middle of the image. Shears keep the upper left corner in place.
    """
    strengths = strengths.double()

    def of(name: str) -> Tensor:
        return torch.where(operations == OPERATIONS.index(name), strengths, 0.0)

    turn = of("rotate") * (math.pi / 180)
    shear_x, shear_y = of("shear_x"), of("shear_y")
    to_x = (turn.cos(), shear_x - turn.sin(), shear_x * (height / 2) - of("translate_x"))
    to_y = (shear_y + turn.sin(), turn.cos(), shear_y * (width / 2) - of("translate_y"))
    return torch.stack([*to_x, *to_y], dim=1).float()


def warp(images: Tensor, theta: Tensor) -> Tensor:
    """`images`, uint8 [n, h, w, c], sampled where `affine` says: the nearest pixel, or black."""
    height, width = images.shape[1:3]
    theta = moved(theta, images.device)[:, :, None, None]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    rows = theta[:, 3] * x + theta[:, 4] * y + theta[:, 5] + (height - 1) / 2
    columns = theta[:, 0] * x + theta[:, 1] * y + theta[:, 2] + (width - 1) / 2
    return pick(images, rows.round(), columns.round())


def pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels of `images` [n, h, w, c] at whole `rows` and `columns` [n, h, w]; outside: 0."""
    count, height, width, channels = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    first = torch.arange(count, device=images.device, dtype=torch.int32)[:, None, None]
    place = first * (height * width) + rows.int() * width + columns.int()
    # One black pixel is laid behind the last image; it is quicker than a mask afterwards.
    place = place.where(inside, count * height * width)
    pixels = F.pad(images.reshape(-1, channels), (0, 0, 0, 1))
    return pixels.index_select(0, place.flatten()).view(images.shape)


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """Towards black or away from it. All these take uint8 [n, h, w, c] and float32 [n, 1, 1, 1]."""
    return _uint8(images * (1 + amount))


def color(images: Tensor, amount: Tensor) -> Tensor:
    """Towards grey or away from it; grey images stay."""
    return images if images.shape[-1] == 1 else _blend(images, _grey(images), amount)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    """Towards the mean grey value or away from it."""
    grey = _grey(images).int()
    mean = grey.sum((1, 2, 3), keepdim=True).float() / grey[0].numel()
    return _blend(images, mean, amount)


def sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Towards a 3x3 blur or away from it; pixels at the border stay."""
    if min(images.shape[1:3]) <= 2:
        return images
    thrice = images[:, :-2].int() + images[:, 1:-1] + images[:, 2:]
    box = thrice[:, :, :-2] + thrice[:, :, 1:-1] + thrice[:, :, 2:]
    middle = images[:, 1:-1, 1:-1]
    blurred = ((box + 4 * middle.int()) / 13).round()
    result = images.clone()
    result[:, 1:-1, 1:-1] = _uint8(middle - (blurred - middle) * amount)
    return result


def posterize(images: Tensor, amount: Tensor) -> Tensor:
    """Only the highest `amount` bits of every value."""
    return images & (256 - 2 ** (8 - amount)).round().to(torch.uint8)


def solarize(images: Tensor, amount: Tensor) -> Tensor:
    """Values from 255 · `amount` on turned into their negative."""
    return torch.where(images >= 255 * amount, ~images, images)


def autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Every channel stretched to 0..255, without regard to `amount`."""
    low = images.amin((1, 2), keepdim=True).float()
    high = images.amax((1, 2), keepdim=True)
    scale = (high - low) * (1 / 255)
    flat = high == low
    return _uint8((images - low.where(~flat, 0.0)) / scale.where(~flat, 1.0))


def equalize(images: Tensor, amount: Tensor) -> Tensor:
    """Every channel's histogram flattened as Pillow does it, without regard to `amount`."""
    values = images.flatten(1, 2).transpose(1, 2).long()
    ones = torch.ones(1, dtype=torch.int32, device=images.device)
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, values, ones.expand_as(values))
    brightest = values.amax(2, keepdim=True)
    step = (values.shape[2] - histogram.gather(2, brightest)) // 255
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255).to(torch.uint8)
    equal = table.gather(2, values).transpose(1, 2).reshape(images.shape)
    return torch.where(step.transpose(1, 2)[:, None] == 0, images, equal)


PHOTOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    operation.__name__: operation
    for operation in (
        *(brightness, color, contrast, sharpness),
        *(posterize, solarize, autocontrast, equalize),
    )
}
"""The operations that change values in place, by their name in `OPERATIONS`."""


def _blend(images: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    return _uint8(images * (1 + amount) - other * amount)


def _grey(images: Tensor) -> Tensor:
    """Whole grey values, float32 [n, h, w, 1], with the weights of ITU-R BT.601."""
    if images.shape[-1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=3)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor()


def _uint8(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
