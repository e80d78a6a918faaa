"""Step times of several variants in one process, taken in turns so that drift falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARMUP_STEPS = 5
LEAST_CYCLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingPlan:
    """How long to measure: until each variant has `steps` steps or the budget is spent, but three cycles at least."""

    steps: int = 20
    seconds: float = 10.0
    """Budget per variant; the budget of a measurement is that times the number of variants."""


def time_in_turns(
    steps: Mapping[str, Callable[[], None]],
    plan: TimingPlan,
    *,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Time steps in cycles A B C C B A, so that each variant has two times per cycle.

    Args:
        steps: One step of each variant, warmed up.
        plan: How long.
        clock: Seconds from any origin.
        synchronise: Waits until the device has done what it was given.

    Returns:
        The seconds of every step, by variant, in the order measured: the first two are of the first cycle.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = cycle(list(steps))
    synchronise()
    begin = clock()
    cycles = 0
    while cycles < LEAST_CYCLES or (2 * cycles < plan.steps and clock() - begin < plan.seconds * len(steps)):
        for name in order:
            start = clock()
            steps[name]()
            synchronise()
            seconds[name].append(clock() - start)
        cycles += 1
    return seconds


def cycle(names: Sequence[str]) -> list[str]:
    """Return the order of one cycle: there and back."""
    return [*names, *reversed(names)]


def speed_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Return how many steps are made while the reference makes one: the median over the cycles, two steps each."""
    own, other = ([a + b for a, b in zip(times[::2], times[1::2], strict=True)] for times in (seconds, reference))
    return statistics.median(theirs / ours for ours, theirs in zip(own, other, strict=True))
