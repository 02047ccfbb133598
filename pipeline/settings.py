"""What every table of a settings file shares: strict, frozen, and documented field by field.

Importable without torch, so that a settings file is checked before anything heavy is loaded.
"""

import difflib
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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


class Recipe(Settings):
    """How one network is trained: an optimizer, a schedule and the batches."""

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
    warmup: float = Field(default=0.15, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly from a tenth of the peak; a cosine to
    zero follows."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""
    flip: bool = True
    """Mirror half of the training images left to right."""
    crop_padding: int = Field(default=0, ge=0)
    """Pixels of zero padding on each side before a random crop back to size; 0 turns it off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass. `auto`: on CUDA bf16 where native, else fp16; on a CPU bf16
    for dense networks where the CPU has bf16 instructions; fp32 elsewhere."""


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
    recipe: Recipe = Recipe()
    """The budget of the baseline and of the distilled student alike."""

    @model_validator(mode="after")
    def _has_a_width(self) -> Self:
        if self.width != 1 and self.arch.startswith("mobilenet_v4"):
            raise ValueError(f"{self.arch} has no width multiplier: leave student.width at 1")
        return self


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
