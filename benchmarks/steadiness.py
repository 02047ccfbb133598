"""How well a median is known, and what on the host stood in the way of knowing it better.

Used inside the measuring process, so it loads little.
"""

import os
from collections.abc import Iterable, Sequence
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.machine import cores

BLOCKS = 16
STUDENT = 2.1314
"""0.975 quantile of Student's t with `BLOCKS` - 1 degrees of freedom. Source: any table."""
STUDENT_PAIRS = 2.3646
"""With `BLOCKS` / 2 - 1."""
BUSY = 1.5
"""Load average from which on the host is called busy: measuring itself, done again and again, comes
to 1."""
OFTEN = 50
"""Times preempted from which on that is told: a few a second are the system's own."""
STOLEN = 0.01
"""Share of CPU time that the hypervisor kept from this machine from which on that is told."""
FREQUENCY = "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"


def half_width(samples_ns: Sequence[int]) -> float:
    """Half the 95 % interval of the median of `samples_ns`, as a share of it; inf for too few.

    Batch means (Schmeiser 1982, Oper. Res. 30:556) with medians: inferences that follow one another
    are alike (frequency, neighbours), which intervals for independent samples do not see. The
    samples are cut into `BLOCKS` blocks in the order in which they were taken, and the blocks'
    medians get an interval by Student's t; so do pairs of neighbours, and the wider one counts.
    Blocks that are alike in a row are too short still: their interval is widened as for a first
    order autoregression, sqrt((1 + r) / (1 - r)) by their lag-1 correlation r where that is
    positive. Simulated in `tests/test_steadiness.py`: a level with a memory of 0.3 s is covered in
    88 instead of 60 % of measurements that end at ±2 %, independent samples in 96 %.
    """
    n = len(samples_ns) // BLOCKS
    if n < 1:
        return float("inf")
    values = np.asarray(samples_ns[len(samples_ns) - n * BLOCKS :], np.float64)
    medians = np.median(values.reshape(BLOCKS, n), axis=1)
    middle = float(np.median(values))
    pairs = medians.reshape(-1, 2).mean(axis=1)
    half = max(
        STUDENT * float(medians.std(ddof=1)) / len(medians) ** 0.5,
        STUDENT_PAIRS * float(pairs.std(ddof=1)) / len(pairs) ** 0.5,
    )
    alike = max(0.0, _lag1(medians))
    return half * ((1 + alike) / (1 - alike)) ** 0.5 / middle if middle else float("inf")


def _lag1(values: NDArray[np.float64]) -> float:
    """Correlation of `values` with those that follow them; 0 where all are equal."""
    apart = values - values.mean()
    whole = float(apart @ apart)
    return float(apart[1:] @ apart[:-1]) / whole if whole else 0.0


def half_width_of_few(samples_ns: Sequence[int]) -> float:
    """As `half_width`, for samples that are independent, of a process each; inf for less than 6.

    By order statistics: as many samples are left out at either end as the sign test allows (David &
    Nagaraja 2003, Order Statistics, section 7.1). The farther of the two ends counts.
    """
    n, out, below = len(samples_ns), 0, 1
    while below <= 0.025 * 2**n:  # `below` of 2**n ways have at most `out` on one side
        out += 1
        below += comb(n, out)
    if out == 0:
        return float("inf")
    ordered = sorted(samples_ns)
    middle = float(np.median(ordered))
    return max(ordered[n - out] - middle, middle - ordered[out - 1]) / middle


class Conditions(BaseModel):
    """What else happened on the host while samples were taken; None where it does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: float | None
    """Load average of the minute before; earlier measurements are in it."""
    stolen: float | None
    """Share of all CPU time that a hypervisor gave to others."""
    preempted: int | None
    """How often the system took the CPU from this process."""
    mhz: tuple[float, float] | None
    """Least and greatest clock frequency of any CPU, at the end."""

    @classmethod
    def of_all(cls, found: Sequence["Conditions"]) -> "Conditions":
        """What happened while any of several processes measured."""
        clocks = [each.mhz for each in found if each.mhz is not None]
        lows, highs = [low for low, _ in clocks], [high for _, high in clocks]
        preempted = [each.preempted for each in found if each.preempted is not None]
        return cls(
            load=_most(each.load for each in found),
            stolen=_most(each.stolen for each in found),
            preempted=sum(preempted) if preempted else None,
            mhz=(min(lows), max(highs)) if clocks else None,
        )

    @property
    def doubts(self) -> list[str]:
        """What may have disturbed the measurement, in words."""
        found = []
        if self.load is not None and self.load > BUSY:
            found.append(f"load average {self.load:.1f} on {cores()} cores")
        if self.stolen is not None and self.stolen > STOLEN:
            found.append(f"{self.stolen:.0%} of CPU time stolen by the hypervisor")
        if self.preempted and self.preempted > OFTEN:
            found.append(f"{self.preempted:,} times preempted")
        if self.mhz is not None and self.mhz[1] > 1.05 * self.mhz[0]:
            found.append(f"clock between {self.mhz[0]:.0f} and {self.mhz[1]:.0f} MHz")
        return found


class Watch:
    """Notes the host's counters now; `conditions` tells what changed since."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._ticks, self._preempted = _ticks(), _preempted()

    def conditions(self) -> Conditions:
        """What happened since."""
        before, after = self._ticks, _ticks()
        stolen = None
        if before is not None and after is not None:
            passed = [b - a for a, b in zip(before, after, strict=True)]
            stolen = passed[7] / sum(passed) if sum(passed) else 0.0
        now = _preempted()
        preempted = None if now is None or self._preempted is None else now - self._preempted
        return Conditions(load=self._load, stolen=stolen, preempted=preempted, mhz=_mhz())


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _ticks() -> list[int] | None:
    """CPU time since boot by kind, proc_stat(5): the eighth is stolen."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    return [int(word) for word in words[1:9]] if len(words) > 8 else None


def _preempted() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _mhz() -> tuple[float, float] | None:
    found = []
    for path in Path("/").glob(FREQUENCY):
        try:
            found.append(int(path.read_text(encoding="ascii")) / 1000)
        except (OSError, ValueError):
            continue
    return (min(found), max(found)) if found else None
