# SPDX-License-Identifier: Apache-2.0
"""Statistics over seeds and over test examples.

With three to five seeds the intervals of a bootstrap are far too narrow, so means over seeds get Student's interval. A
single run gets Wilson's interval, which covers the choice of test examples and not that of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

Booleans = npt.NDArray[np.bool_]
LARGEST_COUNT = 1_000_000
"""Test examples times seeds and tasks, at most, for means that are exact."""
ROUNDING = 1e-12
"""What a float in % may be off; two shares of counts that are told apart differ by more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    deviation: float
    """Sample standard deviation (n - 1); NaN for one value."""
    count: int
    low: float
    high: float
    """Bounds of the interval; NaN for one value, and for equal values, of which the interval would have no width."""


def exact_mean(values: Iterable[float]) -> float:
    """Return the mean of shares of counts, in %, by fractions, so that equal means are one number; NaN if a value is.

    Floats of equal means may differ in their last bits, which would part ties and print other digits.
    """
    found = [float(value) for value in values]
    if not all(map(math.isfinite, found)):
        return math.nan
    return float(sum(map(_fraction, found)) / len(found))


def _fraction(value: float) -> Fraction:
    """Return the share of a count that a float stands for, or the float itself if it is none."""
    share = Fraction(value).limit_denominator(LARGEST_COUNT)
    return share if math.isclose(share, value, rel_tol=0.0, abs_tol=ROUNDING) else Fraction(value)


def mean_with_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Estimate a mean with Student's t interval.

    Raises:
        ValueError: There are no values.
    """
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        raise ValueError("no values to average")
    if len(data) == 1:
        return Estimate(mean=exact_mean(data), deviation=math.nan, count=1, low=math.nan, high=math.nan)
    mean, centre = exact_mean(data), math.fsum(data) / len(data)
    deviation = math.sqrt(math.fsum((data - centre) ** 2) / (len(data) - 1))
    if deviation <= 1e-12 * max(1.0, abs(mean)):  # a spread of the size of rounding errors is none
        return Estimate(mean=mean, deviation=0.0, count=len(data), low=math.nan, high=math.nan)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(data) - 1)) * deviation / math.sqrt(len(data))
    return Estimate(mean=mean, deviation=deviation, count=len(data), low=centre - half, high=centre + half)


def comparable(means: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Round means, so that equal ones are equal: the last bits of a sum depend on the order of its terms."""
    return np.asarray(means, dtype=float).round(9)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedComparison:
    """A against B over the seeds that both have."""

    difference: Estimate
    """The estimate of A minus B."""
    p_value: float
    """Two-sided paired t test; NaN for fewer than two pairs, and for pairs without spread."""
    detectable: float
    """Smallest true difference that this many pairs with this spread show in 80 % of cases; NaN if `p_value` is NaN."""


def compare_paired(first: Sequence[float], second: Sequence[float]) -> PairedComparison:
    """Compare two variants run with equal seeds, pair by pair.

    Raises:
        ValueError: The lengths differ, or there are no values.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values do not pair")
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    estimate = mean_with_interval(differences.tolist())
    if math.isnan(estimate.low):
        return PairedComparison(difference=estimate, p_value=math.nan, detectable=math.nan)
    return PairedComparison(
        difference=estimate,
        p_value=float(stats.ttest_1samp(differences, 0.0).pvalue),
        detectable=detectable_difference(estimate.deviation, estimate.count),
    )


def detectable_difference(deviation: float, pairs: int, power: float = 0.8, level: float = 0.05) -> float:
    """Return the smallest true mean difference that a paired t test of this size finds with the given power.

    It is NaN for fewer than two pairs and for pairs without spread, where the test does not apply.
    """
    if pairs < 2 or deviation == 0.0:
        return math.nan
    freedom, critical = pairs - 1, stats.t.ppf(1 - level / 2, pairs - 1)

    def excess_power(effect: float) -> float:
        shift = effect * math.sqrt(pairs)
        opposite = np.nan_to_num(stats.nct.cdf(-critical, freedom, shift))  # scipy gives NaN for some that are zero
        return float(stats.nct.sf(critical, freedom, shift) + opposite) - power

    high = 1.0
    while excess_power(high) < 0:
        high *= 2
    return float(optimize.brentq(excess_power, 0.0, high, xtol=1e-12)) * deviation


def mcnemar(first: Booleans, second: Booleans) -> tuple[int, int, float]:
    """Compare two models on the same test examples by the exact test of McNemar.

    Args:
        first: (examples,), whether A was right.
        second: The same for B.

    Returns:
        The number of examples that only A has right, the number that only B has right, and the two-sided p value.

    Raises:
        ValueError: The numbers of examples differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} examples do not pair")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    disagreements = only_first + only_second
    if disagreements == 0:
        return 0, 0, 1.0
    return only_first, only_second, float(stats.binomtest(only_first, disagreements).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for several tests (S. Holm, 1979); NaN stays NaN and is not counted as a test."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    running = 0.0
    for rank, (p, index) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - rank)))
        adjusted[index] = running
    return adjusted


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCorrelation:
    """How far two measures agree on an order."""

    tau: float
    """Kendall's tau-b; NaN if all values of one side are equal."""
    low: float
    high: float
    """Bounds of the bootstrap interval; NaN for a full agreement, which no resample breaks."""
    p_value: float
    """Against no relation; exact unless values are equal."""


