"""Speed and memory by length, from what `lra-bench` keeps in a store: in the layout of the benchmark's own table 2."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lra.errors import UsageError
from lra.results.bench_records import BenchRecord

from ..result_set import ResultSet, label_by_settings
from .accuracy import STATUS_WORDS
from .captions import NOT_RUN
from .table import Table

REFERENCE = "full"
NOISY, FLAGGED = "~", "!"


def reading_groups(loaded: ResultSet) -> list[pd.DataFrame]:
    """Return frames of measurements that one table can hold: one machine, task, model and recipe, variants and lengths.

    Columns: `label` (variant, with its options where they differ), `length`, `batch`, `seconds` per step and `bytes`
    at peak (missing where there is none), and `measurement`. Batches may differ by length, as with equal tokens in each
    step; where one length was measured with several batches, each has a frame of its own.
    """
    rows = [
        {
            "key": _conditions(measurement),
            "variant": measurement.variant,
            "column": "",
            "settings": {f"variant.{name}": value for name, value in measurement.config.variant.options.items()},
            "length": measurement.length,
            "batch": measurement.batch_size,
            "seconds": np.nan if measurement.timing is None else measurement.timing.median,
            "bytes": np.nan if measurement.memory is None or measurement.memory.problem else measurement.memory.total,
            "measurement": measurement,
        }
        for measurement in sorted(loaded.measurements, key=lambda measurement: measurement.measured_at)
    ]
    groups = []
    for _, group in pd.DataFrame(rows).groupby("key") if rows else []:
        labelled = group.assign(label=label_by_settings(group))
        same_place = ["label", "length"]
        split = bool(labelled.drop_duplicates([*same_place, "batch"]).duplicated(same_place).any())
        parts = [part for _, part in labelled.groupby("batch")] if split else [labelled]
        groups += [part.drop_duplicates(same_place, keep="last") for part in parts]
    return groups


def efficiency(measurements: pd.DataFrame) -> Table:
    """Tabulate steps per second and peak memory by length, each with its ratio to `full`.

    Args:
        measurements: One of the frames of `reading_groups`.
    """
    lengths = sorted(measurements["length"].unique())
    labels = sorted(measurements["label"].unique(), key=lambda label: (label != REFERENCE, label))
    columns = [f"{what} {short_length(length)}" for what in ("steps/s", "GB") for length in lengths]
    cells = pd.DataFrame(NOT_RUN, index=labels, columns=columns, dtype=object)
    values = pd.DataFrame(np.nan, index=labels, columns=columns)
    full = measurements[measurements["label"] == REFERENCE].set_index("length")["bytes"]
    for row in measurements.to_dict("records"):
        label, length = row["label"], row["length"]
        speed, memory = (f"{what} {short_length(length)}" for what in ("steps/s", "GB"))
        cells.loc[label, speed] = _speed(row["measurement"])
        cells.loc[label, memory] = _memory(row["measurement"], float(full.get(length, np.nan)))
        values.loc[label, speed] = 1.0 / row["seconds"]
        values.loc[label, memory] = -row["bytes"] / 1e6
    notes = [
        "In brackets: relative to full. Speed: median of single steps, forward, backward and optimiser, the ratio "
        "measured in turns with full. GB: peak of a step with parameters and optimiser state, 10^9 bytes.",
        *_remarks(measurements),
    ]
    ids = [measurement.settings_id for measurement in measurements["measurement"]]
    return Table(caption=_caption(measurements), cells=cells, values=values, notes=notes, records=ids)


def efficiency_tables(loaded: ResultSet) -> list[Table]:
    """Make one table for each machine and recipe that was measured.

    Raises:
        UsageError: Nothing was measured.
    """
    groups = reading_groups(loaded)
    if not groups:
        raise UsageError("no measurements of lra-bench here; lra-bench --preset lra makes them")
    return [efficiency(group) for group in groups]


def describe(measurements: pd.DataFrame) -> str:
    """Say on what and with what recipe measurements were taken, in one line."""
    first: BenchRecord = measurements["measurement"].iloc[0]
    by_batch = {
        str(batch): ", ".join(short_length(n) for n in sorted(part["length"].unique()))
        for batch, part in measurements.groupby("batch")
    }
    sizes = [f"{batch} ({lengths})" if len(by_batch) > 1 else batch for batch, lengths in by_batch.items()]
    batch = f"batch {', '.join(sizes)}"
    return f"{first.config.task}, profile {first.config.profile}, {batch}, {_machine(first)}"


def short_length(length: int) -> str:
    """Write a length like the benchmark's table: 4096 as 4K."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def _conditions(measurement: BenchRecord) -> str:
    """Return all that must be equal in a table, as a key."""
    config = measurement.config
    what = {
        "task": config.task,
        "profile": config.profile,
        "data": {name: value for name, value in config.data.items() if "length" not in name},
        "model": config.model.model_dump(exclude={"max_length"}),
        "train": config.train.model_dump(exclude={"batch_size"}),
        "machine": _machine(measurement),
    }
    return json.dumps(what, sort_keys=True)


