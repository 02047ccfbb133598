"""Compressed weights: every form in which an ML program may hold a constant, made dense.

The formulas are those of coremltools' documentation of the ``constexpr_`` operators (iOS16:
converters/mil/mil/ops/defs/iOS16/constexpr_ops.py; iOS18: iOS18/compression.py). A value is
computed in float32 and rounded once to the type that the program gives it.

Parameters keep the names that the operators give them, since they are passed by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.coreml_reference.package import unpack

Array = NDArray[Any]


def _along(values: Array | float, rank: int, axis: int) -> Array:
    """As float32, a vector so shaped that it applies along `axis` of that rank; or one number."""
    values = np.asarray(values, np.float32)
    if values.ndim == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _spread(values: Array, shape: Sequence[int]) -> Array:
    """`values` with each element repeated over its block, so that the whole has `shape`."""
    for axis, size in enumerate(shape):
        if size % values.shape[axis]:
            raise ValueError(f"{values.shape[axis]} blocks do not divide {size} along axis {axis}")
        values = np.repeat(values, size // values.shape[axis], axis)
    return values


def affine_dequantize(
    quantized_data: Array, zero_point: Array | float, scale: Array | float, axis: int
) -> Array:
    """scale * (data - zero point), per tensor or along `axis`."""
    rank = quantized_data.ndim
    centred = quantized_data.astype(np.float32) - _along(zero_point, rank, axis)
    return centred * _along(scale, rank, axis)


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale * (data - offset), where each scale and offset stands for a block of elements."""
    values = data.astype(np.float32)
    if offset is not None:
        values -= _spread(offset, data.shape).astype(np.float32)
    return values * _spread(scale, data.shape).astype(np.float32)


def cast(source_val: Array, output_dtype: str) -> Array:
    """The same values as float32, the only type there is to cast to."""
    if output_dtype != "fp32":
        raise ValueError(f"a constant cannot be cast to {output_dtype}")
    return source_val.astype(np.float32)


def lut_to_dense(
    indices: Array, lut: Array, shape: Array | None = None, vector_axis: int | None = None
) -> Array:
    """Looked up in a table: iOS16's (with `shape`: packed indices) or iOS18's."""
    if shape is not None:
        bits = int(lut.size).bit_length() - 1
        return lut[unpack(indices, bits, int(np.prod(shape)))].reshape(shape)
    tables = lut.shape[:-2]
    if any(size % count for size, count in zip(indices.shape, tables, strict=True)):
        raise ValueError(f"tables {list(tables)} do not divide indices {list(indices.shape)}")
    which = np.indices(indices.shape, sparse=True)
    groups = (
        index // (size // count)
        for index, size, count in zip(which, indices.shape, tables, strict=True)
    )
    vectors = lut[(*groups, indices)]  # [*indices, size of a vector]
    if vectors.shape[-1] == 1:
        return vectors[..., 0]
    if vector_axis is None:
        raise ValueError("a table of vectors needs a vector_axis")
    axis = vector_axis % indices.ndim
    dense = list(indices.shape)
    dense[axis] *= vectors.shape[-1]
    return np.moveaxis(vectors, -1, axis + 1).reshape(dense)


def sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    """Zeros but where `mask` has a one: iOS16's (with `shape`: a packed mask) or iOS18's."""
    if shape is not None:
        mask = unpack(mask, 1, int(np.prod(shape))).reshape(shape)
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


def lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: int | None = None
) -> tuple[Array, Array]:
    """The mask, and the values looked up where it has a one, in row-major order."""
    indices = sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = lut_to_dense(indices, lut, vector_axis=vector_axis)
    mask = indices_mask
    if dense.shape != mask.shape and vector_axis is not None:
        mask = np.repeat(mask, lut.shape[-1], vector_axis % mask.ndim)
    return mask, dense[mask != 0]


def sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """The mask, and scale * (data - offset) where it has a one, in row-major order."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


TABLE: Mapping[str, Callable[..., Array | tuple[Array, ...]]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
"""What makes a constant dense, by operator."""
