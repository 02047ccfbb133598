"""How many times as long a run's file takes as another's, timed here and now, in turn.

The latencies of two reports were taken at different times. A host drifts between them, by several
per cent for the very same file, and an interval from within one process does not know of it. In
turn (A B A B ..., each in a fresh process) a drift is in both files of a round.
"""

from dataclasses import dataclass
from math import log
from pathlib import Path

from benchmarks import profiles, targets, turns
from benchmarks.stats import Interval
from pipeline.errors import ConfigError
from pipeline.summary import ArtifactRow

WIDE = 0.1
"""Half an interval, as a share of the ratio, from which on it decides nothing that it covers."""


@dataclass(frozen=True)
class Ratio:
    """Time of the new file over that of the old one."""

    value: float
    ci95: Interval
    rounds: int
    profile: str

    @property
    def half_width(self) -> float:
        """Half the interval, as a share."""
        return log(self.ci95[1] / self.ci95[0]) / 2

    def undecided(self, most: float) -> bool:
        """Whether `most` lies in the interval, and that because it is wide."""
        return self.ci95[0] <= most <= self.ci95[1] and self.half_width > WIDE


def measure(
    old_folder: Path, old: ArtifactRow, new_folder: Path, new: ArtifactRow, rounds: int
) -> Ratio:
    """Time both files in turn, under the profile that the new one (or else the old) was timed in.

    Takes some 2 s a round. Raises `PipelineError` where one cannot be timed on this machine, is not
    the file of its report any more, or where neither report has a profile.
    """
    timed = new.latency or old.latency
    if timed is None:
        raise ConfigError("p50 was measured in neither run: there is no profile to time them under")
    profile = profiles.read(timed.profile)
    profile.check(timed.profile)
    before, now = targets.of_row(old, old_folder), targets.of_row(new, new_folder)
    if before.images.shape != now.images.shape:
        raise ConfigError("the two take images of different sizes")
    found = turns.compare(before, now, profile, rounds)
    return Ratio(found.ratio, found.ratio_ci95, rounds, timed.profile)
