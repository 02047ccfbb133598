"""The operators of ML programs, in torch: one small function each, found by its name.

Their meaning is that of coremltools' documentation of MIL (converters/mil/mil/ops/defs).
Parameters keep the names and the defaults they have there, since they are passed by name: a
parameter that a function does not know is an error, never something that is overlooked.

A parameter of no dimension is a Python number; whole numbers and truth values of one dimension
are a list; everything else is a tensor. Floats come and go as float32, and the caller rounds what
comes out to the type that the program says (`execution`). Nothing here knows how many images
there are.
"""

from collections.abc import Callable, Mapping
from typing import Any

from runtime.coreml_reference import arithmetic, elementwise, shapes

TABLE: Mapping[str, Callable[..., Any]] = {
    **arithmetic.TABLE,
    **elementwise.TABLE,
    **shapes.TABLE,
}
EXACT = frozenset(
    {"clip", "maximum", "minimum", "relu", "relu6", "threshold", *shapes.TABLE} - {"pad"}
)
"""Operators whose result is among what they are given: float16 stays as it is, without the way
through float32 that takes three times as long and would come to the same."""
