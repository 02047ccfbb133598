"""A program executed: each operator in float32, its result rounded to the type the program says.

Why so. A program in float16 says which values are float16, not how a product of them is summed up:
Apple's CPU, GPU and Neural Engine each do it in their own way, and none of it is published. What
they share is that every value which the program names is held in float16. So that is what is
executed: operands are widened (which is exact), an operator computes in float32 as a whole (its
bias added, its softmax normalised), and the result is rounded once, to nearest, ties to even, with
overflow to infinity. The rounding of weights, of the normalisation and of every activation is
hence the file's own; only the error of summing up is less than a device's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ExportError
from runtime.coreml_reference import batching
from runtime.coreml_reference.elementwise import DTYPES
from runtime.coreml_reference.operators import EXACT, TABLE
from runtime.coreml_reference.package import AGAIN
from runtime.coreml_reference.program import Name, Operation, Program, Type

Step = tuple[Operation, Sequence[Tensor]]


class Executor:
    """Executes `program` for any number of images."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._varying = batching.varying(program)
        self._batched = batching.batched(program)
        last = {name: at for at, each in enumerate(program.operations) for name in each.names}
        self._last = {name: at for name, at in last.items() if name != program.answer}
        self._single = self._prepare(program.operations)
        self._many = self._prepare(self._batched) if self._batched is not None else None

    @property
    def batched(self) -> bool:
        """Whether it takes many images at once; otherwise it executes one after the other."""
        return self._many is not None

    def answers(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The program's answer [images, ...] to inputs whose first axis is the images."""
        found: Tensor | None = feeds_of(feeds).get(self.program.answer)
        for operation, values in self.steps(feeds):
            for (name, _), value in zip(operation.outputs, values, strict=True):
                found = value if name == self.program.answer else found
        if found is None:
            raise ExportError(f"{self.program.package.path}: {self.program.answer} is not computed")
        return found.float().numpy()

    def steps(self, feeds: Mapping[str, NDArray[Any]]) -> Iterator[Step]:
        """Each operator and its results, whose first axis is the images, in order."""
        tensors = feeds_of(feeds)
        count = len(next(iter(tensors.values())))
        if self._many is not None or count == 1:
            yield from self._walk(tensors, count)
            return
        alone = [
            self._walk({name: each[i : i + 1] for name, each in tensors.items()}, 1)
            for i in range(count)
        ]
        for several in zip(*alone, strict=True):
            operation = several[0][0]
            joined = [
                _joined(values) for values in zip(*(each[1] for each in several), strict=True)
            ]
            yield operation, joined

    def _prepare(self, operations: Sequence[Operation]) -> list[tuple[Operation, dict[str, Any]]]:
        return [
            (each, {key: _constant(value) for key, value in each.arguments.items()})
            for each in operations
        ]

    def _walk(self, feeds: Mapping[str, Tensor], count: int) -> Iterator[Step]:
        values = {
            name: feeds[name].to(DTYPES[kind.dtype]) for name, kind in self.program.inputs.items()
        }
        operations = self._many if self._many is not None else self._single
        for at, (operation, arguments) in enumerate(operations):
            with torch.inference_mode():  # never around a yield: it would hold for the caller too
                results = self._results(operation, arguments, values, count)
            yield operation, results
            for (name, _), result in zip(operation.outputs, results, strict=True):
                values[name] = result
            for name in {*operation.names}:
                if self._last.get(name) == at:
                    del values[name]

    def _results(
        self,
        operation: Operation,
        arguments: Mapping[str, Any],
        values: Mapping[str, Tensor],
        count: int,
    ) -> list[Tensor]:
        wide = operation.type not in EXACT
        given = {key: _fetch(value, values, wide) for key, value in arguments.items()}
        try:
            made = TABLE[operation.type](**given)
        except (TypeError, ValueError, IndexError, KeyError, RuntimeError) as error:
            raise self._fault(operation, f"it cannot be executed: {error}") from error
        results = [made] if isinstance(made, Tensor) else list(made)
        if len(results) != len(operation.outputs):
            raise self._fault(
                operation, f"it gives {len(results)} values, not as many as are named"
            )
        return [
            self._rounded(operation, result, kind, count if name in self._varying else 1)
            for (name, kind), result in zip(operation.outputs, results, strict=True)
        ]

    def _rounded(self, operation: Operation, result: Tensor, kind: Type, count: int) -> Tensor:
        """`result` in the type of the program, once it is sure to be what the program says."""
        shape = kind.shape
        if self._many is not None and count != 1:
            shape = (count, *shape[1:])
        dtype = DTYPES[kind.dtype]
        if tuple(result.shape) != shape or result.is_floating_point() != dtype.is_floating_point:
            raise self._fault(
                operation,
                f"it gives {list(result.shape)} of {result.dtype}, and the program says "
                f"{list(shape)} of {kind.dtype}",
            )
        return result.to(dtype)

    def _fault(self, operation: Operation, what: str) -> ExportError:
        path = self.program.package.path
        return ExportError(f"{path}: {operation.type} {operation.name}: {what}", AGAIN)


def feeds_of(feeds: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """As tensors; images with their channels last in memory, which torch convolves much faster."""
    tensors = {name: torch.from_numpy(each) for name, each in feeds.items()}
    return {
        name: each.to(memory_format=torch.channels_last) if each.ndim == 4 else each
        for name, each in tensors.items()
    }


def _constant(value: Any) -> Any:
    """What an operator is given for a constant; see `operators`."""
    if isinstance(value, list):
        return [_constant(each) for each in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "f":
        return torch.from_numpy(value.astype(np.float32))
    return value.tolist() if value.ndim == 1 else torch.from_numpy(value.copy())


def _fetch(value: Any, values: Mapping[str, Tensor], wide: bool) -> Any:
    if isinstance(value, list):
        return [_fetch(each, values, wide) for each in value]
    if not isinstance(value, Name):
        return value
    found = values[value]
    return found.float() if wide and found.dtype == torch.float16 else found


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Of several images: along the first axis where it is one image's, else along a new one."""
    first = values[0]
    return torch.cat(list(values)) if first.shape[:1] == (1,) else torch.stack(list(values))
