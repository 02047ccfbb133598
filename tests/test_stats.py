"""The statistics against published values and against values worked out by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, ks_2samp, ttest_1samp

from benchmarks.stats import (
    RESAMPLES,
    holm,
    mean_interval,
    paired_bootstrap,
    paired_difference,
    percentiles,
    ratio,
    side,
    unpaired_interval,
    wilson,
)


def paired(both, only_a, only_b, neither):
    """Per-image correctness of A and B from the four counts of a paired table."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Stat. Med. 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_published_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_all_correct_ends_at_one():
    low, high = wilson(1000, 1000)
    assert high == pytest.approx(1.0)
    z2 = 1.959963984540054**2
    assert low == pytest.approx(1000 / (1000 + z2))  # closed form for p = 1


def test_wilson_takes_numpy_counts():
    assert wilson(np.count_nonzero(np.ones(9)), np.int64(10)) == pytest.approx(wilson(9, 10))


def test_wilson_refuses_no_images():
    with pytest.raises(ValueError, match="no images"):
        wilson(0, 0)


@pytest.mark.parametrize(
    ("table", "difference", "low", "high", "p"),
    [
        # Cavo et al. 2012 as worked out in Fagerland, Lydersen & Laake, Statistical Analysis of
        # Contingency Tables (2017), chapter 8
        ((59, 16, 6, 80), -0.0621, -0.1195, -0.0032, 0.052479),
        # Bentur et al. 2009, same chapter; p = 2 (1 + 8) / 2^8
        ((1, 7, 1, 12), -6 / 21, -0.508, -0.013, 18 / 256),
    ],
)
def test_paired_difference_agrees_with_published_values(table, difference, low, high, p):
    result = paired_difference(*paired(*table))
    assert result.difference == pytest.approx(difference, abs=5e-5)
    assert result.ci95 == pytest.approx((low, high), abs=5e-4)
    assert result.mcnemar_p == pytest.approx(p, abs=5e-7)
    assert result.n == sum(table)


def test_agrestis_approval_ratings():
    # Agresti, Categorical Data Analysis (1990), p. 350: 1600 people asked twice
    found = paired_difference(*paired(794, 150, 86, 570))
    assert (found.only_a, found.only_b, found.n) == (150, 86, 1600)
    assert found.difference == pytest.approx(-0.04)
    # Wald's interval there is -0.04 ± 1.96 * 0.0095; one more of each discordant kind moves it by
    # less than a hundredth of a point a person
    assert found.ci95 == pytest.approx((-0.0587, -0.0213), abs=5e-4)
    assert found.mcnemar_p == pytest.approx(binomtest(86, 236).pvalue)
    z2 = 64**2 / 236  # McNemar's statistic without correction, 17.36: p = 3.1e-5
    assert z2 == pytest.approx(17.36, abs=5e-3) and 2e-5 < found.mcnemar_p < 6e-5


def test_exact_mcnemar_agrees_with_r():
    # Approval of a cabinet as S. Aoki (Gunma University) works it out: binom.test of 35 and 28
    assert paired_difference(*paired(48, 28, 35, 53)).mcnemar_p == pytest.approx(0.45, abs=5e-4)


def test_paired_difference_changes_sign_with_the_order():
    a, b = paired(500, 10, 30, 60)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.difference == pytest.approx(20 / 600)
    assert back.difference == pytest.approx(-forth.difference)
    assert back.ci95 == pytest.approx((-forth.ci95[1], -forth.ci95[0]))
    assert back.mcnemar_p == pytest.approx(forth.mcnemar_p)


def test_no_discordant_pairs_still_leave_an_interval():
    a, b = paired(900, 0, 0, 100)
    result = paired_difference(a, b)
    assert result.difference == 0
    assert result.mcnemar_p == 1.0
    half = 1.959963984540054 * np.sqrt(2) / 1002  # by hand: sqrt((2/1002) / 1002)
    assert result.ci95 == pytest.approx((-half, half))


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(3, 9, 40), (150, 86, 1600)])
def test_the_paired_bootstrap_draws_as_naive_resampling_does(only_a, only_b, n):
    a, b = paired(n - only_a - only_b, only_a, only_b, 0)
    moved = b.astype(int) - a.astype(int)
    naive = moved[np.random.default_rng(11).integers(0, n, (RESAMPLES, n))].sum(axis=1)
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    drawn = np.random.default_rng(0).multinomial(n, shares, RESAMPLES)
    assert np.asarray(ks_2samp(naive, drawn[:, 1] - drawn[:, 0]))[1] > 0.01
    how = {"n_resamples": RESAMPLES, "method": "percentile", "random_state": 11}
    expected = bootstrap((moved,), np.mean, **how)
    assert paired_bootstrap(only_a, only_b, n) == pytest.approx(
        tuple(expected.confidence_interval), abs=1.6 / n
    )


def test_the_paired_bootstrap_is_the_same_every_time_and_turns_with_the_order():
    found = paired_bootstrap(150, 86, 1600)
    assert found is not None
    low, high = found
    # so many that two draws would hardly agree to the image
    assert paired_bootstrap(15_000, 8_600, 160_000) == paired_bootstrap(15_000, 8_600, 160_000)
    assert paired_bootstrap(86, 150, 1600) == pytest.approx((-high, -low), abs=1e-3)
    # of so many images it is nearly the closed form
    assert (low, high) == pytest.approx(
        paired_difference(*paired(794, 150, 86, 570)).ci95, abs=1.5e-3
    )


