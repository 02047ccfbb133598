"""Published latencies on phones, and what a network's work costs there by them.

`phones.csv` holds the rows with their sources: small image classifiers, batch 1. Left out: ncnn's
servers and clouds, which are no phones; its int8 rows, Core ML's and LiteRT's CPU rows, of five
networks at most; Qualcomm's cars and cameras. Two boards with a phone's cores stay. For each
device, runtime, unit, threads and precision the latency is a sum of costs with prices that are not
negative (Lawson & Hanson 1974, chapter 23), fitted to least squared relative error.

Errors are log ratios of measured and predicted latency with each network left out in turn, pooled
over a runtime's devices; 80 % intervals are conformal, and 95 % ones those widened (`halves`). The
rows of a network are not independent, so every network has the same weight (Lee, Barber & Willett
2023, arXiv:2306.06342).
"""

from __future__ import annotations

import csv
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student_t

from benchmarks.published.workload import Workload

PHONES = Path(__file__).with_name("phones.csv")
TABLE = Path(__file__).with_name("networks.csv")
"""Counts of the networks; `networks` writes it."""
MENUS = {
    "CPU": (
        ("dense_macs", "depthwise_macs", "moved_elements", "parameters"),
        ("dense_macs", "depthwise_macs", "moved_elements", "peak_elements"),
    ),
    "NPU": (("dense_macs", "depthwise_macs", "kernels"),),
}
"""What may have a price, by unit; a runtime's devices share the choice, the one of least left-out
error. Kernels have one on NPUs, 3 to 7 microseconds each; with one on ONNX Runtime's CPU, the
smallest network, left out, was predicted 160 % too slow. These sets were found on the same rows:
the errors of `evaluate` do not pay for that."""
LEAST_MODELS = 9
"""To say anything: two networks for each price, and one to leave out."""
SMALLEST_MS = 1e-6
"""A prediction of nothing at all would have no logarithm."""


@dataclass(frozen=True)
class Group:
    """What was measured in one way on one device."""

    device: str
    runtime: str
    unit: str
    threads: int | None
    """None: the source does not say."""
    precision: str
    """As the source has it; ``fp32/fp16`` is whichever ncnn takes there."""

    @property
    def family(self) -> tuple[str, str, str]:
        """Those whose left-out errors are pooled."""
        return self.runtime, self.unit, self.precision


Latencies = Mapping[Group, Mapping[str, float]]
"""Milliseconds by group and model."""


@dataclass(frozen=True)
class Calibration:
    """What a family's left-out errors say."""

    costs: tuple[str, ...]
    half80: float
    """Half of the 80 % interval of log(measured / predicted)."""
    half95: float


@functools.cache
def workloads() -> Mapping[str, Workload]:
    """Counts of the published networks, by their names in `phones.csv`."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {
            row["model"]: Workload.model_validate({k: row[k] for k in Workload.model_fields})
            for row in csv.DictReader(file)
        }


@functools.cache
def published() -> tuple[dict[Group, dict[str, float]], dict[Group, str]]:
    """The rows of `phones.csv` by group, and each group's source with what is said of its rows."""
    latencies, sources = defaultdict[Group, dict[str, float]](dict), dict[Group, str]()
    with PHONES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            threads = int(row["threads"]) if row["threads"] else None
            words = (row[key] for key in ("device", "runtime", "unit"))
            group = Group(*words, threads=threads, precision=row["precision"])
            latencies[group][row["model"]] = float(row["latency_ms"])
            sources[group] = f"{row['source']}: {row['note']}"
    return dict(latencies), sources


def families(latencies: Latencies) -> list[dict[Group, Mapping[str, float]]]:
    """The groups family by family, without those of too few models."""
    found = defaultdict[tuple[str, ...], dict[Group, Mapping[str, float]]](dict)
    for group, measured in latencies.items():
        if len(measured) >= LEAST_MODELS:
            found[group.family][group] = measured
    return list(found.values())


def estimate(
    work: Workload,
    measured: Mapping[str, float],
    works: Mapping[str, Workload],
    costs: Sequence[str],
) -> float:
    """Milliseconds of `work` by prices fitted to `measured`, in relative error."""
    amounts = np.array([_amounts(works[name], costs) for name in measured])
    relative = amounts / np.array(list(measured.values()))[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0
    prices = nnls(relative / scale, np.ones(len(measured)))[0] / scale
    return max(float(np.dot(_amounts(work, costs), prices)), SMALLEST_MS)


def _amounts(work: Workload, costs: Sequence[str]) -> list[float]:
    return [float(getattr(work, name)) for name in costs]


def calibrate(family: Latencies, works: Mapping[str, Workload]) -> Calibration:
    """Choose the costs and the widths of the intervals by leaving each model out in turn.

    The same errors choose both; `evaluate` leaves a model out of that, too.
    """
    menu = MENUS[next(iter(family)).unit]
    tried = {costs: _left_out(family, works, costs) for costs in menu}
    costs = min(tried, key=lambda each: _mean_size(tried[each]))
    return Calibration(costs, *halves(tried[costs].values()))


def _mean_size(errors: Mapping[str, Sequence[float]]) -> float:
    return float(np.mean([abs(error) for each in errors.values() for error in each]))


def _left_out(
    family: Latencies, works: Mapping[str, Workload], costs: Sequence[str]
) -> dict[str, list[float]]:
    """log(measured / predicted) by model, in every group."""
    found = defaultdict[str, list[float]](list)
    for measured in family.values():
        for name, value in measured.items():
            others = {other: ms for other, ms in measured.items() if other != name}
            found[name].append(log(value / estimate(works[name], others, works, costs)))
    return found


def halves(errors: Iterable[Sequence[float]]) -> tuple[float, float]:
    """Half widths of the 80 and the 95 % interval, given each model's errors.

    A new model has the chance 1 / (n + 1) of being worse than all n: with fewer than 19, no
    quantile of theirs holds 95 %, and the half of 80 % is widened as Student's t is.
    """
    clusters = [[abs(error) for error in each] for each in errors]
    n = len(clusters)
    half80, half95 = (_quantile(clusters, level) for level in (0.80, 0.95))
    if half95 == inf:
        half95 = half80 * float(student_t.ppf(0.975, n - 1) / student_t.ppf(0.9, n - 1))
    return half80, half95


def _quantile(clusters: Sequence[Sequence[float]], level: float) -> float:
    weighed = sorted((e, 1 / len(each) / (len(clusters) + 1)) for each in clusters for e in each)
    total = 0.0
    for error, weight in weighed:
        total += weight
        if total >= level - 1e-9:
            return error
    return inf
