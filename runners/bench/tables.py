# SPDX-License-Identifier: Apache-2.0
"""The tables that `lra-bench` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from lra.config.labels import NOT_IN_STEP, profiles_of_steps, row_name
from lra.results.bench_format import (
    FLAGGED,
    MISSING,
    NOISY_NOTE,
    REFERENCE,
    STATE_NOTE,
    highest_load,
    is_reference,
    memory_text,
    speed_text,
    state_text,
    table_2_columns,
)
from lra.results.bench_records import MIB, BenchRecord

from .crossover import Crossover, crossover
from .workload import tokens_per_step


def full_report(records: Sequence[BenchRecord]) -> str:
    """Lay out every measurement, one line per variant and length, then the crossover lengths and the notes."""
    full = {record.length: record for record in records if is_reference(record.config)}
    rows = [_row(record, full.get(record.length)) for record in records]
    headers = [
        "variant", "length", "batch", "steps/s", "tokens/s", "x full", "MiB step", "x full", "MiB model", "GFLOP",
        "x full", "state",
    ]  # fmt: skip
    parts = [caption(records), _table(rows, headers), STATE_NOTE]
    others = {name: title for name, title in _titles(records).items() if name != REFERENCE}
    if others:
        parts += [
            "Length from which on a variant is ahead of full:",
            _table(
                [
                    [title, str(time_crossing(records, name)), str(memory_crossing(records, name))]
                    for name, title in others.items()
                ],
                ["variant", "faster", "less memory"],
            ),
        ]
    return "\n\n".join([*parts, "\n".join([*notes(records), *_uncounted(records)])])


def arena_report(records: Sequence[BenchRecord]) -> str:
    """Lay out like table 2 of the benchmark's paper: speed (ratio to full) by length, then peak memory by length."""
    lengths = sorted({record.length for record in records})
    cells = {(record.variant, record.length): record for record in records}
    full = {record.length: record for record in records if is_reference(record.config)}
    rows = [
        [
            title,
            *(speed_text(cells[name, length]) for length in lengths),
            *(memory_text(cells[name, length], full.get(length)) for length in lengths),
        ]
        for name, title in _titles(records).items()
    ]
    speeds, memories = table_2_columns(lengths)
    headers = ["model", *speeds, *memories]
    title = "Steps per second and peak memory of training, in 10^9 bytes, by length; in brackets: relative to full."
    return "\n\n".join([f"{title}\n{caption(records)}", _table(rows, headers), "\n".join(notes(records))])


def caption(records: Sequence[BenchRecord]) -> str:
    """Say what was measured on what."""
    first = records[0]
    model, version = first.config.model, first.environment["torch"]
    batches = sorted({(record.length, record.batch_size) for record in records})
    if len({batch for _, batch in batches}) == 1:
        batch = f"batch {first.batch_size}"
    else:
        batch = "batch " + ", ".join(f"{size} at {length}" for length, size in batches)
    (profile,) = profiles_of_steps([first.config])
    dropout = f"dropout {model.dropout:g}, of attention {model.attention_dropout:g}"
    return (
        f"{first.config.task}, profile {profile}: {model.num_layers} layers, dim {model.dim}, "
        f"{model.num_heads} heads, mlp {model.mlp_dim}, {dropout}; {batch} on this one device, random tokens;\n"
        f"{first.config.train.precision}, forward + backward + AdamW; {first.processor}, "
        f"CPU threads: {first.threads}, load up to {highest_load(records)} when timing began, torch {version}"
    )


def notes(records: Sequence[BenchRecord]) -> list[str]:
    """List the marks that occur, what ended without a number, and how memory was read."""
    lines = []
    timed = [record.timing for record in records if record.timing is not None]
    if any(timing.noisy for timing in timed):
        lines.append(NOISY_NOTE)
    for record in records:
        where = f"{_title(record)} at {record.length}"
        if record.status != "ok":
            lines.append(f"{where}: {record.status}: {record.detail}")
        elif record.memory is not None and record.memory.problem:
            lines.append(f"{FLAGGED} {where}: memory not to be quoted: {record.memory.problem}.")
    first = next((record.memory for record in records if record.memory is not None), None)
    if first is not None:
        check = f"; checked by: {first.check_counter}" if first.check_counter else ""
        lines.append(f"Memory: {first.counter}{check}.")
        lines.append(_agreement(records))
    return [line for line in lines if line]


