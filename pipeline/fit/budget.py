"""What a student may cost at most, and what it has to reach, as people write it: "5ms", "3MB"."""

import re
import unicodedata
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.records import Record

TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Units of a latency, in milliseconds; "µs" is read as "us", whichever mu it has."""
BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
"""Units of a size, in bytes; MB is 10^6 here as in all reports."""


class Budget(Record):
    """Bounds; None where there is none."""

    latency_ms: float | None = None
    """One image, as predicted for the phone."""
    bytes: int | None = None
    """The file."""
    memory_bytes: int | None = None
    """Weights and activations, without the runtime itself."""
    accuracy: float | None = None
    """Top-1 as a share, at least."""
    sure: bool = False
    """Whether the upper end of the 80 % interval must keep `latency_ms`, not just the estimate."""

    def over(self, latency_ms: float, size: int, memory: int) -> dict[str, float]:
        """How many times as much as each bound that is broken; empty where all are kept."""
        costs = {
            "latency": (latency_ms, self.latency_ms),
            "size": (size, self.bytes),
            "memory": (memory, self.memory_bytes),
        }
        return {
            name: value / bound
            for name, (value, bound) in costs.items()
            if bound is not None and value > bound
        }


def parse(
    latency: str | None,
    size: str | None,
    memory: str | None = None,
    accuracy: str | None = None,
    *,
    sure: bool = False,
) -> Budget:
    """The budget that the options of the command line say.

    Raises `ConfigError` where an amount cannot be read, or where nothing is bounded.
    """
    if latency is None and size is None and memory is None:
        raise ConfigError(
            "nothing is bounded", "Say what the student may cost: --latency 5ms, --size 3MB or both"
        )
    if sure and latency is None:
        raise ConfigError("--sure is about latency, and there is no --latency", "Add one.")
    return Budget(
        latency_ms=None if latency is None else _amount("--latency", latency, TIMES, "5ms"),
        bytes=None if size is None else _bytes("--size", size, "3MB"),
        memory_bytes=None if memory is None else _bytes("--memory", memory, "20MB"),
        accuracy=None if accuracy is None else share("--accuracy", accuracy),
        sure=sure,
    )


def _amount(option: str, text: str, units: Mapping[str, float], example: str) -> float:
    """A number with its unit, in the unit whose factor is 1."""
    plain = unicodedata.normalize("NFKC", text).replace("\u03bc", "u")
    found = re.fullmatch(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*([a-z]*)\s*", plain, re.IGNORECASE)
    known = ", ".join(units)
    try:
        value = float(found.group(1)) if found else None
    except ValueError:
        value = None
    if found is None or value is None:
        raise ConfigError(f"{option} {text}: no amount", f"For example: {option} {example}")
    unit = found.group(2).lower()
    if found.group(2) != unit and found.group(2).endswith("b"):
        raise ConfigError(
            f"{option} {text}: `{found.group(2)}` are bits", f"In bytes: {option} {example}"
        )
    if unit not in units:
        wrong = f"`{unit}` is no unit of it" if unit else "the unit is missing"
        raise ConfigError(
            f"{option} {text}: {wrong}", f"For example: {option} {example} (units: {known})"
        )
    if not 0 < value * units[unit] < float("inf"):
        raise ConfigError(f"{option} {text}: must be more than 0", f"For example: {example}")
    return value * units[unit]


def _bytes(option: str, text: str, example: str) -> int:
    """Whole bytes."""
    found = int(_amount(option, text, BYTES, example))
    if not found:
        raise ConfigError(f"{option} {text}: less than a byte", f"For example: {example}")
    return found


def share(option: str, text: str) -> float:
    """A share of images: 0.9, 90 or 90% are the same.

    Raises `ConfigError` for anything else, and for 1.5, which is more likely a slip than 1.5 %.
    """
    plain = text.strip()
    try:
        value = float(plain.removesuffix("%"))
    except ValueError:
        value = float("nan")
    if 1 < value < 2 and not plain.endswith("%"):
        raise ConfigError(
            f"{option} {text}: more than all images", f"If per cent are meant: {option} {plain}%"
        )
    if plain.endswith("%") or value > 1:
        value /= 100
    if not 0 < value <= 1:
        raise ConfigError(
            f"{option} {text}: no share of the images", f"For example: {option} 0.9, or 90%"
        )
    return value
