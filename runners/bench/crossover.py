"""The length from which on a variant beats full attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where two curves cross, as far as the measured lengths tell."""

    where: Literal["at", "below", "above", "unknown"]
    """`below`: the variant is ahead at every measured length; `above`: not even at the longest."""
    length: float

    def __str__(self) -> str:
        return {"at": f"{self.length:.0f}", "below": f"< {self.length:.0f}", "above": f"> {self.length:.0f}"}.get(
            self.where, "-"
        )


def crossover(costs: Mapping[int, float], reference: Mapping[int, float]) -> Crossing:
    """Find the length from which on the costs stay below the reference's.

    Between two measured lengths the ratio of the costs is taken for a power of the length: a straight line on
    logarithmic axes. The idea of reporting it is that of the CAB benchmark (Zhang et al. 2023, arXiv:2210.07661).

    Args:
        costs: Seconds or bytes by length.
        reference: Those of `full`; only lengths in both count.
    """
    lengths = sorted(costs.keys() & reference.keys())
    if not lengths:
        return Crossing("unknown", math.nan)
    ratio = {length: costs[length] / reference[length] for length in lengths}
    behind = [length for length in lengths if ratio[length] >= 1.0]
    if not behind:
        return Crossing("below", lengths[0])
    if behind[-1] == lengths[-1]:
        return Crossing("above", lengths[-1])
    low, high = behind[-1], lengths[lengths.index(behind[-1]) + 1]
    share = math.log(ratio[low]) / math.log(ratio[low] / ratio[high])
    return Crossing("at", low * (high / low) ** share)
