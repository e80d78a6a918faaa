# SPDX-License-Identifier: Apache-2.0
"""How many CPU threads a run takes. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping

MAX_DEFAULT_SLOTS = 4
"""Default slots of a sweep on a machine without GPUs; more are seldom faster, and each needs memory."""


def default_slots() -> int:
    """Return how many runs a sweep executes at a time on a machine without GPUs."""
    return min(os.cpu_count() or 1, MAX_DEFAULT_SLOTS)


def default_threads(environment: Mapping[str, str] = os.environ) -> int:
    """Return the CPU threads of a run: `OMP_NUM_THREADS`, else the share of one default slot of a sweep.

    `lra-run` and `lra-sweep` take the same number, whatever `--slots` says, since the last bits of a result can depend
    on it.
    """
    given = environment.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, (os.cpu_count() or 1) // default_slots())
