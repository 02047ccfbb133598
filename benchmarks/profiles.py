"""How a latency is taken: named profiles, the tables of ``benchmarks/profiles.toml``."""

import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import CannotRunHereError, ConfigError
from pipeline.machine import cores
from pipeline.settings import Settings, explain

FILE = Path(__file__).with_suffix(".toml")


class Profile(Settings):
    """The conditions of a measurement."""

    threads: int = Field(default=1, ge=0)
    """Intra-op threads of the runtime; 0: one for each core."""
    batch: int = Field(default=1, ge=1)
    """Images of one inference. Files for a single image take them one after the other."""
    affinity: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Numbers of the CPUs that the process may use (Linux); None: all."""
    memory_limit_mb: int | None = Field(default=None, ge=1)
    """Most memory that the process may ask for (RLIMIT_DATA, Linux); None: no limit."""
    arena: bool = True
    """Whether ONNX Runtime keeps freed memory for the next inference."""
    spinning: bool = True
    """Whether ONNX Runtime's idle threads wait busily; one thread alone has none to wait for."""
    graph_optimization: Literal["all", "extended", "basic", "none"] = "all"
    """How far ONNX Runtime rewrites the graph when it loads it."""
    warmup: int = Field(default=20, ge=1)
    """At least so many inferences before the first that counts ..."""
    warmup_seconds: float = Field(default=0.1, ge=0)
    """... and at least so many seconds of them."""
    min_samples: int = Field(default=200, ge=10)
    """At least so many timed inferences, if `max_seconds` are enough for them ..."""
    min_seconds: float = Field(default=2.0, gt=0)
    """... at least so many seconds of them ..."""
    width: float = Field(default=0.02, gt=0)
    """... and until the 95 % interval of their p50 reaches no farther than this share of it to
    either side ..."""
    max_seconds: float = Field(default=10.0, gt=0)
    """... or until so many seconds are over (and a few inferences done): then the host is called
    noisy."""
    processes: int = Field(default=1, ge=1)
    """With more than one, each sample is a fresh process: its time from the file to the first
    answer. There are no others then: samples, seconds and width have no say."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_seconds < self.min_seconds:
            raise ValueError("max_seconds is less than min_seconds")
        if self.affinity is not None and self.threads > (there := len(set(self.affinity))):
            raise ValueError(
                f"threads is {self.threads}, and affinity names {there} CPU{'s' * (there > 1)}"
            )
        return self

    def check(self, name: str) -> None:
        """Raise `CannotRunHereError` where this machine has not what the profile `name` wants."""
        there = cores()
        if self.threads > there:
            raise CannotRunHereError(
                f"the profile `{name}` wants {self.threads} threads, and there are {there} cores",
                remedy="Choose another (measure.profile): threads that share a core wait for one "
                "another.",
            )
        for key, to_be_had in (
            ("affinity", bool(cpus())),
            ("memory_limit_mb", sys.platform == "linux"),
        ):
            if getattr(self, key) is not None and not to_be_had:
                raise CannotRunHereError(
                    f"the profile `{name}` sets `{key}`, which needs Linux",
                    remedy=f"Choose another (measure.profile), or leave out its `{key}`.",
                )
        if wrong := [cpu for cpu in self.affinity or () if cpu not in cpus()]:
            raise CannotRunHereError(
                f"the profile `{name}` wants CPU {wrong[0]}, and this process may use "
                f"{', '.join(map(str, sorted(cpus())))}",
                remedy="Change its `affinity`.",
            )


def cpus() -> set[int]:
    """Numbers of the CPUs that this process may use; none where the system does not tell."""
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@cache
def profiles() -> dict[str, Profile]:
    """All profiles by name. Raises `ConfigError` where the file is wrong."""
    try:
        tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{FILE}: {error}") from error
    return {name: _profile(name, table) for name, table in tables.items()}


def _profile(name: str, table: Any) -> Profile:
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{FILE}: {explain(error, Profile, (name,))}") from error


def read(name: str) -> Profile:
    """The profile of that name. Raises `ConfigError` for one that does not exist."""
    if name not in profiles():
        known = ", ".join(profiles())
        raise ConfigError(f"no latency profile is called `{name}`", remedy=f"There are: {known}.")
    return profiles()[name]
