"""What a network computes on its way that an exported file computes, too, whatever it fuses.

A file may fold a normalisation into the convolution before it, and either into the activation
behind, so of such a chain only the end is a landmark. It is named after the convolution, which has
the most in it to be wrong.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Floats = NDArray[np.float32]


class Landmark(NamedTuple):
    """The result of a convolution with its normalisation and activation, or of a block."""

    layer: str
    """Name of the module."""
    value: Floats
    """float32 [batch, ...], planes before rows and columns."""

    def error(self, value: Floats) -> float:
        """How far `value`, of as many elements, is away: as it is, or with channels last.

        Root mean square, in standard deviations of the landmark; infinite where it is no number.
        """
        spread = float(self.value.std())
        forms = [self.value]
        if self.value.ndim == 4:
            forms.append(self.value.transpose(0, 2, 3, 1))
        flat = value.reshape(-1)
        with np.errstate(all="ignore"):  # a damaged file may compute anything
            found = [float(np.sqrt(np.mean((flat - form.reshape(-1)) ** 2))) for form in forms]
        return min(each / spread if np.isfinite(each) else np.inf for each in found)


def layers_of(network: nn.Module, pixels: Floats) -> list[Landmark]:
    """The landmarks of `network`, in the order of execution.

    `pixels` is float32 [batch, channels, size, size], normalised, on the network's device, the CPU.
    A layer that answers the same to all of them tells nothing and is left out. Afterwards
    `network` has no in-place activations any more, which would overwrite what is looked at.
    """
    chains = _Chains()
    handles = []
    for name, module in network.named_modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # pyright: ignore[reportArgumentType]
        hook = partial(chains.note, name or "the network")
        handles.append(module.register_forward_hook(hook))
    try:
        with torch.inference_mode():
            network(torch.from_numpy(pixels))
    finally:
        for handle in handles:
            handle.remove()
    return list(chains.ends())


class _Chains:
    """Notes the modules of a network as they are run."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[str, Tensor]] = {}
        """By identity."""
        self._continued: set[int] = set()
        self._read: set[int] = set()
        self._kept: list[Tensor] = []
        """So that no other tensor gets the identity of one that is gone."""

    def note(self, name: str, module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        """A forward hook of the module of that name."""
        if not isinstance(result, torch.Tensor) or not given or given[0] is result:
            return
        source = given[0]
        self._kept.append(source)
        if _goes_on(module, source, result):
            head = self._made.get(id(source), (name, source))[0]
            self._made[id(result)] = (head, result)
            self._continued.add(id(source))
        else:
            self._made.setdefault(id(result), (name, result))
            if not [*module.children()]:
                self._read.add(id(source))

    def ends(self) -> Iterator[Landmark]:
        """Results that are more than the first half of what a normalisation or activation ends."""
        for key, (head, tensor) in self._made.items():
            value = tensor.float().numpy()
            if (key in self._read or key not in self._continued) and value.std() > 0:
                yield Landmark(head, value)


def _goes_on(module: nn.Module, source: Tensor, result: Tensor) -> bool:
    """Whether `module` normalises, or works on each element by itself."""
    if isinstance(module, _BatchNorm):  # timm's have an activation inside
        return True
    plain = not [*module.children(), *module.parameters()]
    return plain and result.shape == source.shape
