"""A training step as a CUDA graph: recorded once, then replayed by one call.

A network for phones is hundreds of small kernels. A fast GPU is done with each of them before
Python has launched the next; a recorded step is launched as a whole. Recording runs nothing, and a
replay reads and writes the memory that was used while recording, so batches are copied there.
Source: CUDA C++ Programming Guide, "CUDA Graphs"; PyTorch notes, "Whole-network capture".
"""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from pipeline.batches import Batch
from pipeline.progress import console

WARM = 3
"""Steps before the recording: cuDNN picks its algorithms in them, optimizers make their state."""

Step = Callable[[Batch], Tensor]
"""(a batch) -> the loss of the step that was done with it, a scalar on the device."""


class Recorded:
    """`step`, recorded after `WARM` batches; what it returns is valid until the next call.

    It must launch the same kernels for every batch, all of one size, wait for none of them, and use
    nothing of the batch but its tensors on the GPU. Where it cannot be recorded this is said, and
    every step is launched kernel by kernel.
    """

    def __init__(self, step: Step) -> None:
        self._step: Step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._seen, self._plain = 0, False

    def __call__(self, batch: Batch) -> Tensor:
        """Do the step."""
        if self._plain:
            return self._step(batch)
        if self._seen < WARM:
            self._seen += 1
            return self._aside(batch)
        if self._graph is None:
            try:
                self._record(batch)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                console.print(f"[yellow]no CUDA graph of this training's step: {reason}[/]")
                self._plain = True
                return self._step(batch)
        for field in _tensors(batch):
            getattr(self._batch, field).copy_(getattr(batch, field), non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return self._loss

    def _aside(self, batch: Batch) -> Tensor:
        """The step on a stream of its own, as what comes before a recording has to be."""
        aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            loss = self._step(batch)
        current.wait_stream(aside)
        return loss

    def _record(self, batch: Batch) -> None:
        self._batch = replace(
            batch, **{field: getattr(batch, field).clone() for field in _tensors(batch)}
        )
        graph = torch.cuda.CUDAGraph()
        # Threads that load images may pin memory meanwhile: this one alone is held to the rules.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._loss = self._step(self._batch)
        self._graph = graph


def _tensors(batch: Batch) -> list[str]:
    """The fields that lie on the GPU."""
    held = [(field.name, getattr(batch, field.name)) for field in fields(batch)]
    return [name for name, value in held if isinstance(value, Tensor) and value.is_cuda]
