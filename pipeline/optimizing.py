"""How the weights move: the optimizer, its schedule, and the moving average of the weights."""

import copy
import math
from collections.abc import Collection, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.settings import Recipe

N = TypeVar("N", bound=nn.Module)
LOWEST = 0.1
"""Share of the peak rate that the warm-up starts from."""


def make_optimizer(
    network: nn.Module, recipe: Recipe, *, fused: bool, head: Collection[str], body_rate: float
) -> torch.optim.Optimizer:
    """The optimizer of `recipe`; what is not in `head` (names) learns at `body_rate` of its rate.

    Biases and normalisation weights are not decayed.
    """
    groups = []
    for in_head in (True, False):
        rate = recipe.learning_rate * (1.0 if in_head else body_rate)
        for decayed in (True, False):
            chosen = [
                parameter
                for name, parameter in network.named_parameters()
                if (name in head) == in_head and (parameter.ndim > 1) == decayed
            ]
            decay = recipe.weight_decay if decayed else 0.0
            group = {"params": chosen, "weight_decay": decay, "lr": rate, "peak": rate}
            groups += [group] if chosen else []
    if recipe.optimizer == "adamw":
        on_gpu = next(network.parameters()).is_cuda
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused, capturable=on_gpu)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=fused
    )


def rate_at(step: int, steps: int, warmup: float) -> float:
    """The learning rate of `step` (from 0) of `steps`, as a share of its peak.

    It rises linearly from `LOWEST` over the share `warmup` of the steps, then falls to zero as half
    a cosine (Loshchilov & Hutter 2017). A function of the step alone, so that there is no state to
    save.
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return LOWEST + (1 - LOWEST) * step / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def hold_rates(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """On CUDA let each group's rate be a scalar on `device`: a recorded step reads it there.

    To be called again after `load_state_dict`, and before the first `set_rate`.
    """
    if device.type == "cuda":
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to `share` of its peak rate."""
    for group in optimizer.param_groups:
        rate = share * group["peak"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Average(Generic[N]):
    """Exponential moving average of a network's weights and running statistics.

    Tarvainen & Valpola 2017, equation 1: a <- decay · a + (1 - decay) · weights, after each step.
    The decay rises to its value as (1 + step) / (10 + step), so that the random start is forgotten.
    """

    def __init__(self, network: N, decay: float) -> None:
        self.network: N = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay
        ours, theirs = _state(self.network), _state(network)
        pairs = list(zip(ours, theirs, strict=True))
        floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._ours, self._theirs = [a for a, _ in floats], [b for _, b in floats]
        self._counters = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._ours, self._theirs, step)
        for ours, theirs in self._counters:
            ours.copy_(theirs)


def _state(network: nn.Module) -> list[Tensor]:
    tensors: Iterable[Tensor] = network.state_dict(keep_vars=True).values()
    return [tensor.detach() for tensor in tensors]
