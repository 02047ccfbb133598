"""How long a student takes on named phones, estimated from its graph and published latencies.

How, and from what, stands in `phones`. The intervals hold for networks like those fitted on, and
for the devices named: for another device, `evaluate` shows, they promise little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.published import workload
from benchmarks.published.fitting import (
    Calibration,
    Group,
    Latencies,
    calibrate,
    estimate,
    families,
    published,
    workloads,
)
from benchmarks.published.workload import Workload
from benchmarks.stats import Interval

SIZES = ("parameters", "kernels")
"""What a network is compared by, beside the costs that its latency is made of."""


class Prediction(BaseModel):
    """An estimate for one device, never without its intervals."""

    model_config = ConfigDict(frozen=True)

    device: str
    runtime: str
    unit: str
    threads: int | None
    precision: str
    latency_ms: float
    interval80: Interval
    interval95: Interval
    nearest: str
    """The fitted network that is most alike."""
    distance: float
    """Typical factor (root mean square of logarithms) between its costs and `SIZES` and the
    nearest's."""
    outside: tuple[str, ...]
    """Those that lie beyond all fitted networks: there the intervals promise nothing."""
    models: int
    """Networks fitted on."""
    costs: tuple[str, ...]
    source: str
    """Of the rows, and what a latency is there: ncnn's is the least of several, not a median."""


class Score(BaseModel):
    """Errors of one group, or of a family's groups together (`device` "all").

    Errors are mean absolute ones as fractions of the measured latency, coverages fractions.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    runtime: str
    unit: str
    threads: int | None
    precision: str
    models: int
    rows: int
    error: float
    """Each network left out of everything: fit, choice of costs and intervals."""
    worst: float
    nearest: float
    """The latency of the network with the nearest number of multiply-adds."""
    scalar: float
    """Multiply-adds times one number, the others' median."""
    cover80: float
    cover95: float
    device_error: float | None
    """The device left out: the median of what its family's other devices would take."""
    device_cover80: float | None


class Evaluation(BaseModel):
    """Scores by group, and by family."""

    model_config = ConfigDict(frozen=True)

    groups: tuple[Score, ...]
    families: tuple[Score, ...]


def predict(work: Workload, precision: str) -> list[Prediction]:
    """Estimates for every device whose rows suffice, in the order of `phones.csv`.

    `precision` is fp32, fp16 or int8; none is answered for one without rows.
    """
    latencies, sources = published()
    found = []
    for family in families(latencies):
        if precision not in next(iter(family)).precision.split("/"):
            continue
        calibration = calibrate(family, workloads())
        for group, measured in family.items():
            value = estimate(work, measured, workloads(), calibration.costs)
            found.append(_tell(group, measured, work, value, calibration, sources[group]))
    return found


def of_file(path: Path, precision: str) -> tuple[Prediction, ...]:
    """Estimates for the .onnx file at `path`, each once.

    Of a float32 file also for runtimes that compute in float16: published rows say of those files
    no more than that. Raises `ExportError` as `workload.of`.
    """
    work = workload.of(path)
    wanted = ("fp32", "fp16") if precision == "fp32" else (precision,)
    return tuple(dict.fromkeys(found for each in wanted for found in predict(work, each)))


def _tell(
    group: Group,
    measured: Mapping[str, float],
    work: Workload,
    value: float,
    calibration: Calibration,
    source: str,
) -> Prediction:
    names = tuple(dict.fromkeys((*calibration.costs, *SIZES)))
    own = _sizes(work, names)
    others = {name: _sizes(workloads()[name], names) for name in measured}
    apart = {name: sqrt(float(np.mean((own - each) ** 2))) for name, each in others.items()}
    nearest = min(apart, key=lambda name: apart[name])
    lowest, highest = (pick(np.array(list(others.values())), axis=0) for pick in (np.min, np.max))
    beyond = (own < lowest) | (own > highest)
    return Prediction(
        **vars(group),
        latency_ms=value,
        interval80=(value * exp(-calibration.half80), value * exp(calibration.half80)),
        interval95=(value * exp(-calibration.half95), value * exp(calibration.half95)),
        nearest=nearest,
        distance=exp(apart[nearest]),
        outside=tuple(name for name, out in zip(names, beyond, strict=True) if out),
        models=len(measured),
        costs=calibration.costs,
        source=source,
    )


