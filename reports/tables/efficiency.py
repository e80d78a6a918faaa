"""Speed and memory by length, from what `lra-bench` keeps in a store: in the layout of the benchmark's own table 2."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lra.errors import UsageError
from lra.results.bench_records import BenchRecord

from ..result_set import Loaded, label_by_settings
from .accuracy import STATUS_WORDS
from .captions import NOT_RUN
from .table import Table

REFERENCE = "full"
NOISY, FLAGGED = "~", "!"


def reading_groups(loaded: Loaded) -> list[pd.DataFrame]:
    """Return frames of readings that one table can hold: one machine, task, model and recipe, variants and lengths.

    Columns: `label` (variant, with its options where they differ), `length`, `batch`, `seconds` per step and `bytes`
    at peak (missing where there is none), and `reading`. Batches may differ by length, as with equal tokens in each
    step; where one length was measured with several batches, each has a frame of its own.
    """
    rows = [
        {
            "key": _conditions(reading),
            "variant": reading.variant,
            "column": "",
            "settings": {f"variant.{name}": value for name, value in reading.config.variant.options.items()},
            "length": reading.length,
            "batch": reading.batch_size,
            "seconds": np.nan if reading.timing is None else reading.timing.median,
            "bytes": np.nan if reading.memory is None or reading.memory.problem else reading.memory.total,
            "reading": reading,
        }
        for reading in sorted(loaded.readings, key=lambda reading: reading.measured_at)
    ]
    groups = []
    for _, group in pd.DataFrame(rows).groupby("key") if rows else []:
        labelled = group.assign(label=label_by_settings(group))
        same_place = ["label", "length"]
        split = bool(labelled.drop_duplicates([*same_place, "batch"]).duplicated(same_place).any())
        parts = [part for _, part in labelled.groupby("batch")] if split else [labelled]
        groups += [part.drop_duplicates(same_place, keep="last") for part in parts]
    return groups


def efficiency(readings: pd.DataFrame) -> Table:
    """Tabulate steps per second and peak memory by length, each with its ratio to `full`.

    Args:
        readings: One of the frames of `reading_groups`.
    """
    lengths = sorted(readings["length"].unique())
    labels = sorted(readings["label"].unique(), key=lambda label: (label != REFERENCE, label))
    columns = [f"{what} {short_length(length)}" for what in ("steps/s", "GB") for length in lengths]
    cells = pd.DataFrame(NOT_RUN, index=labels, columns=columns, dtype=object)
    values = pd.DataFrame(np.nan, index=labels, columns=columns)
    full = readings[readings["label"] == REFERENCE].set_index("length")["bytes"]
    for row in readings.to_dict("records"):
        label, length = row["label"], row["length"]
        speed, memory = (f"{what} {short_length(length)}" for what in ("steps/s", "GB"))
        cells.loc[label, speed] = _speed(row["reading"])
        cells.loc[label, memory] = _memory(row["reading"], float(full.get(length, np.nan)))
        values.loc[label, speed] = 1.0 / row["seconds"]
        values.loc[label, memory] = -row["bytes"] / 1e6
    notes = [
        "In brackets: relative to full. Speed: median of single steps, forward, backward and optimiser, the ratio "
        "measured in turns with full. GB: peak of a step with parameters and optimiser state, 10^9 bytes.",
        *_remarks(readings),
    ]
    ids = [reading.settings_id for reading in readings["reading"]]
    return Table(caption=_caption(readings), cells=cells, values=values, notes=notes, records=ids)


def efficiency_tables(loaded: Loaded) -> list[Table]:
    """Make one table for each machine and recipe that was measured.

    Raises:
        UsageError: Nothing was measured.
    """
    groups = reading_groups(loaded)
    if not groups:
        raise UsageError("no readings of lra-bench here; lra-bench --preset lra makes them")
    return [efficiency(group) for group in groups]


def describe(readings: pd.DataFrame) -> str:
    """Say on what and with what recipe readings were taken, in one line."""
    first: BenchRecord = readings["reading"].iloc[0]
    by_batch = {
        str(batch): ", ".join(short_length(n) for n in sorted(part["length"].unique()))
        for batch, part in readings.groupby("batch")
    }
    sizes = [f"{batch} ({lengths})" if len(by_batch) > 1 else batch for batch, lengths in by_batch.items()]
    batch = f"batch {', '.join(sizes)}"
    return f"{first.config.task}, profile {first.config.profile}, {batch}, {_machine(first)}"


def short_length(length: int) -> str:
    """Write a length like the benchmark's table: 4096 as 4K."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def _conditions(reading: BenchRecord) -> str:
    """Return all that must be equal in a table, as a key."""
    config = reading.config
    what = {
        "task": config.task,
        "profile": config.profile,
        "data": {name: value for name, value in config.data.items() if "length" not in name},
        "model": config.model.model_dump(exclude={"max_length"}),
        "train": config.train.model_dump(exclude={"batch_size"}),
        "machine": _machine(reading),
    }
    return json.dumps(what, sort_keys=True)


def _machine(reading: BenchRecord) -> str:
    environment = reading.environment
    name = environment["device"] if reading.device_type == "cuda" else environment["cpu"]
    threads = f", {reading.threads} threads" if reading.device_type == "cpu" else ""
    return f"{name}{threads}, torch {environment['torch']}"


def _caption(readings: pd.DataFrame) -> str:
    model, train = readings["reading"].iloc[0].config.model, readings["reading"].iloc[0].config.train
    sizes = f"{model.num_layers} layers, dim {model.dim}, {model.num_heads} heads, mlp {model.mlp_dim}"
    return f"Speed and memory of training by length: {describe(readings)}, {sizes}, {train.precision}"


def _speed(reading: BenchRecord) -> str:
    if reading.status != "ok" or reading.timing is None:
        return STATUS_WORDS.get(reading.status, reading.status)
    ratio = "" if reading.speed_ratio is None else f" ({reading.speed_ratio:.2g})"
    return f"{1.0 / reading.timing.median:.3g}{NOISY if reading.timing.noisy else ''}{ratio}"


def _memory(reading: BenchRecord, full: float) -> str:
    if reading.status != "ok" or reading.memory is None:
        return STATUS_WORDS.get(reading.status, reading.status)
    if reading.memory.problem:
        return FLAGGED
    ratio = "" if np.isnan(full) else f" ({reading.memory.total / full:.2f})"
    return f"{reading.memory.total / 1e9:.3f}{ratio}"


def _remarks(readings: pd.DataFrame) -> list[str]:
    """Explain the marks that occur, and say under what load and with which meter was measured."""
    taken: Sequence[BenchRecord] = readings["reading"].tolist()
    notes = []
    if any(reading.timing is not None and reading.timing.noisy for reading in taken):
        notes.append(f"{NOISY}: the middle half of the step times spreads over more than 10 % of their median.")
    if any(reading.memory is not None and reading.memory.problem for reading in taken):
        notes.append(f"{FLAGGED}: two meters disagree, so there is no number.")
    failures: dict[str, list[str]] = {}
    for reading in taken:
        if reading.status == "failed":
            failures.setdefault(reading.detail[:100], []).append(f"{reading.variant} at {reading.length}")
    notes += [f"Failed: {', '.join(sorted(where))}: {detail}." for detail, where in sorted(failures.items())]
    meters = sorted({reading.memory.meter for reading in taken if reading.memory is not None})
    load = max(float(reading.environment["load_average"]) for reading in taken)
    return [*notes, f"Memory: {'; '.join(meters) or NOT_RUN}. Load of the machine when timing began: up to {load:.1f}."]
