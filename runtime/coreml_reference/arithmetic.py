"""Operators of ML programs that compute: convolutions, pools, norms, reductions, products.

See `operators` for what is common to all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.coreml_reference.elementwise import DTYPES

Ints = Sequence[int]


def _pads(
    pad_type: str, pad: Ints | None, size: Ints, kernel: Ints, strides: Ints, dilations: Ints
) -> list[tuple[int, int]]:
    """What is added before and after each spatial dimension (coremltools, `aggregated_pad`)."""
    if pad_type == "valid":
        return [(0, 0)] * len(size)
    if pad_type == "custom":
        if pad is None:
            raise ValueError("pad_type custom without pad")
        return list(zip(pad[::2], pad[1::2], strict=True))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type}")
    found = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
        less, more = total // 2, total - total // 2
        found.append((less, more) if pad_type == "same" else (more, less))
    return found


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    if not any(map(any, pads)):
        return x
    return F.pad(x, [side for both in reversed(pads) for side in both], value=value)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """A convolution of 1, 2 or 3 spatial dimensions."""
    ones = [1] * (x.ndim - 2)
    strides, dilations = strides or ones, dilations or ones
    pads = _pads(pad_type, pad, x.shape[2:], weight.shape[2:], strides, dilations)
    if all(before == after for before, after in pads):
        both = [before for before, _ in pads]  # a copy of x less
    else:
        x, both = _padded(x, pads), [0] * len(ones)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[len(ones) - 1]
    return function(x, weight, bias, list(strides), both, list(dilations), groups)


def _pool(
    function: Callable[..., Tensor],
    x: Tensor,
    pads: Sequence[tuple[int, int]],
    kernel: Ints,
    strides: Ints,
    ceil_mode: bool,
) -> Tensor:
    """`function` over `x`, which is padded, without windows that begin in the padding behind."""
    pooled = function(x, list(kernel), list(strides), ceil_mode=ceil_mode)
    if ceil_mode:
        for axis, ((before, after), s) in enumerate(zip(pads, strides, strict=True), start=2):
            if before + after:
                limit = x.shape[axis] - after  # the last window begins before it
                pooled = pooled.narrow(axis, 0, min(pooled.shape[axis], math.ceil(limit / s)))
    return pooled


def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The greatest value in each window; padding is less than any."""
    ones = [1] * len(kernel_sizes)
    strides = strides or ones
    pads = _pads(pad_type, pad, x.shape[2:], kernel_sizes, strides, ones)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(ones) - 1]
    return _pool(function, _padded(x, pads, -math.inf), pads, kernel_sizes, strides, ceil_mode)


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of each window; padding counts as zeros, unless it is excluded."""
    ones = [1] * len(kernel_sizes)
    strides = strides or ones
    pads = _pads(pad_type, pad, x.shape[2:], kernel_sizes, strides, ones)
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(ones) - 1]
    pool = partial(
        _pool, function, pads=pads, kernel=kernel_sizes, strides=strides, ceil_mode=ceil_mode
    )
    mean = pool(x=_padded(x, pads))
    if not exclude_padding_from_average:
        return mean
    return mean / pool(x=_padded(torch.ones_like(x[:1]), pads))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x * transposed weight + bias."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """A product of matrices, broadcast as NumPy does."""
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """A sum of products in Einstein's notation."""
    return torch.einsum(equation, *values)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query * transposed key / sqrt(their width) + mask) * value."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, per channel."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """As `batch_norm`, with the mean and variance of each image and channel."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """As `batch_norm`, with the mean and variance along `axes`."""
    along = sorted(axis % x.ndim for axis in (range(x.ndim) if axes is None else axes))
    shape = [size if axis in along else 1 for axis, size in enumerate(x.shape)]
    variance, mean = torch.var_mean(x, along, correction=0, keepdim=True)
    normal = (x - mean) / torch.sqrt(variance + epsilon)
    if gamma is not None:
        normal = normal * gamma.reshape(shape)
    return normal if beta is None else normal + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Divided by the root of the sum of squares over the last three axes."""
    return x / torch.sqrt((x * x).sum((-3, -2, -1), keepdim=True) + epsilon)


def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha / size * sum of squares of `size` channels) ^ beta."""
    return F.local_response_norm(x, size, alpha, beta, k)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) / sum of exp(x)."""
    return torch.softmax(x, axis)


def _reduce(
    function: Callable[..., Tensor], x: Tensor, axes: Ints | None = None, keep_dims: bool = False
) -> Tensor:
    return function(x, tuple(range(x.ndim) if axes is None else axes), keepdim=keep_dims)


def _reducer(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        return _reduce(function, x, axes, keep_dims)

    return reduce


def _argument(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(
        x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
    ) -> Tensor:
        return function(x, axis, keepdim=keep_dims).to(DTYPES[output_dtype])

    return reduce


def _along(values: Any, rank: int, axis: int | None) -> Any:
    if axis is None:
        return values
    return torch.as_tensor(values).reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def quantize(
    input: Tensor,
    scale: Any,
    output_dtype: str,
    zero_point: Any = 0,
    axis: int | None = None,
) -> Tensor:
    """round(input / scale) + zero point, kept within the type."""
    dtype = DTYPES[output_dtype]
    rank, limits = input.ndim, torch.iinfo(dtype)
    whole = torch.round(input / _along(scale, rank, axis)) + _along(zero_point, rank, axis)
    return whole.clamp(limits.min, limits.max).to(dtype)


def dequantize(input: Tensor, scale: Any, zero_point: Any = 0, axis: int | None = None) -> Tensor:
    """scale * (input - zero point)."""
    rank = input.ndim
    return (input.float() - _along(zero_point, rank, axis)) * _along(scale, rank, axis)


REDUCE: Mapping[str, Callable[..., Tensor]] = {
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
    "reduce_l1_norm": _reducer(lambda x, axes, keepdim: x.abs().sum(axes, keepdim=keepdim)),
    "reduce_l2_norm": _reducer(lambda x, axes, keepdim: (x * x).sum(axes, keepdim).sqrt()),
    "reduce_log_sum_exp": _reducer(torch.logsumexp),
    "reduce_max": _reducer(torch.amax),
    "reduce_mean": _reducer(torch.mean),
    "reduce_min": _reducer(torch.amin),
    "reduce_sum": _reducer(torch.sum),
    "reduce_sum_square": _reducer(lambda x, axes, keepdim: (x * x).sum(axes, keepdim)),
}
OTHERS = (
    *(avg_pool, batch_norm, conv, dequantize, einsum, instance_norm, l2_norm),
    *(layer_norm, linear, local_response_norm, matmul, max_pool, quantize),
    *(scaled_dot_product_attention, softmax),
)
TABLE: Mapping[str, Callable[..., Any]] = {
    **REDUCE,
    **{function.__name__: function for function in OTHERS},
}
