# SPDX-License-Identifier: Apache-2.0
"""How tables write measurements: the layout and marks of table 2 of the benchmark's paper, and its parameter rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lra.config.labels import EXECUTION, NOT_IN_STEP, row_name

if TYPE_CHECKING:
    from lra.config.schema import RunConfig
    from lra.results.bench_records import BenchRecord

REFERENCE = "full"
"""The variant that all ratios refer to, with its default options: see `is_reference`."""
NOISY, FLAGGED, MISSING = "~", "!", "-"
"""Marks: unsteady times, memory that must not be quoted, and no measurement."""
NOISY_NOTE = f"{NOISY} noisy: the interquartile range of the step times is above 10 % of the median."
STATE_NOTE = (
    "state: numbers that one layer keeps of a sequence to go on to the next token; -: it has no such form; ?: not "
    "known, as of a file that is not loaded here."
)
STATUS_WORDS = {"oom": "OOM"}
"""How statuses are written where they have a spelling of their own."""
PARAMETER_RULE = 0.10
"""The benchmark's own rule: parameters differ from those of full attention by at most this share."""


def is_reference(config: RunConfig) -> bool:
    """Say whether a configuration is of full attention with its default options, to which ratios refer.

    How it computes does not matter: all that is measured together computes alike.
    """
    return row_name(config, leave_out=NOT_IN_STEP | set(EXECUTION)) == REFERENCE


def breaks_parameter_rule(ratio: float) -> bool:
    """Say whether a number of parameters, relative to full attention, breaks the benchmark's rule."""
    return abs(ratio - 1) > PARAMETER_RULE


def short_length(length: int) -> str:
    """Write a length like the benchmark's table: 4096 as 4K."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def table_2_columns(lengths: Sequence[int]) -> tuple[list[str], list[str]]:
    """Return the headings of table 2: one of speed and one of memory for each length."""
    texts = [short_length(length) for length in lengths]
    return [f"steps/s {text}" for text in texts], [f"GB {text}" for text in texts]


def speed_text(record: BenchRecord, *, with_ratio: bool = True) -> str:
    """Write the steps per second, marked if noisy, with the ratio to full attention in brackets; or the status."""
    if record.status != "ok" or record.timing is None:
        return STATUS_WORDS.get(record.status, record.status)
    ratio = f" ({record.speed_ratio:.2g})" if with_ratio and record.speed_ratio is not None else ""
    return f"{1.0 / record.timing.median:.3g}{NOISY if record.timing.noisy else ''}{ratio}"


def memory_text(record: BenchRecord, full: BenchRecord | None) -> str:
    """Write the peak in 10^9 bytes, with the ratio to full attention in brackets; or a flag, or the status.

    Args:
        record: The measurement.
        full: That of full attention at the same length, if there is one.
    """
    if record.status != "ok" or record.memory is None:
        return STATUS_WORDS.get(record.status, record.status)
    if record.memory.problem:
        return FLAGGED
    ratio = ""
    if full is not None and full.memory is not None and not full.memory.problem:
        ratio = f" ({record.memory.total / full.memory.total:.2f})"
    return f"{record.memory.total / 1e9:.3f}{ratio}"


def state_text(record: BenchRecord) -> str:
    """Write the numbers that one layer keeps of a sequence of this length."""
    from lra.measure.state_size import state_size  # here, since it imports torch

    size = state_size(record.config)
    return MISSING if size is None else size if isinstance(size, str) else f"{size:,}"


def highest_load(records: Sequence[BenchRecord]) -> float:
    """Return the highest load of the machine when the timing of a record began."""
    return max(float(record.environment["load_average"]) for record in records)
