# SPDX-License-Identifier: Apache-2.0
"""The tables that `lra-bench` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from lra.config.labels import NOT_IN_STEP, names_in_command, profiles_of_steps
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
    rows = [[name, *_row(record, full.get(record.length))] for name, record in named(records)]
    headers = [
        "variant", "length", "batch", "steps/s", "tokens/s", "x full", "MiB step", "x full", "MiB model", "GFLOP",
        "x full", "state",
    ]  # fmt: skip
    parts = [caption(records), _table(rows, headers), STATE_NOTE]
    others = {name: own for name, own in _by_name(records).items() if own[0].variant != REFERENCE}
    if others:
        parts += [
            "Length from which on a variant is ahead of full:",
            _table(
                [
                    [name, str(time_crossing(own, full)), str(memory_crossing(own, full))]
                    for name, own in others.items()
                ],
                ["variant", "faster", "less memory"],
            ),
        ]
    return "\n\n".join([*parts, "\n".join([*notes(records), *_uncounted(records)])])


def arena_report(records: Sequence[BenchRecord]) -> str:
    """Lay out like table 2 of the benchmark's paper: speed (ratio to full) by length, then peak memory by length."""
    lengths = sorted({record.length for record in records})
    full = {record.length: record for record in records if is_reference(record.config)}
    rows = []
    for name, own in _by_name(records).items():
        cells = {record.length: record for record in own}
        rows.append(
            [
                name,
                *(speed_text(cells[length]) if length in cells else MISSING for length in lengths),
                *(memory_text(cells[length], full.get(length)) if length in cells else MISSING for length in lengths),
            ]
        )
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
    for name, record in named(records):
        where = f"{name} at {record.length}"
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


def time_crossing(own: Sequence[BenchRecord], full: Mapping[int, BenchRecord]) -> Crossover:
    """Find from which length on a variant's steps take less time than those of full.

    Args:
        own: The measurements of the variant.
        full: Those of full attention, by length.
    """
    ratios = {record.length: 1.0 / record.speed_ratio for record in own if record.speed_ratio is not None}
    ratios |= _too_large(own, full)
    return crossover(ratios, dict.fromkeys(ratios, 1.0))


def memory_crossing(own: Sequence[BenchRecord], full: Mapping[int, BenchRecord]) -> Crossover:
    """Find from which length on a variant's steps take less memory than those of full; see `time_crossing`."""
    mine, theirs = (
        {r.length: float(r.memory.step) for r in side if r.memory and not r.memory.problem}
        for side in (own, full.values())
    )
    too_large = _too_large(own, full)
    return crossover(mine | too_large, theirs | dict.fromkeys(too_large, 1.0))


def _too_large(own: Sequence[BenchRecord], full: Mapping[int, BenchRecord]) -> dict[int, float]:
    """Return the cost relative to full where one of the two alone does not fit: infinite for a variant, else zero."""
    ratios = {("oom", "ok"): math.inf, ("ok", "oom"): 0.0}
    statuses = {record.length: (record.status, full[record.length].status) for record in own if record.length in full}
    return {length: ratios[pair] for length, pair in statuses.items() if pair in ratios}


def _row(record: BenchRecord, full: BenchRecord | None) -> list[str]:
    head = [str(record.length), str(record.batch_size)]
    if record.status != "ok" or record.timing is None or record.memory is None or record.flops is None:
        return [*head, speed_text(record), *[MISSING] * 7, state_text(record)]
    rate = 1.0 / record.timing.median
    memory_ratio = flop_ratio = MISSING
    if full is not None and full.memory and full.memory.step and not full.memory.problem and not record.memory.problem:
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
    for name, record in named(records):
        if record.flops is not None:
            by_variant.setdefault(name, set()).update(record.flops.uncounted)
    if not by_variant:
        return []
    shared = set.intersection(*by_variant.values())
    lines = ["Not in the FLOPs: what works element by element, and", f"  all: {', '.join(sorted(shared)) or 'nothing'}"]
    for name, operators in by_variant.items():
        if operators - shared:
            lines.append(f"  {name}: {', '.join(sorted(operators - shared))}")
    return lines


def named(records: Sequence[BenchRecord]) -> list[tuple[str, BenchRecord]]:
    """Return each measurement with the name of its row: see `lra.config.labels.names_in_command`."""
    configs, titles = [record.config for record in records], [record.variant_title for record in records]
    return list(zip(names_in_command(configs, titles, NOT_IN_STEP), records, strict=True))


def _by_name(records: Sequence[BenchRecord]) -> dict[str, list[BenchRecord]]:
    """Return the measurements of each row, in the order in which they were made."""
    found: dict[str, list[BenchRecord]] = {}
    for name, record in named(records):
        found.setdefault(name, []).append(record)
    return found


def _table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align)