def time_crossing(records: Sequence[BenchRecord], name: str) -> Crossover:
    """Find from which length on a variant's steps take less time than those of full."""
    ratios = {r.length: 1.0 / r.speed_ratio for r in records if r.variant == name and r.speed_ratio is not None}
    ratios |= _too_large(records, name)
    return crossover(ratios, dict.fromkeys(ratios, 1.0))


def memory_crossing(records: Sequence[BenchRecord], name: str) -> Crossover:
    """Find from which length on a variant's steps take less memory than those of full."""
    known = [r for r in records if r.memory and not r.memory.problem]
    own = {r.length: float(r.memory.step) for r in known if r.memory and r.variant == name}
    full = {r.length: float(r.memory.step) for r in known if r.memory and is_reference(r.config)}
    return crossover(own | _too_large(records, name), full)


def _too_large(records: Sequence[BenchRecord], name: str) -> dict[int, float]:
    """Return the infinite cost of a variant at each length at which it does not fit and full attention does."""
    fits = {record.length for record in records if is_reference(record.config) and record.status == "ok"}
    lost = [record.length for record in records if record.variant == name and record.status == "oom"]
    return {length: math.inf for length in lost if length in fits}


def _row(record: BenchRecord, full: BenchRecord | None) -> list[str]:
    head = [_title(record), str(record.length), str(record.batch_size)]
    if record.status != "ok" or record.timing is None or record.memory is None or record.flops is None:
        return [*head, speed_text(record), *[MISSING] * 7, state_text(record)]
    rate = 1.0 / record.timing.median
    memory_ratio = flop_ratio = MISSING
    if full is not None and full.memory and not full.memory.problem and not record.memory.problem:
        memory_ratio = f"{record.memory.step / full.memory.step:.2f}"
    if full is not None and full.flops:
        flop_ratio = f"{record.flops.total / full.flops.total:.2f}"
    return [
        *head,
        speed_text(record, with_ratio=False),
        f"{rate * tokens_per_step(record.config):,.0f}",
        MISSING if record.speed_ratio is None else f"{record.speed_ratio:.2f}",
        f"{record.memory.step / MIB:.1f}" if not record.memory.problem else FLAGGED,
        memory_ratio,
        f"{record.memory.state_bytes / MIB:.1f}",
        f"{record.flops.total / 1e9:.2f}",
        flop_ratio,
        state_text(record),
    ]


def _agreement(records: Sequence[BenchRecord]) -> str:
    measurements = [record.memory for record in records if record.memory is not None and record.memory.check_bytes]
    agreeing = sum(not measurement.problem for measurement in measurements)
    return (
        f"Both counters agree within 2 MiB or 3 % in {agreeing} of {len(measurements)} measurements."
        if measurements
        else ""
    )


def _uncounted(records: Sequence[BenchRecord]) -> list[str]:
    """Name the operators that the FLOPs of each variant leave out, those that all variants share only once."""
    by_variant: dict[str, set[str]] = {}
    for record in records:
        if record.flops is not None:
            by_variant.setdefault(_title(record), set()).update(record.flops.uncounted)
    if not by_variant:
        return []
    shared = set.intersection(*by_variant.values())
    lines = ["Not in the FLOPs: what works element by element, and", f"  all: {', '.join(sorted(shared)) or 'nothing'}"]
    for name, operators in by_variant.items():
        if operators - shared:
            lines.append(f"  {name}: {', '.join(sorted(operators - shared))}")
    return lines


def _titles(records: Sequence[BenchRecord]) -> dict[str, str]:
    """Return the display name of each variant, in the order in which they were measured."""
    return {record.variant: _title(record) for record in records}


def _title(record: BenchRecord) -> str:
    """Return the name of a row: the title of the variant, with the options that are not the default."""
    return row_name(record.config, record.variant_title, NOT_IN_STEP)


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align)
