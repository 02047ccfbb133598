"""The runtimes that can execute an artifact on this machine: one file each.

A runtime module exposes ``FORMATS`` (names of artifact formats), ``availability()`` and
``open(path, threads)``, which returns a `Session`. Importing this package imports none of them.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray


class Availability(NamedTuple):
    """Whether something works here and, if not, why and how to get it."""

    ok: bool
    detail: str
    """A version where it works; the reason where it does not."""
    remedy: str = ""
    """What to do about it; empty where nothing can be done on this machine."""


class Session(Protocol):
    """A loaded artifact, ready to run."""

    name: str
    """Runtime and version, e.g. "onnxruntime 1.32.0"."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits [batch, classes] of uint8 `images` [batch, height, width, channels]."""
        ...


class Runtime(Protocol):
    """What a runtime module exposes."""

    FORMATS: Sequence[str]

    def availability(self) -> Availability:
        """Whether it can run on this machine."""
        ...

    def warm_import(self) -> None:
        """Import what `open` needs, so that a load time does not count it."""
        ...

    def open(self, path: Path, threads: int) -> Session:
        """Load the file at `path`, to be run with `threads` intra-op threads."""
        ...


def names() -> list[str]:
    """Names of all runtimes, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Runtime:
    """The runtime module of that name."""
    return cast(Runtime, importlib.import_module(f"runtime.{name}"))


def for_format(artifact_format: str) -> str | None:
    """Name of the runtime that executes files of that format; None where there is none."""
    return next((name for name in names() if artifact_format in load(name).FORMATS), None)
