"""How well a median is known: against distributions whose answer is known."""

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import t

from benchmarks import steadiness
from benchmarks.steadiness import BLOCKS, Conditions, half_width, half_width_of_few


def test_the_quantile_is_students():
    assert pytest.approx(t.ppf(0.975, BLOCKS - 1), abs=1e-4) == steadiness.STUDENT
    assert pytest.approx(t.ppf(0.975, BLOCKS / 2 - 1), abs=1e-4) == steadiness.STUDENT_PAIRS


@pytest.mark.parametrize("spread", [0.01, 0.2])
def test_the_interval_covers_the_median_of_independent_samples(spread):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        samples = rng.lognormal(np.log(1e6), spread, 800)
        half = half_width(samples.tolist()) * np.median(samples)
        covered += abs(np.median(samples) - 1e6) <= half
    assert 0.91 <= covered / 400 <= 0.985


def test_samples_that_are_alike_in_a_row_are_not_taken_for_independent():
    """A host that changes its speed twenty times: 1,000 samples say as much as twenty."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        level = np.repeat(rng.normal(1e6, 5e4, 64), 50)
        samples = level + rng.normal(0, 1e3, len(level))
        half = half_width(samples.tolist()) * np.median(samples)
        covered += abs(np.median(samples) - 1e6) <= half
        assert half > 5e3  # as if independent it would be a tenth of that
    assert covered / 300 > 0.88


def measured(memory, rng):
    """Whether 1 is in the interval that a measurement of 1 ms samples ends with.

    The level wanders by 3 % and forgets half of that in 0.7 `memory` seconds; as in the worker
    there are looks from 2 s to 10 s, and the first that finds ±2 % or less is the end.
    """
    samples = 0.02 * rng.standard_normal(10_000)
    if memory:
        stays = np.exp(-1e-3 / memory)
        steps = rng.standard_normal(10_000) * np.sqrt(1 - stays**2)
        steps[0] = rng.standard_normal()
        samples = samples + 0.03 * np.asarray(lfilter([1], [1, -stays], steps))
    samples = np.exp(samples)
    for n in range(2_000, 10_001, 250):
        half = half_width(samples[:n])
        if half <= 0.02 or n == 10_000:
            middle = np.median(samples[:n])
            return abs(middle - 1) <= half * middle
    raise AssertionError


@pytest.mark.parametrize(
    ("memory", "least"),
    # Blocks whose likeness does not count: 0.94, 0.83, 0.60, 0.31.
    [(0, 0.93), (0.1, 0.88), (0.3, 0.8), (1.0, 0.65)],
)
def test_a_level_that_wanders_is_covered_more_often_than_by_blocks_alone(memory, least):
    rng = np.random.default_rng(5)
    covered = np.mean([measured(memory, rng) for _ in range(300)])
    assert least <= covered <= 0.985


def test_few_independent_samples_have_an_interval_by_their_order():
    # At most 5 of 20 lie below with a chance of 21,700 / 2**20 = 0.0207, 1 of 10 with 11 / 1024.
    assert half_width_of_few([*range(1, 21)]) == pytest.approx(4.5 / 10.5)
    assert half_width_of_few([*range(10, 0, -1)]) == pytest.approx(3.5 / 5.5)
    assert half_width_of_few([1, 2, 3, 4, 5]) == half_width_of_few([]) == float("inf")
    assert half_width_of_few([1, 2, 3, 4, 5, 6]) == pytest.approx(2.5 / 3.5)
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(1000):
        samples = rng.lognormal(0, 0.3, 20)
        middle = np.median(samples)
        covered += abs(middle - 1) <= half_width_of_few(samples.tolist()) * middle
    assert covered / 1000 >= 0.95


def test_more_samples_make_it_narrower_and_too_few_say_nothing():
    rng = np.random.default_rng(2)
    samples = rng.lognormal(0, 0.1, 16_000).tolist()
    assert half_width(samples) < 0.6 * half_width(samples[:1600])
    assert half_width(samples[: BLOCKS - 1]) == float("inf")
    assert half_width([5] * BLOCKS) == 0


def test_doubts_name_what_was_seen(monkeypatch):
    monkeypatch.setattr(steadiness, "cores", lambda: 2)
    quiet = Conditions(load=1.1, stolen=0.0, preempted=0, mhz=(2000, 2010))
    assert quiet.doubts == []
    assert Conditions(load=None, stolen=None, preempted=None, mhz=None).doubts == []
    busy = Conditions(load=3.5, stolen=0.25, preempted=1234, mhz=(800, 3000))
    assert busy.doubts == [
        "load average 3.5 on 2 cores",
        "25% of CPU time stolen by the hypervisor",
        "1,234 times preempted",
        "clock between 800 and 3000 MHz",
    ]


def test_conditions_of_several_processes_are_the_worst_of_each():
    first = Conditions(load=1.0, stolen=0.1, preempted=3, mhz=(800, 2000))
    second = Conditions(load=2.0, stolen=0.0, preempted=4, mhz=(900, 3000))
    silent = Conditions(load=None, stolen=None, preempted=None, mhz=None)
    assert Conditions.of_all([first, silent, second]) == Conditions(
        load=2.0, stolen=0.1, preempted=7, mhz=(800, 3000)
    )
    assert Conditions.of_all([silent, silent]) == silent


def test_a_watch_reads_this_machine():
    found = steadiness.Watch().conditions()
    assert found.stolen is None or 0 <= found.stolen <= 1
    assert found.preempted is None or found.preempted >= 0
