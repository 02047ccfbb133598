"""One run is one TOML file: read, overridden with --set, and checked before anything is done."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from pipeline.errors import ConfigError
from pipeline.settings import Device, Settings, Student, explain
from pipeline.stages.baseline import Baseline
from pipeline.stages.data import Data
from pipeline.stages.distill import Distill
from pipeline.stages.export import Export
from pipeline.stages.measure import Measure
from pipeline.stages.quantize import Quantize
from pipeline.stages.teach import Teach


class Config(Settings):
    """A whole run. Adding a stage is one field here and one line in `pipeline.flow`."""

    name: str = Field(min_length=1)
    """Name of the run: results lie in runs/<name>. Letters, digits, dot, dash and underscore."""
    seed: int = Field(default=0, ge=0)
    """Decides initial weights, data order and augmentation."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Baseline and student are trained once with each of these, to tell a gain from a seed's luck;
    the split and the teacher stay those of their own seeds. The student of the first one is
    shipped, so that the test set chooses nothing. Empty: `seed` alone."""
    device: Device = "auto"
    """Where training happens; `auto` is CUDA, else Apple's MPS, else the CPU."""
    threads: int = Field(default=0, ge=0)
    """CPU threads for training and evaluation; 0 is all cores. Latency has its own: [measure]."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """How often a training writes the state that it can be continued from."""
    tensorboard: bool = False
    """Write TensorBoard's event files to runs/<name>/tensorboard while training; the plain files in
    runs/<name>/metrics are written in any case."""
    data: Data
    teach: Teach = Teach()
    student: Student = Student()
    baseline: Baseline = Baseline()
    distill: Distill = Distill()
    quantize: Quantize = Quantize()
    export: Export = Export()
    measure: Measure = Measure()

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise ValueError("may hold letters, digits, dot, dash and underscore only")
        return name

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"names a seed twice: {', '.join(map(str, twice))}")
        return seeds

    @property
    def student_seeds(self) -> tuple[int, ...]:
        """What baseline and student are trained with; the first one's student is shipped."""
        return self.seeds or (self.seed,)


def read(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The settings in `path` with `overrides` ("distill.temperature=2") put over them.

    Raises `ConfigError` naming every key that is unknown, mistyped or out of range.
    """
    try:
        values = parse(path)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        shipped = ", ".join(sorted(str(p) for p in Path(__file__).parent.glob("configs/*.toml")))
        raise ConfigError(f"there is no file {path}", remedy=f"Shipped: {shipped}") from error
    for override in overrides:
        put(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}:\n{explain(error, Config)}") from error


def parse(path: Path) -> dict[str, Any]:
    """The tables of the TOML file at `path`. Raises `ConfigError` where there are none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def put(values: dict[str, Any], override: str) -> None:
    """Set what "distill.temperature=2" says in the nested `values`. Raises `ConfigError`."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(
            f"--set {override}: not of the form key=value",
            remedy="For example: --set distill.temperature=2",
        )
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: `{part}` is not a table")
    table[parts[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    """TOML's reading of `text`; a plain string where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
