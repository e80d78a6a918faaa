"""Statistics against scipy, against brute force, and by simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lra.metrics import is_above
from reports.statistics import (
    average_ranks,
    compare_paired,
    detectable_difference,
    exact_mean,
    holm,
    mcnemar,
    mean_with_interval,
    rank_correlation,
)

numbers = st.lists(st.floats(0, 100), min_size=2, max_size=12)


@given(numbers)
@settings(max_examples=60, deadline=None)
def test_the_interval_is_students(values):
    found = mean_with_interval(values)
    scale = np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    if scale > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale)
        assert (found.low, found.high) == pytest.approx((low, high))


def test_one_value_has_no_interval_and_none_has_no_mean():
    found = mean_with_interval([40.0])
    assert found.mean == 40.0
    assert all(map(math.isnan, (found.deviation, found.low, found.high)))
    with pytest.raises(ValueError, match="no values"):
        mean_with_interval([])


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_as_often_as_it_says(seeds):
    draws = np.random.default_rng(seeds).normal(70.0, 2.0, size=(1500, seeds))
    intervals = [mean_with_interval(row.tolist()) for row in draws]
    covered = np.mean([each.low <= 70.0 <= each.high for each in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1500)
    narrower = np.mean([abs(each.mean - 70.0) < 1.96 * each.deviation / math.sqrt(seeds) for each in intervals])
    assert narrower < 0.91  # what the normal quantile would give: this test can tell them apart


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_pairs_are_compared_as_scipy_does(pairs):
    first, second = zip(*pairs, strict=True)
    found = compare_paired(first, second)
    differences = np.subtract(first, second)
    if np.std(differences) > 1e-6:
        assert found.p_value == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-9)
    assert found.difference.mean == pytest.approx(differences.mean(), abs=1e-9)


def test_equal_pairs_show_nothing_and_constant_differences_everything():
    rounding = ([85.62667975, 85.62667975000001, 85.62667975], [0.0, 0.0, 0.0])
    for first, second in (([1.0, 2.0], [1.0, 2.0]), ([2.0, 3.0], [1.0, 2.0]), ([1.0], [2.0]), rounding):
        found = compare_paired(first, second)
        assert math.isnan(found.p_value)
        assert math.isnan(found.detectable)
    with pytest.raises(ValueError, match="do not pair"):
        compare_paired([1.0], [1.0, 2.0])


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
def test_the_detectable_difference_is_found_in_four_of_five_cases(pairs):
    effect = detectable_difference(1.5, pairs)
    draws = np.random.default_rng(pairs).normal(effect, 1.5, size=(6000, pairs))
    found = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05)
    assert abs(found - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 6000)


def test_the_detectable_difference_agrees_with_the_known_sample_sizes():
    for pairs, effect in ((5, 2.0), (6, 1.5), (10, 1.0), (34, 0.5)):  # 80 % power needs this many pairs
        assert detectable_difference(1.0, pairs) <= effect < detectable_difference(1.0, pairs - 1)


@given(st.integers(0, 2**12 - 1), st.integers(0, 2**12 - 1))
@settings(max_examples=80, deadline=None)
def test_mcnemar_counts_all_outcomes_at_least_as_lopsided(first, second):
    bits = [np.array([bool(number >> i & 1) for i in range(12)]) for number in (first, second)]
    a, b, p = mcnemar(*bits)
    assert a == sum(x and not y for x, y in zip(*bits, strict=True))
    n = a + b
    weights = [math.comb(n, k) / 2**n for k in range(n + 1)]
    assert p == pytest.approx(min(1.0, sum(w for w in weights if w <= weights[a] * (1 + 1e-9))))


def test_mcnemar_refuses_different_examples():
    with pytest.raises(ValueError, match="do not pair"):
        mcnemar(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """A hypothesis falls if every intersection that holds it does; S. Holm's steps are a short cut to that."""
    count = len(p_values)
    expected = []
    for i in range(count):
        families = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size) if i in s]
        expected.append(max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in families))
    assert holm(p_values) == pytest.approx(expected)


