"""Which programs may be given many images at once, and how.

A program is written for one image: a reshape names the leading 1. Where every operator keeps
images apart, it is rewritten for a leading axis of any size; the rule is stated per parameter and
errs on the side of no. A program that it does not hold for is executed image by image, which is
slower and gives the same.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.coreml_reference.operators import TABLE
from runtime.coreml_reference.program import Name, Operation, Program, Type

OPERANDS = {
    *("x", "y", "a", "b", "cond", "values", "input"),
    *("query", "key", "value", "attn_mask"),
}
"""Parameters that may depend on the images; weights and indices, say, may not."""


def varying(program: Program) -> frozenset[str]:
    """Names of the values that depend on the input."""
    names = set(program.inputs)
    for operation in program.operations:
        if not names.isdisjoint(operation.names):
            names.update(name for name, _ in operation.outputs)
    return frozenset(names)


def batched(program: Program) -> tuple[Operation, ...] | None:
    """The operators of `program` for any number of images; None where they mix images."""
    names, types = varying(program), program.types()
    made = []
    for operation in program.operations:
        fed = {name: types[name] for name in operation.names if name in names}
        adapted = _adapted(operation, fed) if fed else operation
        if adapted is None:
            return None
        made.append(adapted)
    return tuple(made) if program.answer in names else None


def _adapted(operation: Operation, fed: Mapping[str, Type]) -> Operation | None:
    shapes = [kind.shape for kind in (*fed.values(), *dict(operation.outputs).values())]
    ranks = {len(kind.shape) for kind in fed.values()}
    if len(ranks) != 1 or any(shape[:1] != (1,) for shape in shapes):
        return None
    (rank,) = ranks
    try:
        bound = inspect.signature(TABLE[operation.type]).bind(**operation.arguments)
    except TypeError:  # no parameters of this operator: to be told of when it is executed
        return None
    bound.apply_defaults()
    given = bound.arguments
    if any(_depends(value, fed) and key not in OPERANDS for key, value in given.items()):
        return None
    if any(
        isinstance(value, np.ndarray) and _beyond(key, value, rank) for key, value in given.items()
    ):
        return None
    if operation.type in ("concat", "stack") and not all(_depends(v, fed) for v in given["values"]):
        return None  # a constant is of one image, and nothing repeats it here
    if operation.type == "matmul" and not _rows(given, fed, rank):
        return None
    out = len(operation.outputs[0][1].shape)
    if not _apart(operation.type, given, rank, out):
        return None
    return replace(operation, arguments={**operation.arguments, **_changes(operation)})


def _depends(value: Any, fed: Mapping[str, Type]) -> bool:
    several = value if isinstance(value, list) else [value]
    return any(isinstance(each, Name) and each in fed for each in several)


def _beyond(key: str, value: np.ndarray, rank: int) -> bool:
    """Whether a constant operand would be broadcast along more axes than the images have."""
    return key in OPERANDS and value.ndim > rank


def _rows(given: Mapping[str, Any], fed: Mapping[str, Type], rank: int) -> bool:
    """Whether images are no rows or columns of a product, or each one a row of its own."""
    alone = _depends(given["x"], fed) and not _depends(given["y"], fed)
    return rank > 2 or (rank == 2 and alone and not given["transpose_x"])


def _apart(kind: str, given: Mapping[str, Any], rank: int, out: int) -> bool:
    """Whether no axis that the operator works along is the images'."""
    axes = []
    if "axis" in given and given["axis"] is not None:
        axes.append(given["axis"] % (out if kind == "stack" else rank))
    if "axes" in given:
        if given["axes"] is None:
            return False
        axes.extend(int(axis) % (out if kind == "expand_dims" else rank) for axis in given["axes"])
    if 0 in axes:
        return False
    if kind == "transpose":
        return given["perm"][0] % rank == 0
    if kind == "tile":
        return given["reps"][0] == 1
    if kind == "pad":
        return len(given["pad"]) < 2 * rank or not any(given["pad"][:2])
    if kind in ("slice_by_index", "slice_by_size"):
        squeezed = given.get("squeeze_mask")
        strides = given.get("stride")
        # What is left has one element, so all of the only image is taken.
        return (squeezed is None or not squeezed[0]) and (strides is None or strides[0] == 1)
    return kind not in ("fill", "l2_norm") or rank > 3


def _changes(operation: Operation) -> dict[str, Any]:
    """Arguments that name the number of images."""
    if operation.type == "reshape":
        return {"shape": np.array([-1, *operation.outputs[0][1].shape[1:]], np.int32)}
    if operation.type == "slice_by_index":
        whole = np.zeros(len(operation.arguments["begin"]), np.bool_)
        masks = {
            key: np.array(operation.arguments.get(key, whole)) for key in ("begin_mask", "end_mask")
        }
        for mask in masks.values():
            mask[0] = True
        return masks
    if operation.type == "slice_by_size":
        size = np.array(operation.arguments["size"])
        size[0] = -1
        return {"size": size}
    return {}
