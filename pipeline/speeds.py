"""Latencies that compare the files of one target, from the best evidence there is: a phone's own
figures, then predictions for one, then this host.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.stats import Interval
from pipeline import on_device
from pipeline.comparing import comparable
from pipeline.records import Platform
from pipeline.summary import ArtifactRow, Report
from pipeline.wording import number, within


class Speeds(NamedTuple):
    """Latencies that compare files."""

    where: str
    ms: Mapping[int, tuple[float, Interval]]
    """p50 and what it is certain to lie in, by `id` of the row: titles may be given twice."""

    def of(self, row: ArtifactRow) -> tuple[float, Interval] | None:
        """The latency of that file; None where it is not known."""
        return self.ms.get(id(row))

    def told(self, row: ArtifactRow) -> str:
        """As "0.025 (0.024–0.026) ms on this host"; a row that `of` knows."""
        value, (low, high) = self.ms[id(row)]
        ends = (low, high) if number(low) != number(high) else None
        return f"{within(value, ends)} ms {self.where}"


def best_speeds(
    report: Report, platform: Platform, pool: Sequence[ArtifactRow], rows: Sequence[ArtifactRow]
) -> Speeds | None:
    """The best evidence that has at least two of `pool`, or its only one; None without any.

    It is told of all `rows`, so that what is not in the `pool` can be set beside it.
    """
    known = {id(row) for row in pool}
    found = [
        *_phone_speeds(report, platform, rows),
        *(each for each in _predicted(platform, rows) if known <= each.ms.keys()),
        _here(platform, rows),
    ]
    enough = min(2, len(pool))
    return next((each for each in found if len(known & each.ms.keys()) >= enough), None)


def _phone_speeds(report: Report, platform: Platform, rows: Sequence[ArtifactRow]) -> list[Speeds]:
    """By phone, those that measured most of `rows` first; a file's quickest way that answers as
    here counts."""
    found = list[Speeds]()
    for phone in on_device.phones_of(report, platform):
        times: dict[int, tuple[float, Interval]] = {}
        for file in phone.files if phone.left is None else ():
            if file.p50_ms and file.as_here:
                timed = (file.p50_ms, file.p50_ci95 or (file.p50_ms, file.p50_ms))
                for row in rows:
                    if row.sha256 == file.sha256:
                        times[id(row)] = min(times.get(id(row), timed), timed)
        found.append(Speeds(f"on {on_device.phone_title(phone)}", times))
    return sorted(found, key=lambda each: -len(each.ms))


def _predicted(platform: Platform, rows: Sequence[ArtifactRow]) -> list[Speeds]:
    """Estimates for a device's CPU, of files within what was fitted on."""
    found: dict[str, dict[int, tuple[float, Interval]]] = {}
    for row in rows if platform == "android" else ():
        for each in row.predicted:
            if (each.runtime, each.unit) == ("onnxruntime", "CPU") and not each.outside:
                where = f"predicted for {on_device.device(each.device)}"
                found.setdefault(where, {})[id(row)] = (each.latency_ms, each.interval80)
    return [Speeds(where, ms) for where, ms in found.items()]


def _here(platform: Platform, rows: Sequence[ArtifactRow]) -> Speeds:
    """This host's latencies, but for noisy ones; of an NVIDIA file only on such a GPU."""
    timed = [
        row
        for row in rows
        if row.latency
        and not row.latency.noisy
        and (platform != "nvidia" or (row.evaluated_with or "").startswith("tensorrt"))
    ]
    ms = {
        id(row): (taken.p50_ms, taken.p50_ci95 or (taken.p50_ms, taken.p50_ms))
        for row in comparable(timed)
        if (taken := row.latency)
    }
    return Speeds("natively " * (platform == "web") + "on this host", ms)
