"""The runtimes that can execute an artifact on this machine: one file each.

A runtime module exposes what `Runtime` asks for; one that can also tell what happens inside a file
has ``intermediates(path, images)``, names and values in the order of execution. Importing this
package imports none of them.
"""

import contextlib
import importlib
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray


class Availability(NamedTuple):
    """Whether something works here and, if not, why and how to get it."""

    ok: bool
    detail: str
    """A version where it works; the reason where it does not."""
    remedy: str = ""
    """What to do about it; empty where nothing can be done on this machine."""

    @property
    def in_full(self) -> str:
        """Detail and remedy in one line."""
        return ". ".join(filter(None, (self.detail, self.remedy)))


class Session(Protocol):
    """A loaded artifact, ready to run."""

    name: str
    """Runtime and version, e.g. "onnxruntime 1.32.0"."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answers [batch, classes] to uint8 `images` [batch, height, width, channels].

        They are what the file gives: logits or probabilities.
        """
        ...


class Runtime(Protocol):
    """What a runtime module exposes."""

    FORMATS: Sequence[str]
    """Formats of artifacts that it is the runtime of."""
    VERSION: int
    """Raised when the code changes what a file is seen to answer: part of the store's key."""
    TIMED: bool
    """Whether its speed says anything of the file."""
    CAVEAT: str
    """What an execution by it does not show, in words; "" where nothing is left open."""

    def availability(self) -> Availability:
        """Whether it can run on this machine."""
        ...

    def warm_import(self) -> None:
        """Import what `open` needs, so that a load time does not count it."""
        ...

    def open(self, path: Path, threads: int) -> Session:
        """Load the file at `path`, to be run with `threads` intra-op threads."""
        ...

    def read_metadata(self, path: Path) -> dict[str, str]:
        """What the file at `path` says of itself: see `pipeline.contract.Facts.texts`."""
        ...


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hold back warnings and what foreign code writes to file descriptor 2; errors are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def names() -> list[str]:
    """Names of all runtimes, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Runtime:
    """The runtime module of that name."""
    return cast(Runtime, importlib.import_module(f"runtime.{name}"))


def for_file(artifact_format: str, file: str) -> str | None:
    """Name of the runtime that executes `file`, of that format; None where there is none."""
    if file.endswith(".onnx"):  # of TensorRT, say, where no engine could be built
        return "onnx_runtime"
    return next((name for name in names() if artifact_format in load(name).FORMATS), None)


def one_by_one(
    run: Callable[[NDArray[Any]], Sequence[NDArray[Any]]], images: NDArray[Any]
) -> list[NDArray[Any]]:
    """What `run` gives for `images` [batch, ...], where it takes a batch of one image only.

    Each array [1, ...] that it gives becomes one [batch, ...]; `images` are at least one.
    """
    each = [run(images[at : at + 1]) for at in range(len(images))]
    return [
        np.concatenate([np.atleast_1d(part) for part in parts]) for parts in zip(*each, strict=True)
    ]
