"""What is set of the parts of the quantize stage; importable without torch."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings import Augment, Recipe, Settings

LEAST_IMAGES = 10
"""From fewer, ranges are chance."""


class FineTune(Settings):
    """The table [quantize.fine_tune]."""

    epochs: int = Field(default=1, ge=0)
    """Passes over the training split; 0 leaves the weights as they are."""
    guide: Literal["teacher", "student"] = "teacher"
    """The float network whose answers are imitated."""
    temperature: float = Field(default=2.0, gt=0)
    """Divides both networks' logits."""
    hard_weight: float = Field(default=0.5, ge=0)
    """Weight of the cross-entropy with the labels beside the imitation, whose weight is 1."""
    learning_rate: float = Field(default=0.002, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(default=128, ge=2)
    """Images a step."""

    def recipe(self, augment: Augment) -> Recipe:
        """The rest of the budget: simulated rounding needs float32."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            # Without BatchNorm a single bad step can silence layers for good.
            clip_norm=1.0,
            precision="fp32",
            augment=augment,
        )


class Options(Settings):
    """The table [quantize]."""

    enabled: bool = True
    """Without it there are no int8 files."""
    calibration_images: int = Field(default=512, ge=LEAST_IMAGES)
    """Training images, without augmentation, from which the ranges of activations are taken."""
    calibration: Literal["best", "minmax", "percentile", "entropy", "mse"] = "best"
    """How; `best` tries all four and keeps the one with the best top-1 on the validation split."""
    fine_tune: FineTune = FineTune()
    """Quantization-aware distillation: the rounded weights learn on."""
    scheme: Literal["auto", "u8s8", "u8s8-reduced", "s8s8", "u8u8"] = "auto"
    """Types of activations and weights for CPUs; "reduced" weights have 7 bits. `auto` is u8s8, or
    where that is not the same on every CPU the fastest here that is."""
    cpu_images: Annotated[int, Field(ge=0)] | Literal["all"] = 1000
    """Images on which other CPUs must answer as this one does, where they can be emulated (see
    `python -m pipeline doctor`); 0 does without."""
    sensitivity_images: int = Field(default=256, ge=0)
    """Validation images on which each layer is tried in float by itself; 0 does without."""
    max_drop: float | None = Field(default=None, ge=0)
    """Points of top-1 that int8 may lose on the validation split. Where it loses more, the layers
    that cost least in float and help stay float."""
    float_layers: tuple[str, ...] = ()
    """Layers that stay float in any case, by their names in the report."""