def _machine(measurement: BenchRecord) -> str:
    environment = measurement.environment
    name = environment["device"] if measurement.device_type == "cuda" else environment["cpu"]
    threads = f", {measurement.threads} threads" if measurement.device_type == "cpu" else ""
    return f"{name}{threads}, torch {environment['torch']}"


def _caption(measurements: pd.DataFrame) -> str:
    model, train = measurements["measurement"].iloc[0].config.model, measurements["measurement"].iloc[0].config.train
    sizes = f"{model.num_layers} layers, dim {model.dim}, {model.num_heads} heads, mlp {model.mlp_dim}"
    return f"Speed and memory of training by length: {describe(measurements)}, {sizes}, {train.precision}"


def _speed(measurement: BenchRecord) -> str:
    if measurement.status != "ok" or measurement.timing is None:
        return STATUS_WORDS.get(measurement.status, measurement.status)
    ratio = "" if measurement.speed_ratio is None else f" ({measurement.speed_ratio:.2g})"
    return f"{1.0 / measurement.timing.median:.3g}{NOISY if measurement.timing.noisy else ''}{ratio}"


def _memory(measurement: BenchRecord, full: float) -> str:
    if measurement.status != "ok" or measurement.memory is None:
        return STATUS_WORDS.get(measurement.status, measurement.status)
    if measurement.memory.problem:
        return FLAGGED
    ratio = "" if np.isnan(full) else f" ({measurement.memory.total / full:.2f})"
    return f"{measurement.memory.total / 1e9:.3f}{ratio}"


def _remarks(measurements: pd.DataFrame) -> list[str]:
    """Explain the marks that occur, and say under what load and with which counter was measured."""
    taken: Sequence[BenchRecord] = measurements["measurement"].tolist()
    notes = []
    if any(measurement.timing is not None and measurement.timing.noisy for measurement in taken):
        notes.append(f"{NOISY}: the middle half of the step times spreads over more than 10 % of their median.")
    if any(measurement.memory is not None and measurement.memory.problem for measurement in taken):
        notes.append(f"{FLAGGED}: two counters disagree, so there is no number.")
    failures: dict[str, list[str]] = {}
    for measurement in taken:
        if measurement.status == "failed":
            failures.setdefault(measurement.detail[:100], []).append(f"{measurement.variant} at {measurement.length}")
    notes += [f"Failed: {', '.join(sorted(where))}: {detail}." for detail, where in sorted(failures.items())]
    counters = sorted({measurement.memory.counter for measurement in taken if measurement.memory is not None})
    load = max(float(measurement.environment["load_average"]) for measurement in taken)
    return [
        *notes,
        f"Memory: {'; '.join(counters) or NOT_RUN}. Load of the machine when timing began: up to {load:.1f}.",
    ]
