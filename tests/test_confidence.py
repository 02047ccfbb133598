"""Calibration of confidence: worked by hand, worked out independently, and simulated."""

import math

import numpy as np
import pytest

from benchmarks.stats import wilson
from pipeline import confidence


def told(sure):
    """Answers of two classes, as probabilities: the first class, that sure."""
    return np.stack([sure, 1 - np.asarray(sure)], axis=1)


def simulated(n, slope, seed):
    """Logits of two classes and labels: the true log-odds are `slope` times those claimed."""
    rng = np.random.default_rng(seed)
    odds = rng.gamma(2, 1.2, n)
    right = rng.random(n) < 1 / (1 + np.exp(-slope * odds))
    return np.stack([odds, np.zeros(n)], axis=1), np.where(right, 0, 1)


def test_a_worked_example():
    # 9/15 is the upper, closed end of the ninth bin; the last three lie between 13/15 and 14/15.
    found = confidence.assess(
        told([0.60, 0.64, 0.90, 0.92, 0.92]), np.array([0, 1, 0, 0, 1]), "probabilities"
    )
    assert found is not None
    assert found.n == 5 and found.mean == pytest.approx(0.796)
    assert found.over == pytest.approx(0.796 - 3 / 5)
    # |0.60 - 1| / 5 + |0.64 - 0| / 5 + 3 |2.74 / 3 - 2 / 3| / 5
    assert found.ece == pytest.approx((0.4 + 0.64 + 0.74) / 5)
    loss = -math.log(0.6 * 0.36 * 0.9 * 0.92 * 0.08) / 5
    assert found.nll == pytest.approx(loss)
    bins = [(each.low, each.high, each.n, each.confidence, each.top1) for each in found.bins]
    assert bins == [
        pytest.approx((8 / 15, 9 / 15, 1, 0.60, 1)),
        pytest.approx((9 / 15, 10 / 15, 1, 0.64, 0)),
        pytest.approx((13 / 15, 14 / 15, 3, 2.74 / 3, 2 / 3)),
    ]
    assert found.bins[2].top1_ci95 == wilson(2, 3)


def by_hand(logits, labels):
    """ECE, mean confidence, mean loss and images by bin, one image after the other."""
    sums = {}
    sure, loss = 0.0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        powers = [math.exp(value) for value in row]
        shares = [power / sum(powers) for power in powers]
        top = max(shares)
        n, gap = sums.get(math.ceil(15 * top), (0, 0.0))
        sums[math.ceil(15 * top)] = n + 1, gap + top - (shares.index(top) == label)
        sure += top / len(labels)
        loss -= math.log(shares[label]) / len(labels)
    ece = sum(abs(gap) for _, gap in sums.values()) / len(labels)
    return ece, sure, loss, [sums[at][0] for at in sorted(sums)]


def test_logits_against_an_independent_computation():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (2000, 7)).astype(np.float32)
    labels = np.where(rng.random(2000) < 0.6, logits.argmax(1), rng.integers(0, 7, 2000))
    found = confidence.assess(logits, labels)
    assert found is not None
    ece, sure, loss, counts = by_hand(logits, labels)
    assert (found.ece, found.mean, found.nll) == pytest.approx((ece, sure, loss), rel=1e-9)
    assert [each.n for each in found.bins] == counts and sum(counts) == 2000
    top1 = float((logits.argmax(1) == labels).mean())
    assert found.over == pytest.approx(sure - top1)
    assert sum(each.n * each.top1 for each in found.bins) == pytest.approx(2000 * top1)


def test_probabilities_mean_what_their_logits_do(monkeypatch):
    logits, labels = simulated(1000, 0.7, seed=1)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    whole = confidence.assess(logits, labels)
    given = confidence.assess(shares.astype(np.float32), labels, "probabilities")
    assert whole is not None and given is not None
    assert given.ece == pytest.approx(whole.ece, abs=1e-6)
    assert given.nll == pytest.approx(whole.nll, abs=1e-6)
    monkeypatch.setattr(confidence, "BLOCK", 7)
    assert confidence.assess(logits, labels) == whole


