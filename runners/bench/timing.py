# SPDX-License-Identifier: Apache-2.0
"""Step times of several variants in one process, measured in turns so that drift affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARMUP_STEPS = 5
MIN_CYCLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingPlan:
    """How long to measure: until each variant has made `steps` steps or the time is up, but at least three cycles."""

    steps: int = 20
    seconds: float = 10.0
    """Time for each variant; all of them together have that times their number."""


def time_in_turns(
    steps: Mapping[str, Callable[[], None]],
    plan: TimingPlan,
    *,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time steps in cycles A B C C B A, in which each variant makes two steps.

    Args:
        steps: One step of each variant, already warmed up.
        plan: How long to measure.
        clock: Returns seconds since some fixed moment.
        synchronise: Waits until the device has finished its work.

    Returns:
        The seconds of every step by variant, in the order measured: the first two belong to the first cycle.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = cycle(list(steps))
    synchronise()
    begin = clock()
    cycles = 0
    while cycles < MIN_CYCLES or (2 * cycles < plan.steps and clock() - begin < plan.seconds * len(steps)):
        for name in order:
            start = clock()
            steps[name]()
            synchronise()
            seconds[name].append(clock() - start)
        cycles += 1
    return seconds


def cycle(names: Sequence[str]) -> list[str]:
    """Return the order of one cycle: forward and backward."""
    return [*names, *reversed(names)]


def speed_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Return the steps per second relative to the reference: the median over the cycles, with two steps of each."""
    own, other = ([a + b for a, b in zip(times[::2], times[1::2], strict=True)] for times in (seconds, reference))
    return statistics.median(theirs / ours for ours, theirs in zip(own, other, strict=True))
