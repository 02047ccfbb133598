"""What is set of the parts of the quantize stage; importable without torch."""

from typing import Literal

from pydantic import Field

from pipeline.settings import Augment, Recipe, Settings


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
    learning_rate: float = Field(default=0.005, gt=0)
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
            precision="fp32",
            augment=augment,
        )
