"""One file on one phone under one budget."""

from collections.abc import Sequence
from typing import Self

from benchmarks.predict import Prediction
from pipeline.fit.budget import Budget
from pipeline.records import Precision, Record
from pipeline.wording import megabytes, number


class Shot(Record):
    """What a file costs on the phone, and which bounds it breaks."""

    precision: Precision
    bytes: int
    memory_bytes: int
    """Weights and most activations at one time (`benchmarks.graph_cost`)."""
    prediction: Prediction
    over: dict[str, float]
    """Bounds that are broken, and how many times over."""

    @classmethod
    def of(
        cls, precision: Precision, size: int, memory: int, found: Prediction, budget: Budget
    ) -> Self:
        """The file held against `budget`."""
        return cls(
            precision=precision,
            bytes=size,
            memory_bytes=memory,
            prediction=found,
            over=budget.over(judged_ms(found, budget), size, memory),
        )

    @property
    def latency_ms(self) -> float:
        """The estimate."""
        return self.prediction.latency_ms

    @property
    def excess(self) -> float:
        """The most that any bound is broken by; 0 where all are kept."""
        return max(self.over.values(), default=0.0)

    @property
    def costs(self) -> str:
        """In words."""
        low, high = self.prediction.interval80
        return (
            f"{number(self.latency_ms)} ms predicted (80 % interval {number(low)} to "
            f"{number(high)}), {megabytes(self.bytes)} MB, "
            f"{number(self.memory_bytes / 1e6)} MB of memory"
        )


def judged_ms(found: Prediction, budget: Budget) -> float:
    """The latency held against the bound: the estimate, or the upper end of its 80 % interval."""
    return found.interval80[1] if budget.sure else found.latency_ms


def best(shots: Sequence[Shot]) -> Shot:
    """The first that keeps the budget; where none does, that which breaks it least."""
    return min(shots, key=lambda shot: shot.excess)
