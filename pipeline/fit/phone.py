"""Which phone is meant, and how latencies are predicted there: by which runtime, with what threads.

Predictions are there for devices with published rows only (`benchmarks/published`). A few phones
are known by the chip that is in them.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks import predict
from benchmarks.predict import Prediction
from benchmarks.published.fitting import Group, calibrate, families, published, workloads
from benchmarks.published.workload import Workload
from pipeline.errors import ConfigError
from pipeline.on_device import device as short
from pipeline.records import Precision

CHIPS = {
    "Pixel 2": ("Snapdragon 835", ""),
    "Pixel 2 XL": ("Snapdragon 835", ""),
    "Pixel 4": (
        "Snapdragon 855+",
        "it has a Snapdragon 855, the same cores with the fastest at 2.84 instead of 2.96 GHz",
    ),
    "Pixel 4 XL": (
        "Snapdragon 855+",
        "it has a Snapdragon 855, the same cores with the fastest at 2.84 instead of 2.96 GHz",
    ),
    "Pixel 5": ("Snapdragon 765G", ""),
    "OnePlus 7T": ("Snapdragon 855+", ""),
}
"""Phones without rows of their own: the chip whose rows stand in, and how it differs."""
EXACT: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""Precisions of files, the most exact first."""


class Way(NamedTuple):
    """How a phone runs a file."""

    device: str
    runtime: str
    unit: str
    threads: int | None
    precisions: tuple[Precision, ...]
    """Those of files whose latency there is predicted."""

    @property
    def title(self) -> str:
        """In words."""
        return f"{short(self.device)}, {self.how}"

    @property
    def how(self) -> str:
        """Runtime, unit and threads."""
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.runtime} {self.unit}{threads}"

    def runs(self, found: Prediction) -> bool:
        """Whether `found` is about this way."""
        return (found.device, found.runtime, found.unit, found.threads) == self[:4]


def find(phone: str, runtime: str | None = None, threads: int | None = None) -> tuple[Way, str]:
    """The way that is meant, and what is to be said of the device; "" where nothing is.

    Without `runtime` the one whose predictions err least, where networks were left out; without
    `threads` the fewest published, as latencies are measured here with one. Raises `ConfigError`
    for an unknown or ambiguous phone, and for a runtime or threads without rows there.
    """
    device, note = _device(phone)
    there = sorted((way for way in _ways() if way.device == device), key=_doubt)
    fitting = [way for way in there if runtime is None or runtime.lower() in _names(way)]
    if not fitting:
        raise ConfigError(
            f"--runtime {runtime}: no latencies by it are published for {short(device)}",
            f"There are: {_listed(there)}",
        )
    chosen = [way for way in fitting if threads is None or way.threads == threads]
    if not chosen:
        raise ConfigError(
            f"--threads {threads}: no latencies with so many are published for {short(device)}",
            f"There are: {_listed(fitting)}",
        )
    return chosen[0], note


def known() -> str:
    """All devices with what predicts there."""
    ways = _ways()
    devices = dict.fromkeys(way.device for way in ways)
    told = [
        f"{short(device)} ({_listed([way for way in ways if way.device == device])})"
        for device in devices
    ]
    return f"Known: {'; '.join(told)}. By their chips: {', '.join(CHIPS)}."


def predicted(work: Workload, precision: str, way: Way) -> Prediction:
    """What a file of that work takes."""
    return next(found for found in predict.predict(work, precision) if way.runs(found))


def _device(phone: str) -> tuple[str, str]:
    """The device's published name, and a note where another's rows stand in."""
    devices = list(dict.fromkeys(way.device for way in _ways()))
    for name, (chip, differs) in CHIPS.items():
        if _words(phone) in (_words(name), ["google", *_words(name)]):
            device = next(each for each in devices if _words(chip) == _words(short(each)))
            note = f": {differs}" if differs else ""
            return device, f"{name}: predicted by latencies published for {short(device)}{note}"
    words = _words(phone)
    exact = [each for each in devices if words in (_words(each), _words(short(each)))]
    part = [each for each in devices if words and set(words) <= set(_words(each))]
    found = exact or part
    if len(found) == 1:
        return found[0], ""
    if found:
        named = " or ".join(short(each) for each in found)
        raise ConfigError(f"--phone {phone}: which one, {named}?", "Name it in full.")
    near = difflib.get_close_matches(phone.lower(), _alike(phone, devices), n=1, cutoff=0.75)
    hint = f"Did you mean `{_alike(phone, devices)[near[0]]}`? " if near else ""
    raise ConfigError(
        f"--phone {phone}: no latencies are published of such a device", f"{hint}{known()}"
    )


def _alike(phone: str, devices: Sequence[str]) -> dict[str, str]:
    """Names that a slip may have meant, with and without the maker, in small letters.

    Those with other figures are left out: a Pixel 9 is no Pixel 5.
    """
    full = [*map(short, devices), *CHIPS]
    names = {part: each for each in full for part in (each, each.partition(" ")[2])}
    figures = re.findall(r"\d", phone)
    return {
        name.lower(): each for name, each in names.items() if re.findall(r"\d", name) == figures
    }


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9+]+", name.lower())


def _names(way: Way) -> tuple[str, ...]:
    return way.runtime, f"{way.runtime} {way.unit}".lower()


def _listed(ways: Iterable[Way]) -> str:
    return ", or ".join(dict.fromkeys(way.how for way in ways))


@functools.cache
def _ways() -> tuple[Way, ...]:
    precisions: dict[tuple[str, str, str, int | None], set[str]] = {}
    for family in families(published()[0]):
        for group in family:
            key = (group.device, group.runtime, group.unit, group.threads)
            precisions.setdefault(key, set()).update(group.precision.split("/"))
    return tuple(
        Way(*key, precisions=tuple(each for each in EXACT if each in there))
        for key, there in precisions.items()
    )


def _doubt(way: Way) -> tuple[float, int]:
    """What sorts ways, the best known first."""
    return _halves()[way.runtime, way.unit], way.threads or 0


@functools.cache
def _halves() -> dict[tuple[str, str], float]:
    """By runtime and unit half of the 80 % interval, of the family that is known best."""
    found: dict[tuple[str, str], float] = {}
    for family in families(published()[0]):
        group: Group = next(iter(family))
        key = (group.runtime, group.unit)
        half = calibrate(family, workloads()).half80
        found[key] = min(half, found.get(key, half))
    return found


def without_rows(way: Way, precisions: Sequence[str]) -> str:
    """Why some of `precisions` are not offered; "" where all are."""
    left = [each for each in precisions if each not in way.precisions]
    if not left:
        return ""
    names = " and ".join(left)
    return f"{names}: not offered, for no latencies of such files by {way.how} are published there"
