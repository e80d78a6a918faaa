# SPDX-License-Identifier: Apache-2.0
"""The crossover length, from which on a variant needs less than full attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Crossover:
    """A crossover length, or the bound that the measured lengths allow."""

    where: Literal["at", "below", "above", "unknown"]
    """`below`: the variant is ahead at every measured length; `above`: it is behind at the longest."""
    length: float

    def __str__(self) -> str:
        return {"at": f"{self.length:.0f}", "below": f"< {self.length:.0f}", "above": f"> {self.length:.0f}"}.get(
            self.where, "-"
        )


def crossover(costs: Mapping[int, float], reference: Mapping[int, float]) -> Crossover:
    """Find the length from which on the costs stay below those of the reference.

    Between two measured lengths the ratio of the costs is interpolated as a power of the length, which is a straight
    line on logarithmic axes. The CAB benchmark (Zhang et al. 2023, arXiv:2210.07661) reports such lengths too.

    Args:
        costs: Seconds or bytes by length; infinite where the variant alone does not fit, zero where the reference alone
            does not. Nothing is interpolated next to these.
        reference: The same of the reference; lengths that only one of the two has, or that have NaN, or at which it
            is zero, are ignored.
    """
    ratio = {length: costs[length] / whole for length, whole in reference.items() if whole and length in costs}
    lengths = sorted(length for length, value in ratio.items() if not math.isnan(value))
    if not lengths:
        return Crossover("unknown", math.nan)
    behind = [length for length in lengths if ratio[length] >= 1.0]
    if not behind:
        return Crossover("below", lengths[0])
    if behind[-1] == lengths[-1]:
        return Crossover("above", lengths[-1])
    low, high = behind[-1], lengths[lengths.index(behind[-1]) + 1]
    share = (
        1.0
        if math.isinf(ratio[low]) or ratio[high] == 0.0
        else math.log(ratio[low]) / math.log(ratio[low] / ratio[high])
    )
    return Crossover("at", low * (high / low) ** share)
