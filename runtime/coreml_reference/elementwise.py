"""Operators of ML programs that compute each element by itself: arithmetic and activations.

See `operators` for what is common to all of them.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = {
    **{"fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool},
    **{"int8": torch.int8, "int16": torch.int16, "int32": torch.int32},
    **{"uint8": torch.uint8, "uint16": torch.uint16},
}
"""Of computed values, by the names they have in ML programs."""


def _of_tensors(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """For functions of two tensors that take no Python numbers."""

    def of_tensors(x: Any, y: Any) -> Tensor:
        return function(torch.as_tensor(x), torch.as_tensor(y))

    return of_tensors


def _of_two(function: Callable[[Any, Any], Any]) -> Callable[..., Tensor]:
    """Python's operators are positional."""

    def of_two(x: Any, y: Any) -> Tensor:
        return function(x, y)

    return of_two


def cast(x: Tensor, dtype: str) -> Tensor:
    """To another type; from floats to whole numbers towards zero."""
    return x.to(DTYPES[dtype])


def select(cond: Tensor, a: Any, b: Any) -> Tensor:
    """a where the condition holds, b elsewhere."""
    return torch.where(cond, torch.as_tensor(a), torch.as_tensor(b))


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x times a normal distribution's integral, exactly or by one of two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """x where it is positive, alpha * x elsewhere, per channel."""
    return F.prelu(x, alpha)


TWO: Mapping[str, Callable[..., Tensor]] = {
    "add": _of_two(operator.add),
    "equal": _of_two(operator.eq),
    "floor_div": _of_two(operator.floordiv),
    "greater": _of_two(operator.gt),
    "greater_equal": _of_two(operator.ge),
    "less": _of_two(operator.lt),
    "less_equal": _of_two(operator.le),
    "logical_and": _of_two(operator.and_),
    "logical_or": _of_two(operator.or_),
    "logical_xor": _of_two(operator.xor),
    "maximum": _of_tensors(torch.maximum),
    "minimum": _of_tensors(torch.minimum),
    "mod": _of_two(operator.mod),
    "mul": _of_two(operator.mul),
    "not_equal": _of_two(operator.ne),
    "pow": _of_two(operator.pow),
    "real_div": _of_two(operator.truediv),
    "sub": _of_two(operator.sub),
}
ONE: Mapping[str, Callable[..., Tensor]] = {
    "abs": lambda x: x.abs(),
    "ceil": lambda x: x.ceil(),
    "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "cos": lambda x: x.cos(),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "erf": lambda x: x.erf(),
    "exp": lambda x: x.exp(),
    "exp2": lambda x: x.exp2(),
    "floor": lambda x: x.floor(),
    "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "log": lambda x, epsilon=1e-45: (x + epsilon).log(),
    "logical_not": lambda x: x.logical_not(),
    "relu": lambda x: x.relu(),
    "relu6": lambda x: x.clamp(0, 6),
    "round": lambda x: x.round(),
    "rsqrt": lambda x, epsilon=1e-12: (x + epsilon).rsqrt(),
    "scaled_tanh": lambda x, alpha, beta: alpha * (beta * x).tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "sign": lambda x: x.sign(),
    "silu": lambda x: F.silu(x),
    "sin": lambda x: x.sin(),
    "softplus": lambda x: F.softplus(x),
    "softsign": lambda x: x / (1 + x.abs()),
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x * x,
    "tanh": lambda x: x.tanh(),
    "threshold": lambda x, alpha: x.clamp(min=alpha),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, 0),
}
TABLE: Mapping[str, Callable[..., Any]] = {
    **TWO,
    **ONE,
    **{function.__name__: function for function in (cast, gelu, prelu, select)},
}
