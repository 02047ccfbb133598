"""Augmentation of whole batches as uint8 tensors, from random numbers drawn beforehand.

A view is one augmented version of a whole split. Its random numbers are a function of the seed,
the number of the view and the place of the image, and of nothing else: not of the order in which
batches come, nor of how many processes share them. So a training can be resumed exactly, and what
a teacher says about a view can be kept.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline import policies
from pipeline.moving import moved
from pipeline.settings import Augment

Floats = NDArray[np.float64]

CROP_RATIO = (3 / 4, 4 / 3)
"""Width to height of a resized crop (Szegedy et al. 2015)."""
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
"""Share of the image that is erased, and its width to height (Zhong et al. 2020)."""

_STREAMS = (
    *("mirror", "shift", "crop", "operation", "strength", "sign"),
    *("erase", "erased", "partner", "mixup", "cutmix", "which"),
)


@dataclass(frozen=True, kw_only=True)
class View:
    """The random numbers of one view: CPU tensors whose first axis is that of the images.

    What is off is None. Rectangles are (top, left, height, width).
    """

    box: Tensor | None = None
    """Resized crop: float32 [n, 4], as shares of the image."""
    offsets: Tensor | None = None
    """Pixels (down, right) at which the cut out of the padded image begins, int32 [n, 2], seen
    from the image's corner: negative ones bring in zeros at the top or on the left."""
    mirrored: Tensor | None = None
    """Which images are mirrored, bool [n]."""
    operations: Tensor | None = None
    """Numbers in `policies.OPERATIONS`, int64 [n, layers]."""
    strengths: Tensor | None = None
    """The strength of each operation, float32 [n, layers]."""
    erased: Tensor | None = None
    """Rectangle in pixels, int32 [n, 4]; empty where nothing is erased."""
    colour: Tensor | None = None
    """What the rectangle is filled with, uint8 [n, 3]."""
    partner: Tensor | None = None
    """The image that each is mixed with, int64 [n]."""
    share: Tensor | None = None
    """Weight of the label of the first image, against its partner's, float32 [n]."""
    blend: Tensor | None = None
    """Mixup: weight of the pixels of the first image, float32 [n]; 1 where it gets cutmix."""
    pasted: Tensor | None = None
    """Cutmix: rectangle in pixels, int32 [n, 4]; empty where the image gets mixup."""

    def at(self, rows: Tensor) -> "View":
        """The same for the images at `rows`, int64 [b] on the CPU."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return View(**{k: None if v is None else v[rows] for k, v in values.items()})


def draw(settings: Augment, n: int, size: int, seed: int, number: int) -> View:
    """View `number` of a split of `n` images of `size` x `size` pixels.

    Every kind of number has a stream of its own, so that one option leaves the others' numbers
    alone.
    """
    rng = {
        name: np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, stream)))
        for stream, name in enumerate(_STREAMS)
    }
    drawn: dict[str, NDArray[np.generic]] = {}
    if settings.resized_crop < 1:
        box = _rectangles(rng["crop"], n, (settings.resized_crop, 1.0), CROP_RATIO)
        drawn["box"] = box.astype(np.float32)
    if settings.crop_padding:
        low, high = -settings.crop_padding, settings.crop_padding + 1
        drawn["offsets"] = rng["shift"].integers(low, high, (n, 2), np.int32)
    if settings.flip:
        drawn["mirrored"] = rng["mirror"].random(n) < 0.5
    if settings.policy != "none":
        drawn |= _policy(settings, n, size, rng)
    if settings.erasing:
        chosen = rng["erase"].random(n) < settings.erasing
        drawn["erased"] = _in_pixels(rng["erased"], n, size) * chosen[:, None].astype(np.int32)
        drawn["colour"] = rng["erase"].integers(0, 256, (n, 3), np.uint8)
    if settings.mixup or settings.cutmix:
        drawn |= _mixing(settings, n, size, rng)
    return View(**{name: torch.from_numpy(value) for name, value in drawn.items()})


def _rectangles(
    rng: np.random.Generator, n: int, area: tuple[float, float], ratio: tuple[float, float]
) -> Floats:
    """Rectangles in the unit square, [n, 4]: uniform area, log-uniform ratio, uniform place.

    Those that do not fit are drawn anew; those that did not in ten trials are the whole square, as
    in torchvision.
    """
    found = np.tile([0.0, 0.0, 1.0, 1.0], (n, 1))
    missing = np.arange(n)
    for _ in range(10):
        areas = rng.uniform(area[0], area[1], len(missing))
        ratios = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), len(missing)))
        sides = np.sqrt(np.stack([areas / ratios, areas * ratios], axis=1))
        places = rng.random((len(missing), 2)) * (1 - sides)
        fits = (sides <= 1).all(axis=1)
        found[missing[fits]] = np.concatenate([places, sides], axis=1)[fits]
        missing = missing[~fits]
    return found


def _in_pixels(rng: np.random.Generator, n: int, size: int) -> NDArray[np.int32]:
    """Rectangles to erase, [n, 4]: at least one pixel, and never a whole side of the image."""
    shares = _rectangles(rng, n, ERASED_AREA, ERASED_RATIO)
    sides = np.rint(shares[:, 2:] * size).clip(1, None).clip(None, size - 1)
    places = np.floor(rng.random((n, 2)) * (size - sides + 1))
    return np.concatenate([places, sides], axis=1).astype(np.int32)


def _policy(
    settings: Augment, n: int, size: int, rng: dict[str, np.random.Generator]
) -> dict[str, NDArray[np.generic]]:
    """`operations` and `strengths`: one of random strength (Müller & Hutter 2021), or
    `rand_layers` of strength `rand_magnitude` (Cubuk et al. 2020)."""
    assert settings.policy != "none"
    trivial = settings.policy == "trivial_augment"
    shape = (n, 1 if trivial else settings.rand_layers)
    operations = rng["operation"].integers(0, len(policies.OPERATIONS), shape)
    bins = rng["strength"].integers(0, policies.BINS, shape) if trivial else settings.rand_magnitude
    amounts = policies.strengths(settings.policy, size).numpy()[operations, bins]
    negative = (rng["sign"].random(shape) < 0.5) & policies.signed().numpy()[operations]
    return {"operations": operations, "strengths": np.where(negative, -amounts, amounts)}


def _mixing(
    settings: Augment, n: int, size: int, rng: dict[str, np.random.Generator]
) -> dict[str, NDArray[np.generic]]:
    """`partner`, `share` and what mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) needs."""
    drawn: dict[str, NDArray[np.generic]] = {"partner": rng["partner"].permutation(n)}
    share = np.ones(n)
    pastes = np.full(n, settings.cutmix > 0)
    if settings.mixup and settings.cutmix:
        pastes = rng["which"].random(n) < 0.5
    if settings.mixup:
        share = np.where(pastes, 1.0, rng["mixup"].beta(settings.mixup, settings.mixup, n))
        drawn["blend"] = share.astype(np.float32)
    if settings.cutmix:
        kept = rng["cutmix"].beta(settings.cutmix, settings.cutmix, (n, 1))
        half = (np.sqrt(1 - kept) * size / 2).astype(np.int32)
        centre = rng["cutmix"].integers(0, size, (n, 2), np.int32)
        low, high = (centre - half).clip(0, size), (centre + half).clip(0, size)
        box = np.concatenate([low, high - low], axis=1) * pastes[:, None].astype(np.int32)
        drawn["pasted"] = box
        share = share * ((size**2 - box[:, 2] * box[:, 3]) / size**2)
    return drawn | {"share": share.astype(np.float32)}


def augment(images: Tensor, view: View, *, cropped: bool = False) -> Tensor:
    """`images`, uint8 [b, h, w, c], as in `view`, which is `View.at` of these images.

    On any device, without waiting for it. `cropped`: the resized crop was done when the image was
    decoded. The same tensor where there is nothing to do.
    """
    if view.box is not None and not cropped:
        images = resized_crop(images, view.box)
    if view.offsets is not None:
        images = shift(images, view.offsets)
    if view.mirrored is not None:
        images = mirror(images, view.mirrored)
    if view.operations is not None and view.strengths is not None:
        images = policies.apply(images, view.operations, view.strengths)
    if view.erased is not None and view.colour is not None:
        colour = _to(view.colour, images)[:, None, None, : images.shape[3]]
        images = torch.where(_inside(view.erased, images), colour, images)
    return images


def mix(images: Tensor, others: Tensor, view: View) -> Tensor:
    """`images` mixed with `others`, their partners; both uint8 [b, h, w, c] and augmented before.

    Mixup rounds share · image + (1 - share) · other (Zhang et al. 2018); cutmix pastes a rectangle
    of the other (Yun et al. 2019). The same tensor where there is nothing to mix.
    """
    mixed = images
    if view.blend is not None:
        weight = _to(view.blend, images)[:, None, None, None]
        mixed = (images * weight + others * (1 - weight)).round().to(torch.uint8)
    if view.pasted is not None:
        mixed = torch.where(_inside(view.pasted, images), others, mixed)
    return mixed


def resized_crop(images: Tensor, box: Tensor) -> Tensor:
    """The `box`, float32 [b, 4], of each image, enlarged bilinearly to the whole image.

    Szegedy et al. 2015. A box is never larger than the image, so nothing has to be smoothed.
    """
    height, width = images.shape[1:3]
    box = _to(box, images)
    rows = _source(box[:, 0:1], box[:, 2:3], height)[:, :, None].expand(-1, -1, width)
    columns = _source(box[:, 1:2], box[:, 3:4], width)[:, None, :].expand(-1, height, -1)
    pixels = images.permute(0, 3, 1, 2).float()
    grid = torch.stack([columns, rows], dim=3)
    found = F.grid_sample(pixels, grid, mode="bilinear", align_corners=False)
    return found.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _source(start: Tensor, share: Tensor, size: int) -> Tensor:
    """Where along one axis pixels come from, [b, size], in -1..1 as `grid_sample` has it."""
    centres = torch.arange(size, device=start.device) + 0.5
    # Held between the outermost pixels' centres, so that nothing black is drawn in.
    return (start * size + share * centres).clamp(0.5, size - 0.5) * (2 / size) - 1


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Each image moved up and left by its `offsets`, int [b, 2]; what comes in is 0."""
    _, height, width, _ = images.shape
    down, right = _to(offsets, images)[:, :, None, None].unbind(1)
    rows = (torch.arange(height, device=images.device)[:, None] + down).expand(-1, -1, width)
    columns = (torch.arange(width, device=images.device) + right).expand(-1, height, -1)
    return policies.pick(images, rows, columns)


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """The images at which `mirrored`, bool [b], is true, left to right."""
    return torch.where(_to(mirrored, images)[:, None, None, None], images.flip(2), images)


def _inside(boxes: Tensor, images: Tensor) -> Tensor:
    """Which pixels lie in their image's rectangle, bool [b, h, w, 1]."""
    top, left, height, width = _to(boxes, images)[:, :, None, None, None].unbind(1)
    rows = torch.arange(images.shape[1], device=images.device)[:, None, None]
    columns = torch.arange(images.shape[2], device=images.device)[:, None]
    in_rows = (rows >= top) & (rows < top + height)
    return in_rows & (columns >= left) & (columns < left + width)


def _to(values: Tensor, images: Tensor) -> Tensor:
    return moved(values, images.device)
