"""Augmentation: numbers that depend on nothing else, operations that are torchvision's."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from pipeline import policies
from pipeline.augment import View, augment, draw, mirror, mix, resized_crop, shift
from pipeline.policies import BINS, OPERATIONS
from pipeline.settings import Augment

FIELDS = [field.name for field in fields(View)]
OFF = Augment(flip=False)
EVERYTHING = Augment(
    **{"flip": True, "crop_padding": 2, "resized_crop": 0.3, "policy": "rand_augment"},
    **{"rand_layers": 3, "rand_magnitude": 20, "erasing": 0.5, "mixup": 0.4, "cutmix": 1.0},
)
OPTIONS = [
    *({"flip": True}, {"crop_padding": 3}, {"resized_crop": 0.2}, {"erasing": 0.4}),
    *({"policy": "trivial_augment"}, {"policy": "rand_augment"}, {"mixup": 0.3}, {"cutmix": 1.0}),
]

TORCHVISION = {
    "identity": lambda x, m: x,
    "shear_x": lambda x, m: sheared(x, [math.degrees(math.atan(m)), 0.0]),
    "shear_y": lambda x, m: sheared(x, [0.0, math.degrees(math.atan(m))]),
    "translate_x": lambda x, m: tv.affine(x, 0.0, [int(m), 0], 1.0, [0.0, 0.0]),
    "translate_y": lambda x, m: tv.affine(x, 0.0, [0, int(m)], 1.0, [0.0, 0.0]),
    "rotate": lambda x, m: tv.rotate(x, m),
    "brightness": lambda x, m: tv.adjust_brightness(x, 1 + m),
    "color": lambda x, m: tv.adjust_saturation(x, 1 + m),
    "contrast": lambda x, m: tv.adjust_contrast(x, 1 + m),
    "sharpness": lambda x, m: tv.adjust_sharpness(x, 1 + m),
    "posterize": lambda x, m: tv.posterize(x, int(m)),
    "solarize": lambda x, m: tv.solarize(x, 255 * m),
    "autocontrast": lambda x, m: tv.autocontrast(x),
    "equalize": lambda x, m: tv.equalize(x),
}
# Float32 is rounded elsewhere there: at the limit of two values or two pixels, one may be taken
# for the other. (Largest difference of a value, share of the values that may differ.)
INEXACT = {
    **dict.fromkeys(("color", "contrast", "sharpness"), (1, 0.005)),
    **dict.fromkeys(("shear_x", "shear_y", "rotate"), (255, 0.005)),
}


def sheared(image, shear):
    return tv.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0])


def pictures(n, size, channels=3, seed=0):
    """Noise of every contrast; the last two of one value and of two."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, size, size, channels, generator=generator)
    low, high = torch.rand(2, n, 1, 1, channels, generator=generator).sort(0).values
    images = (255 * (low + (high - low) * noise)).to(torch.uint8)
    if n > 2:
        images[-2] = 77
        images[-1] = torch.where(noise[-1] < 0.8, 3, 250)
    return images


def drawn(settings, n, size, seed=0, number=0) -> Any:
    """A view whose fields a type checker takes for tensors."""
    return draw(settings, n, size, seed, number)


def same(a, b, *names):
    pairs = ((getattr(a, name), getattr(b, name)) for name in names)
    return [x is y is None or torch.equal(x, y) for x, y in pairs]


@pytest.mark.parametrize("policy", ["rand_augment", "trivial_augment"])
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (33, 3)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_what_torchvision_does(name, size, channels, policy):
    images = pictures(2 * BINS, size, channels)
    number = OPERATIONS.index(name)
    strengths = policies.strengths(policy, size)[number].repeat(2)
    if policies.signed()[number]:
        strengths[1::2] *= -1
    got = policies.apply(images, torch.full((2 * BINS, 1), number), strengths[:, None])
    each = zip(images.permute(0, 3, 1, 2), strengths.tolist(), strict=True)
    wanted = torch.stack([TORCHVISION[name](x, m) for x, m in each]).permute(0, 2, 3, 1)
    difference = (got.int() - wanted.int()).abs()
    largest, share = INEXACT.get(name, (0, 0))
    assert difference.max() <= largest and (difference > 0).float().mean() <= share
    if name != "identity" and (name, channels) != ("color", 1):
        assert (got != images).float().mean() > 0.1


@pytest.mark.parametrize(
    ("policy", "published"),
    [("rand_augment", v2.RandAugment), ("trivial_augment", v2.TrivialAugmentWide)],
)
def test_ranges_are_the_published_ones(policy, published):
    space = published._AUGMENTATION_SPACE
    assert [name.lower() for name in space] == [name.replace("_", "") for name in OPERATIONS]
    ours = zip(policies.strengths(policy, 28), policies.signed().tolist(), strict=True)
    for (name, (function, signed)), (row, both) in zip(space.items(), ours, strict=True):
        wanted = function(BINS, 28, 28)
        if wanted is not None:
            wanted = wanted.trunc() if name.startswith("Translate") else wanted
            assert torch.equal(row, wanted.float()), name
        assert both == signed, name