def rank_correlation(first: Sequence[float], second: Sequence[float], resamples: int = 10_000) -> RankCorrelation:
    """Estimate Kendall's tau-b of pairs, with the percentile interval of a bootstrap over the pairs, 95 %.

    The resamples come from a fixed seed, so that a table has the same numbers each time.

    Raises:
        ValueError: The lengths differ, or there are fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} values give no correlation")
    first, second = comparable(first).tolist(), comparable(second).tolist()
    # (n, n), 1 where the row is above the column, -1 below, 0 for equal ones
    signs = [np.sign(np.subtract.outer(np.asarray(side, float), np.asarray(side, float))) for side in (first, second)]
    result = stats.kendalltau(first, second)
    counts = np.random.default_rng(0).multinomial(len(first), np.full(len(first), 1 / len(first)), size=resamples)

    def over_pairs(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ((counts @ values) * counts).sum(axis=1)  # (resamples,), each pair as often as both were drawn

    scale = np.sqrt(over_pairs(np.abs(signs[0])) * over_pairs(np.abs(signs[1])))
    drawn = scale > 0  # a resample of one value says nothing
    taus = over_pairs(signs[0] * signs[1])[drawn] / scale[drawn]
    agreed = [np.array_equal(signs[0], sign * signs[1]) for sign in (1, -1)]  # whole numbers, so exactly
    low, high = (math.nan, math.nan) if any(agreed) or not len(taus) else np.quantile(taus, (0.025, 0.975))
    return RankCorrelation(tau=float(result.statistic), low=float(low), high=float(high), p_value=float(result.pvalue))


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageRanks:
    """How variants rank over tasks."""

    ranks: npt.NDArray[np.float64]
    """(variants,), the average rank of each, where 1 is best."""
    critical: float
    """Nemenyi's critical difference at the level 0.05: average ranks that are closer cannot be told apart."""
    p_value: float
    """Friedman's test of equal variants; NaN for two variants and where all ranks are tied."""


def average_ranks(scores: npt.NDArray[np.float64]) -> AverageRanks:
    """Rank variants within each task and average the ranks (J. Demsar, 2006).

    Args:
        scores: (variants, tasks), higher is better, complete.

    Raises:
        ValueError: Fewer than two variants or tasks, or a score is missing.
    """
    variants, tasks = scores.shape
    if variants < 2 or tasks < 2 or np.isnan(scores).any():
        raise ValueError("ranks need two variants, two tasks and every score")
    scores = comparable(scores)
    ranks = np.mean([stats.rankdata(-column) for column in scores.T], axis=0)
    quantile = float(stats.studentized_range.ppf(0.95, variants, math.inf)) / math.sqrt(2)
    tied = bool((scores == scores[0]).all())
    p_value = math.nan if variants < 3 or tied else float(stats.friedmanchisquare(*scores).pvalue)
    critical = quantile * math.sqrt(variants * (variants + 1) / (6 * tasks))
    return AverageRanks(ranks=ranks, critical=critical, p_value=p_value)