def test_holm_passes_over_what_has_no_p_value():
    assert holm([0.01, math.nan, 0.04])[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(holm([0.01, math.nan])[1])


def test_ranks_and_critical_difference():
    scores = np.array([[90.0, 80.0, 70.0], [85.0, 80.0, 75.0], [10.0, 20.0, 30.0]])
    found = average_ranks(scores)
    assert found.ranks == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3.0])
    for variants, quantile in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):  # Demsar 2006, table 5a
        drawn = np.random.default_rng(0).normal(size=(variants, 8))
        assert average_ranks(drawn).critical == pytest.approx(
            quantile * math.sqrt(variants * (variants + 1) / 48), rel=1e-3
        )
    for bad in (scores[:1], scores[:, :1], np.where(scores == 70.0, np.nan, scores)):
        with pytest.raises(ValueError, match="ranks need"):
            average_ranks(bad)


def test_friedman_asks_whether_any_variant_differs():
    apart = np.array([[3.0] * 6, [2.0] * 6, [1.0] * 6])
    level = np.array([[1.0, 2, 3, 1, 2, 3], [2, 3, 1, 2, 3, 1], [3, 1, 2, 3, 1, 2]])
    assert average_ranks(apart).p_value == pytest.approx(math.exp(-6))  # chi square 12 with 2 degrees of freedom
    assert average_ranks(level).p_value == pytest.approx(1.0)
    assert math.isnan(average_ranks(apart[:2]).p_value)
    assert math.isnan(average_ranks(np.ones((3, 4))).p_value)
    sums = [np.mean(order) for order in ([1.0, 1.1, 1.2], [1.1, 1.1, 1.1])]  # unlike in their last bit
    assert math.isnan(average_ranks(np.array([[sums[0]] * 4, [sums[1]] * 4, [sums[0]] * 4])).p_value)


def test_trained_means_more_than_the_noise_above_the_baseline():
    assert is_above(600, 1000, 50.0)
    assert not is_above(515, 1000, 50.0)
    assert not is_above(500, 1000, 50.0)


def test_means_that_are_equal_but_for_the_order_of_their_sum_share_a_rank():
    """The mean of 1.0, 1.1 and 1.2 is not that of three times 1.1 in its last bit."""
    equal, other = np.mean([1.0, 1.1, 1.2]), np.mean([1.1, 1.1, 1.1])
    assert equal != other
    ranks = average_ranks(np.array([[equal, 5.0], [other, 5.0]])).ranks
    assert ranks.tolist() == [1.5, 1.5]
    assert rank_correlation([equal, other, 3.0, 4.0], [2.0, 1.0, 3.0, 4.0]).tau == pytest.approx(5 / math.sqrt(6 * 5))


def test_the_order_of_the_seeds_decides_no_digit_of_a_mean():
    scores = [1009 / 2000 * 100, 337 / 2000 * 100, 1511 / 2000 * 100, 1021 / 2000 * 100]
    found = {mean_with_interval(order) for order in itertools.permutations(scores)}
    assert len(found) == 1


def test_equal_means_of_other_counts_are_equal_numbers():
    """564 and 563 of 2,000 are 28.175 %, as 565 and 562 are, though the sums of the rounded shares are not."""
    pairs = [[100 * right / 2000 for right in counts] for counts in ((564, 563), (565, 562))]
    assert math.fsum(pairs[0]) != math.fsum(pairs[1])
    assert exact_mean(pairs[0]) == exact_mean(pairs[1]) == 28.175
    assert mean_with_interval(pairs[0]).mean == mean_with_interval(pairs[1]).mean
    assert mean_with_interval([100 / 3, 100 / 3]).deviation == 0.0


def test_means_of_equal_means_are_equal_numbers():
    """Such as those of three tasks: 4,503 right answers of 9,000, spread in two ways over tasks and seeds."""
    spread = [[(500, 500, 501)] * 3, [(501, 501, 501), (500, 500, 500), (500, 500, 500)]]
    first, second = ([exact_mean(right / 10 for right in task) for task in tasks] for tasks in spread)
    assert exact_mean(first) == exact_mean(second) == float(Fraction(4503, 90))
    assert math.isnan(exact_mean([1.0, math.nan]))
    assert exact_mean([math.pi]) == math.pi  # what is no share of a count stays as it is
