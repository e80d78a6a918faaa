# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules: pure functions of the step, so that there is no scheduler state to lose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["constant", "rsqrt", "cosine", "one_cycle"]


def _warm(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup > 0 else 1.0


def _constant(step: int, steps: int, warmup: int) -> float:  # noqa: ARG001 - schedules share one signature
    return _warm(step, warmup)


def _rsqrt(step: int, steps: int, warmup: int) -> float:  # noqa: ARG001
    return _warm(step, warmup) / math.sqrt(max(step, warmup, 1))


def _cosine(step: int, steps: int, warmup: int) -> float:
    progress = max(0.0, (step - warmup) / max(1, steps - warmup))
    return _warm(step, warmup) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _one_cycle(step: int, steps: int, warmup: int) -> float:
    start, end = 1 / 25, 1 / 250_000
    if step < warmup:
        return start + (1 - start) * step / warmup
    return 1 + (end - 1) * min(1.0, (step - warmup) / max(1, steps - warmup))


_SCHEDULES: dict[ScheduleName, Callable[[int, int, int], float]] = {
    "constant": _constant,
    "rsqrt": _rsqrt,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}


def learning_rate(name: ScheduleName, base: float, step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of one step.

    Args:
        name: `constant`, `rsqrt` (inverse square root of the step) and `cosine` follow a linear warm-up from zero, as
            in the benchmark's own trainer (`linear_warmup`, `rsqrt_decay`, `cosine_decay`). `one_cycle` is PyTorch's
            OneCycleLR with linear annealing: from base / 25 up to base, then down to base / 250,000.
        base: The factor in front.
        step: From 0.
        steps: Length of the run.
        warmup: Steps of warm-up.
    """
    return base * _SCHEDULES[name](step, steps, warmup)