def test_operations_strengths_and_signs_are_drawn_evenly():
    n = 40_000
    view = drawn(Augment(policy="trivial_augment"), n, 32)
    assert view.operations.shape == view.strengths.shape == (n, 1)
    shares = torch.bincount(view.operations[:, 0], minlength=14) / n
    assert (shares - 1 / 14).abs().max() < 5 * math.sqrt(1 / 14 / n)
    turned = view.strengths[view.operations == OPERATIONS.index("rotate")]
    found, counts = turned.unique(return_counts=True)
    assert len(found) == 2 * BINS - 1 and found[-1] == 135 == -found[0]
    assert counts.min() > 20 and counts.max() < 150  # 46 expected, of 0 degrees twice that
    view = drawn(Augment(policy="rand_augment", rand_layers=3, rand_magnitude=15), n, 32)
    assert view.operations.shape == view.strengths.shape == (n, 3)
    turned = view.strengths[view.operations == OPERATIONS.index("rotate")]
    assert sorted(turned.unique().tolist()) == [-15, 15]


def test_a_view_depends_on_seed_and_number_alone():
    once = drawn(EVERYTHING, 200, 28, 1, 7)
    assert all(same(once, drawn(EVERYTHING, 200, 28, 1, 7), *FIELDS))
    for seed, number in ((1, 8), (2, 7), (7, 1)):
        assert not any(same(once, drawn(EVERYTHING, 200, 28, seed, number), *FIELDS))


@pytest.mark.parametrize("name", sorted({name for option in OPTIONS for name in option}))
def test_an_option_leaves_the_numbers_of_the_others_alone(name):
    without = EVERYTHING.model_copy(update={name: getattr(OFF, name)})
    kept = {key: getattr(EVERYTHING, key) for key in (name, "rand_layers", "rand_magnitude")}
    settings = (EVERYTHING, without, OFF.model_copy(update=kept))
    everything, one_off, alone = (drawn(s, 300, 28, 3, 4) for s in settings)
    own = {field for field in FIELDS if getattr(alone, field) is not None}
    # With both mixup and cutmix, which image gets which is a number of its own.
    own -= {"share", "blend", "pasted"}
    assert own and all(same(everything, alone, *own))
    rest = set(FIELDS) - own - {"share", "blend", "pasted"} | {"partner"}
    assert all(same(everything, one_off, *rest))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 28, 224])
