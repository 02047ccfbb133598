"""Latencies that compare the files of one target, from the best evidence there is: a phone's own
figures, then predictions for one, then this host.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.stats import Interval
from pipeline import on_device
from pipeline.comparing import comparable
from pipeline.phones import Phone
from pipeline.records import Platform
from pipeline.summary import ArtifactRow, Report
from pipeline.wording import number


class Speeds(NamedTuple):
    """Latencies that compare files, by their titles."""

    where: str
    ms: Mapping[str, tuple[float, Interval]]
    """p50 and what it is certain to lie in."""

    def told(self, row: ArtifactRow) -> str:
        """As "0.025 (0.024–0.026) ms on this host"."""
        value, (low, high) = self.ms[row.title]
        low, high = number(low), number(high)
        ends = f" ({low}–{high})" if low != high else ""
        return f"{number(value)}{ends} ms {self.where}"


def on_phones(report: Report, platform: Platform) -> list[Phone]:
    """The phones that measured in the way that the platform runs files, the latest first."""
    via = {"android": "adb", "web": "browser"}.get(platform)
    return [phone for phone in reversed(report.phones) if phone.via == via]


def best_speeds(
    report: Report, platform: Platform, pool: Sequence[ArtifactRow], rows: Sequence[ArtifactRow]
) -> Speeds | None:
    """The best evidence that has at least two of `pool`, or its only one; None without any.

    It is told of all `rows`, so that what is not in the `pool` can be set beside it.
    """
    titles = {row.title for row in pool}
    found = [
        *_phone_speeds(report, platform, rows),
        *(each for each in _predicted(platform, rows) if titles <= each.ms.keys()),
        _here(platform, rows),
    ]
    enough = min(2, len(pool))
    return next((each for each in found if len(titles & each.ms.keys()) >= enough), None)


def _phone_speeds(report: Report, platform: Platform, rows: Sequence[ArtifactRow]) -> list[Speeds]:
    """By phone, those that measured most of `rows` first; a file's quickest way that answers as
    here counts."""
    titles = {row.sha256: row.title for row in rows if row.sha256}
    found = list[Speeds]()
    for phone in on_phones(report, platform):
        times: dict[str, tuple[float, Interval]] = {}
        for file in phone.files if phone.left is None else ():
            if file.p50_ms and file.sha256 in titles and not file.golden_fault:
                timed = (file.p50_ms, file.p50_ci95 or (file.p50_ms, file.p50_ms))
                title = titles[file.sha256]
                times[title] = min(times.get(title, timed), timed)
        found.append(Speeds(f"on {on_device.phone_title(phone)}", times))
    return sorted(found, key=lambda each: -len(each.ms))


def _predicted(platform: Platform, rows: Sequence[ArtifactRow]) -> list[Speeds]:
    """Estimates for a device's CPU, of files within what was fitted on."""
    found: dict[str, dict[str, tuple[float, Interval]]] = {}
    for row in rows if platform == "android" else ():
        for each in row.predicted:
            if (each.runtime, each.unit) == ("onnxruntime", "CPU") and not each.outside:
                where = f"predicted for {on_device.device(each.device)}"
                found.setdefault(where, {})[row.title] = (each.latency_ms, each.interval80)
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
    ms = {}
    for row in comparable(timed):
        if taken := row.latency:
            ms[row.title] = (taken.p50_ms, taken.p50_ci95 or (taken.p50_ms, taken.p50_ms))
    return Speeds("natively " * (platform == "web") + "on this host", ms)
