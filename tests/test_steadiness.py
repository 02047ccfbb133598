"""How well a median is known: against distributions whose answer is known."""

import numpy as np
import pytest
from scipy.stats import t

from benchmarks import steadiness
from benchmarks.steadiness import BLOCKS, Conditions, half_width


def test_the_quantile_is_students():
    assert pytest.approx(t.ppf(0.975, BLOCKS - 1), abs=1e-4) == steadiness.STUDENT


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


def test_a_watch_reads_this_machine():
    found = steadiness.Watch().conditions()
    assert found.stolen is None or 0 <= found.stolen <= 1
    assert found.preempted is None or found.preempted >= 0
