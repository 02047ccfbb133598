"""How a latency is taken: named profiles, the tables of ``benchmarks/profiles.toml``."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.errors import ConfigError
from pipeline.settings import Settings, explain

FILE = Path(__file__).with_suffix(".toml")


class Profile(Settings):
    """The conditions of a measurement at batch 1."""

    threads: int = Field(default=1, ge=1)
    """Intra-op threads of the runtime."""
    warmup: int = Field(default=20, ge=1)
    """Inferences before the first that counts."""
    min_samples: int = Field(default=200, ge=10)
    """At least so many timed inferences ..."""
    min_seconds: float = Field(default=2.0, gt=0)
    """... and at least so many seconds of them."""


@cache
def profiles() -> dict[str, Profile]:
    """All profiles by name. Raises `ConfigError` where the file is wrong."""
    try:
        tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
        return {name: Profile.model_validate(table) for name, table in tables.items()}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{FILE}: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{FILE}: {explain(error, Profile)}") from error


def read(name: str) -> Profile:
    """The profile of that name. Raises `ConfigError` for one that does not exist."""
    if name not in profiles():
        known = ", ".join(profiles())
        raise ConfigError(f"no latency profile is called `{name}`", remedy=f"There are: {known}.")
    return profiles()[name]
