"""What every table of a settings file shares: strict, frozen, and documented field by field.

Importable without torch, so that a settings file is checked before anything heavy is loaded.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
StudentArch = Literal[
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "mobilenet_v4_conv_medium",
    "mobilenet_v4_conv_small",
]
"""Every network of `models.mobilenet`."""


class Settings(BaseModel):
    """Base of every table: unknown keys are refused, values are checked, nothing changes later."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class Augment(Settings):
    """What is done at random to training images; none of it to validation and test images.

    Teacher and student see the same view of an image.
    """

    flip: bool = True
    """Mirror half of the images left to right."""
    crop_padding: int = Field(default=0, ge=0)
    """Pixels of zero padding on each side before a random crop back to size; 0 turns it off."""
    resized_crop: float = Field(default=1.0, gt=0, le=1)
    """Smallest share of the area that a random crop keeps before it is resized back, its sides in
    a ratio of 3/4 to 4/3 (Szegedy et al. 2015); 1 turns it off. For large images: 0.08 to 0.35."""
    policy: Literal["none", "rand_augment", "trivial_augment"] = "none"
    """`trivial_augment`: one random operation of random strength (Müller & Hutter 2021);
    `rand_augment`: `rand_layers` operations of one strength (Cubuk et al. 2020)."""
    rand_layers: int = Field(default=2, ge=1, le=8)
    """Operations of `rand_augment`."""
    rand_magnitude: int = Field(default=9, ge=0, le=30)
    """Strength of `rand_augment`, in 0..30."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Share of the images in which a random rectangle is blotted out (Zhong et al. 2020)."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of the Beta distribution that two images are blended by (Zhang et al. 2018); 0 turns
    it off."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of the Beta distribution of the area that is pasted from another image (Yun et al.
    2019); 0 turns it off. With `mixup` too, each image gets one of the two, by chance."""


class Recipe(Settings):
    """How one network is trained: an optimizer, a schedule, the batches and their augmentation."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(default=128, ge=2)
    """Images a step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` is with Nesterov momentum 0.9 (Sutskever et al. 2013); `adamw` is Loshchilov &
    Hutter 2019."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty; not applied to biases and normalisation weights."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Longest gradient: one of a larger L2 norm is shortened to it (Pascanu et al. 2013); 0 turns
    it off."""
    warmup: float = Field(default=0.15, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly from a tenth of the peak; a cosine to
    zero follows."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""
    augment: Augment = Augment()
    """What is done at random to the images."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay a step of the moving average of the weights that is kept instead of the last weights
    (Tarvainen & Valpola 2017); 0 turns it off. It rises from 0.1 as (1 + step) / (10 + step)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass. `auto`: on CUDA bf16 where native, else fp16; on a CPU bf16
    for dense networks where the CPU has bf16 instructions; fp32 elsewhere."""
    compile: bool = False
    """`torch.compile` the network, which costs half a minute and more before the first step."""


class Pretrained(Settings):
    """Weights to start from instead of random ones; the last layer is made for the new classes."""

    weights: Literal["hub"] | Path
    """A file (.pt, .pth, .safetensors) of the same architecture trained on any classes, or "hub":
    the weights that torchvision or timm publish for it."""
    frozen_epochs: int = Field(default=0, ge=0)
    """Epochs at the beginning in which only the new last layer learns; with as many as the recipe
    has it is the only one that ever does."""
    body_rate: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of everything but the last layer, as a share of the recipe's."""


class Student(Settings):
    """The network that goes to the phone: baseline and distilled student are both this one."""

    arch: StudentArch = "mobilenet_v2"
    """MobileNetV2 and V3 are torchvision's, V4 is timm's."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Width multiplier on all channel counts (Howard et al. 2017)."""
    stem_stride: Literal["auto", 1, 2] = "auto"
    """Stride of the first convolution; `auto` is 1 for images up to 64 px, else 2."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the features dropped before the last layer in training."""
    pretrained: Pretrained | None = None
    """Weights that baseline and distilled student start from; by default they start at random."""
    recipe: Recipe = Recipe()
    """The budget of the baseline and of the distilled student alike."""

    @model_validator(mode="after")
    def _has_a_width(self) -> Self:
        if self.width != 1 and self.arch.startswith("mobilenet_v4"):
            raise ValueError(f"{self.arch} has no width multiplier: leave student.width at 1")
        return self


S = TypeVar("S", bound=Settings)


def read_table(table: Any, kind: type[S], prefix: Sequence[str]) -> S:
    """The settings of the table [<prefix>], which the class of the table around it knows not of.

    Raises `ConfigError` naming every key that is wrong.
    """
    if isinstance(table, kind):
        return table
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, prefix)) from error


def explain(error: ValidationError, model: type[BaseModel], prefix: Sequence[str] = ()) -> str:
    """A validation error in words: one line a key, with "did you mean" for an unknown one."""
    return "\n".join(_line(fault, model, prefix) for fault in error.errors())


def _line(fault: Any, model: type[BaseModel], prefix: Sequence[str]) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join([*prefix, *path]) or "the file"
    if fault["type"] != "extra_forbidden":
        wrong = f", not {fault['input']!r}" if not isinstance(fault["input"], dict) else ""
        return f"{key}: {_lower(fault['msg'])}{wrong}"
    known = list(_table(model, path[:-1]).model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
    return f"{key}: unknown key; {hint}"


def _table(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The class of the table at `path` below `model`."""
    for name in path:
        annotation = model.model_fields[name].annotation
        tables = [annotation, *get_args(annotation)]
        model = next(t for t in tables if isinstance(t, type) and issubclass(t, BaseModel))
    return model


def _lower(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