def _macs(work: Workload) -> int:
    return work.dense_macs + work.depthwise_macs


def _sizes(work: Workload, names: Sequence[str]) -> NDArray[np.float64]:
    return np.log([max(getattr(work, name), 1) for name in names])


def evaluate() -> Evaluation:
    """Leave each model out of everything, then each device, and compare with plain baselines."""
    groups, totals = list[Score](), list[Score]()
    for family in families(published()[0]):
        found = _held_out(family, workloads())
        groups += [_score(group, found[group]) for group in family]
        runtime, unit, precision = next(iter(family)).family
        everything = [each for group in family for each in found[group]]
        totals.append(_score(Group("all", runtime, unit, None, precision), everything))
    return Evaluation(groups=tuple(groups), families=tuple(totals))


@dataclass(frozen=True)
class _Trial:
    """One row predicted without its model, without its device and by the baselines."""

    model: str
    measured: float
    predicted: float
    nearest: float
    scalar: float
    calibration: Calibration
    elsewhere: float | None
    half_elsewhere: float


def _held_out(family: Latencies, works: Mapping[str, Workload]) -> dict[Group, list[_Trial]]:
    found = defaultdict[Group, list[_Trial]](list)
    whole = calibrate(family, works)
    for model in sorted({name for measured in family.values() for name in measured}):
        rest = {
            group: {name: ms for name, ms in measured.items() if name != model}
            for group, measured in family.items()
        }
        calibration = calibrate(rest, works)
        for group, measured in family.items():
            if model not in measured:
                continue
            nearest, scalar = _baselines(works[model], rest[group], works)
            trial = _Trial(
                model=model,
                measured=measured[model],
                predicted=estimate(works[model], rest[group], works, calibration.costs),
                nearest=nearest,
                scalar=scalar,
                calibration=calibration,
                elsewhere=_elsewhere(works[model], group, family, works, whole.costs),
                half_elsewhere=whole.half80,
            )
            found[group].append(trial)
    return found


def _baselines(
    work: Workload, measured: Mapping[str, float], works: Mapping[str, Workload]
) -> tuple[float, float]:
    own = _macs(work)
    near = min(measured, key=lambda name: abs(log(_macs(works[name]) / own)))
    speeds = [ms / _macs(works[name]) for name, ms in measured.items()]
    return measured[near], float(np.median(speeds)) * own


def _elsewhere(
    work: Workload,
    group: Group,
    family: Latencies,
    works: Mapping[str, Workload],
    costs: Sequence[str],
) -> float | None:
    """What other devices would take, with as many threads if there are such; the middle one."""
    others = [each for each in family if each.device != group.device]
    alike = [each for each in others if each.threads == group.threads] or others
    values = [estimate(work, family[each], works, costs) for each in alike]
    return float(np.median(values)) if values else None


def _score(group: Group, trials: Sequence[_Trial]) -> Score:
    def error(pairs: Iterable[tuple[float, float]]) -> float:
        return float(np.mean([abs(value / truth - 1) for value, truth in pairs]))

    logs = [abs(log(t.measured / t.predicted)) for t in trials]
    foreign = [(t.elsewhere, t) for t in trials if t.elsewhere is not None]
    inside = [abs(log(t.measured / value)) <= t.half_elsewhere for value, t in foreign]
    return Score(
        **vars(group),
        models=len({t.model for t in trials}),
        rows=len(trials),
        error=error((t.predicted, t.measured) for t in trials),
        worst=max(abs(t.predicted / t.measured - 1) for t in trials),
        nearest=error((t.nearest, t.measured) for t in trials),
        scalar=error((t.scalar, t.measured) for t in trials),
        cover80=float(
            np.mean([x <= t.calibration.half80 for x, t in zip(logs, trials, strict=True)])
        ),
        cover95=float(
            np.mean([x <= t.calibration.half95 for x, t in zip(logs, trials, strict=True)])
        ),
        device_error=error((value, t.measured) for value, t in foreign) if foreign else None,
        device_cover80=float(np.mean(inside)) if inside else None,
    )