def test_a_probability_of_nothing_costs_no_infinite_loss():
    found = confidence.assess(told([1.0, 1.0]), np.array([0, 1]), "probabilities")
    assert found is not None
    assert found.nll == pytest.approx(-math.log(confidence.LEAST) / 2)


def test_a_sure_network_that_is_often_wrong_is_over_confident():
    for slope, sign in ((0.5, 1), (2.0, -1)):
        found = confidence.assess(*simulated(2000, slope, seed=2))
        assert found is not None
        assert min(sign * end for end in found.over_ci95) > 0
        assert found.ece_ci95[0] > 0 and found.ece > 2 * found.ece_by_chance
        assert found.ece_ci95[0] < found.ece < found.ece_ci95[1]


def gap_in_bins(slope):
    """ECE of infinitely many simulated images, which are weighted by their chances instead."""
    logits, _ = simulated(1_000_000, slope, seed=9)
    sure, right = (1 / (1 + np.exp(-each * logits[:, 0])) for each in (1, slope))
    gaps = np.bincount(confidence.bin_of(sure), sure - right, confidence.BINS)
    return float(np.abs(gaps).sum() / len(sure))


@pytest.mark.parametrize("slope", [1.0, 0.7])
def test_the_intervals_hold_what_they_promise(slope):
    ece = gap_in_bins(slope)
    assert (ece < 1e-12) == (slope == 1)
    found = [confidence.assess(*simulated(400, slope, seed)) for seed in range(40)]
    held = [each.ece_ci95[0] <= ece <= each.ece_ci95[1] for each in found if each]
    assert len(held) == 40 and sum(held) >= 34  # 38 are to be expected
    if slope == 1:
        shown = np.mean([each.ece for each in found if each])
        chance = np.mean([each.ece_by_chance for each in found if each])
        assert chance == pytest.approx(shown, rel=0.15)
        sides = [each.over_ci95[0] <= 0 <= each.over_ci95[1] for each in found if each]
        assert sum(sides) >= 34


def test_answers_that_are_no_numbers_are_not_assessed():
    logits, labels = simulated(20, 1.0, seed=0)
    for wrong in (np.nan, np.inf):
        broken = logits.copy()
        broken[3, 0] = wrong
        assert confidence.assess(broken, labels) is None


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="do not belong to 3 labels"):
        confidence.assess(np.zeros((2, 2)), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="do not belong to 0 labels"):
        confidence.assess(np.zeros((0, 2)), np.zeros(0, dtype=int))


def test_over_confidence_of_many_images_has_the_normal_interval():
    logits, labels = simulated(50_000, 0.8, seed=4)
    found = confidence.assess(logits, labels)
    assert found is not None
    apart = 1 / (1 + np.exp(-logits[:, 0])) - (labels == 0)
    half = 1.959964 * apart.std() / math.sqrt(50_000)
    assert found.over_ci95 == pytest.approx((apart.mean() - half, apart.mean() + half), abs=5e-5)


def test_a_faultless_network_is_not_called_under_confident():
    # 20 of 20 right may be 84 % in truth (Wilson), so that 95 % may even be too much
    found = confidence.assess(told(np.full(20, 0.95)), np.zeros(20, dtype=int), "probabilities")
    assert found is not None
    assert found.over_ci95 == pytest.approx((-0.05, 0.95 - wilson(20, 20)[0]))
    assert found.ece == pytest.approx(0.05) and found.ece_ci95[0] == 0
    wrong = confidence.assess(told(np.full(20, 0.95)), np.ones(20, dtype=int), "probabilities")
    assert wrong is not None and 0.7 < wrong.ece_ci95[0] < 0.9 < wrong.ece_ci95[1]


def test_one_image_is_enough():
    found = confidence.assess(np.array([[2.0, 0.0]]), np.array([0]))
    assert found is not None and found.n == 1
    assert found.ece == pytest.approx(1 - found.mean) and found.ece_ci95[0] == 0.0
