# SPDX-License-Identifier: Apache-2.0
"""Counts and intervals. A score is a count out of a total, never a bare percentage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist


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


def wilson_interval(correct: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of E. B. Wilson (1927) for `correct` of `total`, as two shares.

    Raises:
        ValueError: `total` is not positive, or `correct` is outside 0..total.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is not a count")
    z = NormalDist().inv_cdf((1 + confidence) / 2)  # `scipy.stats` has the interval too, and takes a second to import
    share = correct / total
    weight = z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


ORACLE = "oracle"
"""How the names of baselines begin that know something hidden: bounds, which no model is asked to beat."""


def of_whole_test(baselines: Mapping[str, float]) -> dict[str, float]:
    """Leave out baselines at one length of the test, as `majority at 64`, where that of the whole test is there."""
    return {name: value for name, value in baselines.items() if name.rpartition(" at ")[0] not in baselines}


def at_length(baselines: Mapping[str, float], length: int, lengths: Sequence[int]) -> dict[str, float]:
    """Return the baselines at one length of the test, by their names without it.

    Args:
        baselines: Those of the data.
        length: The length.
        lengths: All lengths of the test. A baseline that has none in its name is taken as it is where there is no
            other: it is that of all lengths together.
    """
    endings = tuple(f" at {each}" for each in lengths)
    ending = f" at {length}"
    whole = {name: value for name, value in baselines.items() if not name.endswith(endings)}
    own = {name.removesuffix(ending): value for name, value in baselines.items() if name.endswith(ending)}
    return whole | own


def beatable(baselines: Mapping[str, float]) -> dict[str, float]:
    """Return the baselines that the accuracy on a whole test can be asked to beat: all but the oracles."""
    return {name: value for name, value in of_whole_test(baselines).items() if not name.startswith(ORACLE)}


def is_above(correct: int, total: int, baseline: float, *, confidence: float = 0.95) -> bool:
    """Say whether a score is above a baseline (in percent) by more than the noise of its test set."""
    return wilson_interval(correct, total, confidence=confidence)[0] > baseline / 100
