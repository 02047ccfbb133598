"""The processes of one job, as `torchrun` or `accelerate launch` start them.

Training is shared by all of them; everything else is done by the leader, the process of rank 0,
while the others wait. A job of one process needs none of this and loads no torch for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import CannotRunHereError, TrainingError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=2)
"""How long a process waits for the leader's other work, over a connection of its own (gloo), on
which a process that died is noticed at once."""
STEP = timedelta(minutes=20)
"""How long it waits inside a step. NCCL does not notice by itself that a process is gone."""
LOST = (
    *("connection closed", "connection reset", "connection refused", "socket closed"),
    *("broken pipe", "remote process exited", "remote error", "watchdog"),
)
"""What the messages of a broken connection have in common."""
_patient: Any = None
"""The group that `tell` and `gather` go over."""


@dataclass(frozen=True)
class Team:
    """This process among those of its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine: its GPU's number."""
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, and does what is done once."""
        return self.rank == 0

    def tell(self, what: T) -> T:
        """The leader's `what` (anything that can be pickled), in every process."""
        if self.size == 1:
            return what
        import torch.distributed as dist

        box: list[Any] = [what]
        dist.broadcast_object_list(box, src=0, group=_patient)
        return box[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """The result of `work`, which the others do only when the leader has done it."""
        if self.leads:
            done = work()
            self.tell("done")
            return done
        self.tell("done")
        return work()

    def gather(self, what: T) -> list[T]:
        """Each process's `what` in order of rank for the leader; an empty list for the others."""
        if self.size == 1:
            return [what]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(what, found, dst=0, group=_patient)
        return found or []

    def total(self, values: Tensor) -> Tensor:
        """`values` summed over all processes, in every one of them."""
        if self.size > 1:
            import torch.distributed as dist

            values = values.clone()
            dist.all_reduce(values)
        return values

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the leader's `tensors`, in place."""
        if self.size > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def join(environment: Mapping[str, str] = os.environ) -> Team:
    """The team that `environment` describes, connected; one process where it describes none.

    Raises `CannotRunHereError` where there are more processes on this machine than GPUs.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in environment:
        return Team()
    import torch
    import torch.distributed as dist

    team = Team(
        rank=int(environment["RANK"]),
        size=size,
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
    )
    cuda = torch.cuda.is_available()
    if cuda:
        gpus = torch.cuda.device_count()
        if team.local_size > gpus:
            raise CannotRunHereError(
                f"{team.local_size} processes were started on a machine with {gpus} GPUs",
                remedy=f"Start as many as there are GPUs: torchrun --nproc-per-node {gpus} ...",
            )
        torch.cuda.set_device(team.local_rank)
    if not dist.is_initialized():
        global _patient
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=STEP)
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return team


def leave() -> None:
    """Close the connections."""
    import gc
    import sys

    # Where torch was never loaded there is nothing to close.
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            # A wrapped network that still waits in a cycle to be freed holds on to the connections,
            # and at the interpreter's end their threads abort the process (torch 2.14, gloo).
            gc.collect()
            dist.destroy_process_group()
            gc.collect()


@contextmanager
def noticing_loss(team: Team, what: str) -> Iterator[None]:
    """Say of a broken connection that another process is gone: `TrainingError`."""
    try:
        yield
    except RuntimeError as error:
        if team.size == 1 or not is_lost(error):
            raise
        raise TrainingError(
            f"the connection to another process of this job was lost while working on {what}: it "
            "was killed, or it failed (see its own message)",
            remedy="Start the same job again: it goes on from the last saved state.",
        ) from error


def is_lost(error: BaseException) -> bool:
    """Whether `error` says that another process of the job is gone."""
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in LOST)
