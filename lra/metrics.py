# SPDX-License-Identifier: Apache-2.0
"""Counts and intervals. A score is a count out of a total, never a bare percentage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The outcome of one evaluation over a whole split."""

    correct: int
    total: int
    loss: float
    """Mean cross-entropy, in nats."""

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0 to 1."""
        return self.correct / self.total


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % score interval of E. B. Wilson (1927) for `correct` of `total`, as two shares.

    Raises:
        ValueError: `total` is not positive, or `correct` is outside 0..total.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is not a count")
    from scipy.stats import binomtest  # late: it takes half a second, and `--help` needs none of it

    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)