def test_an_image_does_not_depend_on_those_beside_it(size, channels):
    n = 300 if size < 100 else 12
    images, view = pictures(n, size, channels), drawn(EVERYTHING, n, size)
    whole = augment(images, view)
    assert whole.shape == images.shape and whole.dtype == torch.uint8
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    for part in (rows[: n // 3], rows[:1], torch.tensor([n - 1]), rows[:0]):
        assert torch.equal(augment(images[part], view.at(part)), whole[part])
    others = whole[view.partner]
    mixed = mix(whole, others, view)
    assert mixed.shape == images.shape and mixed.dtype == torch.uint8
    assert torch.equal(mix(whole[rows], others[rows], view.at(rows)), mixed[rows])


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_no_step_waits_for_the_device(option):
    # A meta tensor has no values: whatever would have to fetch one from a GPU raises.
    images, view = pictures(64, 9).to("meta"), drawn(OFF.model_copy(update=option), 64, 9)
    assert mix(augment(images, view), images, view).shape == images.shape


def test_what_is_off_returns_the_same_images():
    images, view = pictures(4, 8), drawn(OFF, 4, 8)
    assert all(getattr(view, field) is None for field in FIELDS)
    assert augment(images, view.at(torch.arange(4)), cropped=True) is images
    assert mix(images, images.clone(), view) is images
    only_crop = drawn(Augment(flip=False, resized_crop=0.2), 4, 8)
    assert augment(images, only_crop, cropped=True) is images
    assert not torch.equal(augment(images, only_crop), images)


def test_mirror_flips_half_of_the_images_whole():
    images = torch.arange(6, dtype=torch.uint8).view(1, 2, 3, 1).expand(2000, -1, -1, -1)
    mirrored = drawn(Augment(), 2000, 3).mirrored
    assert 900 < mirrored.sum() < 1100
    flipped = mirror(images, mirrored)
    assert (flipped == images.flip(2)).flatten(1).all(1).equal(mirrored)
    assert (flipped == images).flatten(1).all(1).equal(~mirrored)


def test_shift_moves_within_the_padding_and_fills_with_zeros():
    images = torch.zeros(500, 5, 5, 1, dtype=torch.uint8)
    images[:, 2, 2] = 255
    offsets = drawn(Augment(crop_padding=2), 500, 5).offsets
    moved = shift(images, offsets).squeeze(-1)
    places = moved.flatten(1).argmax(1)
    assert (moved.flatten(1).sum(1) == 255).all() and len(places.unique()) == 25
    assert places.equal((2 - offsets[:, 0]) * 5 + 2 - offsets[:, 1])


@pytest.mark.parametrize("size", [1, 7, 28, 224])
def test_a_crop_of_the_whole_image_is_the_image(size):
    images = pictures(3, size)
    assert torch.equal(resized_crop(images, torch.tensor([[0.0, 0, 1, 1]]).repeat(3, 1)), images)


def test_resized_crop_is_torchvisions_within_the_box():
    image, box = pictures(1, 40), (4, 8, 20, 16)
    got = resized_crop(image, torch.tensor([box]) / 40).double()
    # In float64, because torchvision weighs uint8 coarsely.
    wanted = tv.resized_crop(image.permute(0, 3, 1, 2).double(), *box, [40, 40], antialias=False)
    # At the border torchvision has cut the neighbours off before it interpolates.
    difference = (got - wanted.permute(0, 2, 3, 1)).abs()[:, 3:-3, 3:-3]
    assert difference.max() <= 0.5 + 1e-3


def test_crops_have_the_areas_and_ratios_of_the_paper():
    box = drawn(Augment(resized_crop=0.25), 20_000, 32).box
    assert box.dtype == torch.float32
    top, left, height, width = box.double().unbind(1)
    assert box.min() >= 0 and max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    area, ratio = height * width, width / height
    assert 0.25 - 1e-6 <= area.min() < 0.26 and 0.74 < ratio.min() < 0.76 < 1.32 < ratio.max()
    assert ratio.max() < 1.34 and abs(ratio.log().mean()) < 0.01
    # Where every shape fits, areas and places are uniform.
    small = area < 0.5
    assert abs(area[small].mean() - 0.375) < 0.005
    assert abs((top / (1 - height))[small].mean() - 0.5) < 0.02


def test_erasing_blots_out_one_rectangle_in_its_share_of_the_images():
    n, size = 4000, 32
    images = torch.zeros(n, size, size, 3, dtype=torch.uint8)
    view = drawn(Augment(flip=False, erasing=0.3), n, size)
    there = view.erased[:, 2] > 0
    assert abs(there.float().mean() - 0.3) < 0.03
    got = augment(images, view)
    for image, (top, left, height, width), colour in zip(
        got, view.erased, view.colour, strict=True
    ):
        image[top : top + height, left : left + width] -= colour
    assert (got == 0).all()
    area = (view.erased[:, 2] * view.erased[:, 3])[there] / size**2
    # Sides are rounded to pixels.
    assert area.min() > 0.01 and area.max() < 0.37 and abs(area.mean() - 0.175) < 0.01
    ends = view.erased[there, :2] + view.erased[there, 2:]
    assert (view.erased[there, :2].amin(0) == 0).all() and (ends.amax(0) == size).all()
    assert view.colour[there].float().std() > 60


def test_the_share_of_cutmix_is_the_share_of_the_pixels():
    n, size = 2000, 23
    view = drawn(Augment(cutmix=1.0), n, size)
    mine = torch.zeros(n, size, size, 1, dtype=torch.uint8)
    mixed = mix(mine, mine + 1, view)
    kept = (mixed == 0).flatten(1).sum(1)
    assert torch.equal(view.share, (kept.double() / size**2).float())
    assert view.partner.sort().values.equal(torch.arange(n))
    share = drawn(Augment(cutmix=1.0), 20_000, 200).share
    # Of sides s = sqrt(u), u uniform, s - s²/4 remain on average within the image.
    assert abs(share.mean() - (1 - 1 / 2 + 1 / 5 - 1 / 48)) < 0.01


def test_mixup_rounds_the_blend_and_its_share_is_from_a_beta_distribution():
    n, alpha = 5000, 0.4
    view = drawn(Augment(mixup=alpha), n, 4)
    first, second = pictures(n, 4), pictures(n, 4, seed=1)
    share = view.share.double()[:, None, None, None]
    wanted = (share * first + (1 - share) * second).round()
    difference = (mix(first, second, view).double() - wanted).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-4
    assert abs(view.share.mean() - 0.5) < 0.02
    assert abs(view.share.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_with_both_each_image_gets_one_of_the_two():
    n, size = 4000, 16
    view = drawn(Augment(mixup=1.0, cutmix=1.0), n, size)
    black = torch.zeros(n, size, size, 1, dtype=torch.uint8)
    mixed = mix(black, black + 200, view).squeeze(-1)
    blended, pasted = view.blend < 1, view.pasted[:, 2:].amin(1) > 0
    assert not (blended & pasted).any() and abs(blended.float().mean() - 0.5) < 0.04
    # What a white partner adds is the weight of its label in both.
    assert (mixed.float().mean((1, 2)) / 200 - (1 - view.share)).abs().max() < 0.5 / 200 + 1e-5