def test_a_bootstrap_without_disagreement_claims_nothing():
    assert paired_bootstrap(0, 0, 10_000) is None
    assert paired_bootstrap(1, 0, 1) is None  # one image: it can only draw that one again
    for wrong in ((0, 0, 0), (-1, 2, 5), (3, 3, 5)):
        with pytest.raises(ValueError, match="cannot be"):
            paired_bootstrap(*wrong)


def test_holm_agrees_with_a_published_example():
    # CRAN package HDLSSkST 2.1.0, example of Holm: at 0.05 the third and the last are rejected
    p = [0.50, 0.01, 0.001, 0.69, 0.02, 0.05, 0.0025]
    adjusted = holm(p)
    assert [each < 0.05 for each in adjusted] == [False, False, True, False, False, False, True]
    # by hand: 7, 6, ... times the sorted ones, none below one before it
    assert adjusted == pytest.approx([1, 0.05, 0.007, 1, 0.08, 0.15, 0.015])


def test_holm_of_none_of_one_and_of_no_probability():
    assert holm([]) == [] and holm([0.03]) == [0.03]
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])
    with pytest.raises(ValueError, match="probabilities"):
        holm([0.1, float("nan")])


def test_an_interval_is_sure_of_a_sign_only_without_zero():
    assert [side(each) for each in ((0.1, 0.2), (-0.2, -0.1))] == [1, -1]
    assert [side(each) for each in ((-0.1, 0.2), (0.0, 0.2), (-0.2, 0.0), (0.0, 0.0))] == [0] * 4


def test_paired_is_narrower_than_unpaired_when_both_agree_mostly():
    a, b = paired(880, 10, 30, 80)
    low, high = paired_difference(a, b).ci95
    loose = unpaired_interval(a.mean(), a.size, b.mean(), b.size)
    assert high - low < 0.6 * (loose[1] - loose[0])


def test_paired_difference_holds_its_level_on_simulated_models():
    rng, covered = np.random.default_rng(7), 0
    for _ in range(400):
        hard = rng.random(500)  # shared difficulty makes the two models agree
        a, b = hard + 0.1 * rng.random(500) < 0.85, hard + 0.1 * rng.random(500) < 0.87
        low, high = paired_difference(a, b).ci95
        covered += low <= 0.02 <= high
    assert 0.92 <= covered / 400 <= 0.985


def test_paired_difference_refuses_other_images():
    with pytest.raises(ValueError, match="not the same images"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError, match="no images"):
        paired_difference([], [])


@pytest.mark.parametrize(
    ("b", "a", "low", "high"),
    [
        # Newcombe 1998, Stat. Med. 17:873, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_unpaired_interval_agrees_with_published_values(b, a, low, high):
    interval = unpaired_interval(a[0] / a[1], a[1], b[0] / b[1], b[1])
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_mean_interval_agrees_with_published_values():
    # Student 1908: hours of sleep gained; limits as R 4's t.test of its data set `sleep` gives them
    slept = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
    mean, interval = mean_interval(slept)
    assert mean == pytest.approx(1.58)
    assert interval == pytest.approx((0.7001142, 2.4598858), abs=5e-8)


def test_mean_interval_by_hand():
    mean, (low, high) = mean_interval([0.01, 0.02, 0.03])
    half = 4.302652729911275 * 0.01 / np.sqrt(3)  # t of 2 degrees of freedom from a table
    assert (mean, low, high) == pytest.approx((0.02, 0.02 - half, 0.02 + half))
    assert mean_interval([0.5, 0.5]) == (0.5, (0.5, 0.5))


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_interval_is_that_of_the_t_test(n):
    values = np.random.default_rng(n).normal(0.01, 0.004, n)
    mean, interval = mean_interval(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(values.sum() / n)
    assert interval == pytest.approx((expected.low, expected.high))


def test_mean_interval_of_three_holds_its_level():
    rng = np.random.default_rng(3)
    found = [mean_interval(rng.normal(0.012, 0.003, 3))[1] for _ in range(2000)]
    covered = np.mean([low <= 0.012 <= high for low, high in found])
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("values", [[], [0.01], [[0.01, 0.02]]])
def test_mean_interval_takes_two_values(values):
    with pytest.raises(ValueError, match="at least two values"):
        mean_interval(values)


@pytest.mark.parametrize("n", [5, 15])
def test_the_ratios_interval_holds_its_level_for_few_rounds(n):
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(600):
        a = rng.lognormal(0, 0.05, n)
        low, high = ratio(a, 1.2 * a * rng.lognormal(0, 0.03, n))[1]
        covered += low <= 1.2 <= high
    assert 0.92 <= covered / 600 <= 0.98


def test_the_ratios_interval_of_normal_rounds_is_nearly_students():
    logs = np.random.default_rng(4).normal(0.1, 0.02, 15)
    mean, (low, high) = mean_interval(logs)
    found, interval = ratio(np.ones(15), np.exp(logs))
    assert found == pytest.approx(np.exp(mean))
    assert np.log(interval) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_percentiles_are_milliseconds():
    samples = np.arange(1, 102, dtype=np.int64) * 1_000_000  # 1..101 ms
    assert percentiles(samples) == pytest.approx((51.0, 91.0, 100.0))
    assert percentiles([2_500_000]) == pytest.approx((2.5, 2.5, 2.5))


def test_percentiles_keep_the_tail():
    samples = np.full(100, 1_000_000)
    samples[-2:] = 50_000_000
    assert percentiles(samples)[2] == pytest.approx(50.0)


def test_percentiles_of_nothing_are_an_error():
    with pytest.raises(ValueError, match="no samples"):
        percentiles([])
