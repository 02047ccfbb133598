"""Operators of ML programs that move values about, and compute none.

See `operators` for what is common to all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = Sequence[int]


def concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """One behind the other, or element by element in turn."""
    if not interleave:
        return torch.cat(list(values), axis)
    axis %= values[0].ndim
    return torch.stack(list(values), axis + 1).flatten(axis, axis + 1)


def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """With axes of size 1, at these places of the result."""
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def fill(shape: Ints, value: float | int | bool = 0.0) -> Tensor:
    """One value throughout."""
    return torch.full(list(shape), value)


def gather(
    x: Tensor,
    indices: Any,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """Slices of `x` along `axis`; negative indices count from the end."""
    if batch_dims:
        raise ValueError("gather with batch_dims is not executed")
    axis %= x.ndim
    places = torch.as_tensor(indices, dtype=torch.int64)
    places = torch.where(places < 0, places + x.shape[axis], places)
    taken = x.index_select(axis, places.flatten())
    return taken.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def identity(x: Tensor) -> Tensor:
    """x."""
    return x


def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """With elements before and after each of the last axes."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    while pairs and not any(pairs[0]):
        pairs.pop(0)  # torch reflects and replicates along the last axes only
    if not pairs:
        return x
    widths = [side for both in reversed(pairs) for side in both]
    if mode == "constant":
        return F.pad(x, widths, value=constant_val)
    return F.pad(x, widths, mode=mode)


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """From channels into height and width."""
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """From height and width into channels."""
    return F.pixel_unshuffle(x, downscale_factor)


def reshape(x: Tensor, shape: Ints) -> Tensor:
    """In row-major order; a size of 0 is that of `x`, and -1 is what remains."""
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(shape)])


def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Backwards along `axes`."""
    return x.flip(list(range(x.ndim) if axes is None else axes))


def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] along each axis, where a mask leaves a limit out or takes one index."""
    no = [False] * x.ndim
    stride, squeeze = stride or [1] * x.ndim, squeeze_mask or no
    for axis in range(x.ndim):
        first = None if (begin_mask or no)[axis] else begin[axis]
        last = None if (end_mask or no)[axis] else end[axis]
        places = range(x.shape[axis])[first : last : stride[axis]]
        if squeeze[axis]:
            start = first or 0
            places = range(x.shape[axis])[start : start + 1 or None]
        if places != range(x.shape[axis]):
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x.squeeze([axis for axis in range(x.ndim) if squeeze[axis]]) if any(squeeze) else x


def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """`size` elements from `begin` along each axis; a size of -1 is what remains."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> Sequence[Tensor]:
    """Parts along `axis`: of these sizes, or so many of one size."""
    if split_sizes is not None:
        return x.split(list(split_sizes), axis)
    if num_splits is None or x.shape[axis] % num_splits:
        raise ValueError(f"{x.shape[axis]} along axis {axis} are not split into {num_splits}")
    return x.split(x.shape[axis] // num_splits, axis)


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Without axes of size 1: these, or all."""
    return x.squeeze() if axes is None else x.squeeze(list(axes))


def stack(values: Sequence[Tensor], axis: int) -> Tensor:
    """Along a new axis."""
    return torch.stack(list(values), axis)


def tile(x: Tensor, reps: Ints) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(*reps)


def transpose(x: Tensor, perm: Ints) -> Tensor:
    """With the axes in that order."""
    return x.permute(*perm)


ALL = (
    *(concat, expand_dims, fill, gather, identity, pad, pixel_shuffle, pixel_unshuffle, reshape),
    *(reverse, slice_by_index, slice_by_size, split, squeeze, stack, tile, transpose),
)
TABLE: Mapping[str, Callable[..., Any]] = {function.__name__: function for function in ALL}
