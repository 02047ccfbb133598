"""How far a file's answers may be from the float student's: what ends a run, and what a report
calls near to it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.records import Precision


class Tolerance(NamedTuple):
    """How far a file's answers may be from the float student's before the run fails."""

    difference: float
    """Mean absolute difference of a logit (of probabilities: of their logarithms, centred), in
    standard deviations of the student's logits. Answers that have nothing to do with one another
    are 1.1 apart."""
    drop: float
    """Points of top-1 that may be lost for certain: the lower end of the paired 95 % interval."""


TOLERANCES: Mapping[Precision, Tolerance] = {
    # Rounding alone: quick's float32 files are off by 1e-6 at most. On ten trained students and 500
    # test images each, pixels 13 levels too bright move the answers by 0.06 to 0.46, swapped
    # colour channels by 0.48 to 0.74 (benchmarks/LOG.md).
    "fp32": Tolerance(0.001, 0.1),
    "fp16": Tolerance(0.03, 0.5),
    # Compression is meant to cost something. These tell a faulty file from a costly one.
    "int8": Tolerance(0.5, 3.0),
    "w8a16": Tolerance(0.2, 1.0),
    "w6a16": Tolerance(0.5, 5.0),
    "w4a16": Tolerance(0.8, 30.0),
}
NEAR = 0.5
"""A difference beyond that share of its tolerance is near it: quick's files stay below a seventh.
One beyond half is unlike those, and other images or another seed may put it over."""
