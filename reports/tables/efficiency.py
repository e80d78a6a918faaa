# SPDX-License-Identifier: Apache-2.0
"""The table of speed and memory by length, from the measurements of `lra-bench`, laid out like table 2 of the paper."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lra.config.labels import EXECUTION, NOT_IN_STEP, profiles_of_steps, settings_of
from lra.config.schema import without_folder
from lra.errors import UsageError
from lra.results.bench_format import (
    FLAGGED,
    NOISY_NOTE,
    REFERENCE,
    STATE_NOTE,
    highest_load,
    memory_text,
    short_length,
    speed_text,
    state_text,
    table_2_columns,
)
from lra.results.bench_records import BenchRecord
from lra.results.dataframe import conditions_of_speed, label_rows

from ..result_set import ResultSet
from .captions import NOT_RUN
from .table import RowKey, Table, Term


def measurement_groups(results: ResultSet) -> list[pd.DataFrame]:
    """Return frames of measurements that one table can hold: one machine, task, model and recipe.

    Columns: `label` (variant, with its options where they differ), `is_reference` (whether it is full attention with
    its only options), `length`, `batch`, `seconds` per step and `bytes` at peak (both may be missing), `measurement`,
    `machine`, `recipe` (the profile, with the settings that are not its own), and `place`, which no other frame has.
    Batches may differ by length, as with equal tokens in each step. If one length was measured with several batches, be
    it of different variants, each batch has a frame of its own: within a length, all is comparable. Of several
    measurements of one thing, such as in two stores, the newest counts.
    """
    taken = sorted(results.measurements, key=lambda measurement: measurement.measured_at)
    machines = conditions_of_speed([_machine(each) for each in taken], [each.environment for each in taken])
    recipes = profiles_of_steps([each.config for each in taken])
    rows = [
        {
            "key": _conditions(measurement, machine),
            "machine": machine,
            "recipe": recipe,
            "variant": measurement.variant,
            "variant_title": results.naming.titles[measurement.variant, measurement.config.variant.origin],
            "column": "",
            "profile": measurement.config.profile,
            "task": without_folder(measurement.config.task),
            "settings": {
                name: value
                for name, value in settings_of(measurement.config).items()
                if name.startswith("variant.") or name == "model.positions"
            },
            "length": measurement.length,
            "batch": measurement.batch_size,
            "seconds": np.nan if measurement.timing is None else measurement.timing.median,
            # Memory comes first: one that did not fit when it was timed has it all the same, and no cell with it.
            "bytes": measurement.memory.total
            if measurement.status == "ok" and measurement.memory and not measurement.memory.problem
            else np.nan,
            "measurement": measurement,
        }
        for measurement, machine, recipe in zip(taken, machines, recipes, strict=True)
    ]
    groups: list[pd.DataFrame] = []
    for _, group in pd.DataFrame(rows).groupby("key") if rows else []:
        apart = NOT_IN_STEP | set(EXECUTION)  # the recipe of a table names how its steps compute
        names = pd.Series(label_rows(group, apart, name="variant", elsewhere=results.naming.differing), group.index)
        labelled = group.assign(
            label=label_rows(group, apart, elsewhere=results.naming.differing), is_reference=names == REFERENCE
        )
        same_place = ["label", "length"]
        split = bool((labelled.groupby("length")["batch"].nunique() > 1).any())
        parts = [part for _, part in labelled.groupby("batch")] if split else [labelled]
        groups += [part.drop_duplicates(same_place, keep="last") for part in parts]
    places = [f"{_what(group)}, {group['measurement'].iloc[0].processor}" for group in groups]
    return [
        group.assign(place=place if places.count(place) == 1 else describe(group))
        for group, place in zip(groups, places, strict=True)
    ]


def efficiency(measurements: pd.DataFrame) -> Table:
    """Tabulate speed and peak memory by length, each with its ratio to full attention, and the state at the longest.

    Args:
        measurements: One of the frames of `measurement_groups`.
    """
    lengths = sorted(measurements["length"].unique())
    labels = labels_in_order(measurements)
    speeds, memories = table_2_columns(lengths)
    state = f"state {short_length(lengths[-1])}"
    columns = [*speeds, *memories, state]
    cells = pd.DataFrame(NOT_RUN, index=labels, columns=columns, dtype=object)
    cells[state] = "not measured"  # at this length
    values = pd.DataFrame(np.nan, index=labels, columns=columns)
    full = {record.length: record for record in measurements["measurement"][measurements["is_reference"]]}
    for row in measurements.to_dict("records"):
        label, place = row["label"], lengths.index(row["length"])
        speed, memory = speeds[place], memories[place]
        cells.loc[label, speed] = speed_text(row["measurement"])
        cells.loc[label, memory] = memory_text(row["measurement"], full.get(row["length"]))
        if row["length"] == lengths[-1]:
            cells.loc[label, state] = state_text(row["measurement"])
        values.loc[label, speed] = float(f"{1.0 / row['seconds']:.3g}")
        values.loc[label, memory] = -round(row["bytes"] / 1e9, 3)
    variants = dict(zip(measurements["label"], measurements["variant"], strict=True))
    keys = [RowKey(label=label, variant=variants[label], score=float(values[speeds[-1]][label])) for label in labels]
    notes = [
        _conditions_note(measurements),
        Term("In brackets: relative to full attention; for speed measured in turns with it."),
        Term("steps/s: median of single steps with forward, backward and optimiser."),
        Term("GB: peak of a step with parameters and optimiser state, 10^9 bytes."),
        Term(STATE_NOTE),
        *_remarks(measurements),
    ]
    ids = [measurement.settings_id for measurement in measurements["measurement"]]
    caption = f"Speed and memory of training by length: {measurements['place'].iloc[0]}"
    return Table(caption=caption, cells=cells, values=values, notes=notes, records=ids, keys=keys)


def efficiency_tables(results: ResultSet) -> list[Table]:
    """Make one table for each machine and recipe that was measured.

    Raises:
        UsageError: The store has no measurements.
    """
    groups = measurement_groups(results)
    if not groups:
        raise UsageError("no measurements of lra-bench here; lra-bench --preset lra makes them")
    return [efficiency(group) for group in groups]


def labels_in_order(measurements: pd.DataFrame) -> list[str]:
    """List the labels in alphabetical order, after that of full attention."""
    pairs = set(zip(~measurements["is_reference"], measurements["label"], strict=True))
    return [label for _, label in sorted(pairs)]


def describe(measurements: pd.DataFrame) -> str:
    """Describe the machine and the recipe of measurements in one line."""
    by_batch = {
        str(batch): ", ".join(short_length(n) for n in sorted(part["length"].unique()))
        for batch, part in measurements.groupby("batch")
    }
    sizes = [f"{batch} ({lengths})" if len(by_batch) > 1 else batch for batch, lengths in by_batch.items()]
    batch = f"batch {', '.join(sizes)}"
    return f"{_what(measurements)}, {batch}, {measurements['machine'].iloc[0]}"


def _what(measurements: pd.DataFrame) -> str:
    return f"{measurements['task'].iloc[0]}, profile {measurements['recipe'].iloc[0]}"


def _conditions(measurement: BenchRecord, machine: str) -> str:
    """Return everything that must be equal within a table, as a key."""
    what = measurement.config.hashed()
    for name in ("variant", "track", "seed"):
        del what[name]
    del what["model"]["max_length"], what["train"]["batch_size"]
    what["data"] = {name: value for name, value in what["data"].items() if "length" not in name}
    return json.dumps(what | {"machine": machine}, sort_keys=True)


def _machine(measurement: BenchRecord) -> str:
    threads = f", {measurement.threads} threads" if measurement.device_type == "cpu" else ""
    limit = "" if measurement.memory_limit is None else f", memory limit {measurement.memory_limit / 2**30:.3g} GiB"
    settings = f", {found}" if (found := measurement.environment.get("library_settings")) else ""
    return f"{measurement.processor}{threads}{limit}, torch {measurement.environment['torch']}{settings}"


def _conditions_note(measurements: pd.DataFrame) -> str:
    model, train = measurements["measurement"].iloc[0].config.model, measurements["measurement"].iloc[0].config.train
    sizes = f"{model.num_layers} layers, dim {model.dim}, {model.num_heads} heads, mlp {model.mlp_dim}"
    return f"Measured: {describe(measurements)}, {sizes}, {train.precision}."


def _remarks(measurements: pd.DataFrame) -> list[str]:
    """Explain the marks that occur, and name the memory counter and the load of the machine."""
    taken: Sequence[BenchRecord] = measurements["measurement"].tolist()
    notes = []
    if any(measurement.timing is not None and measurement.timing.noisy for measurement in taken):
        notes.append(NOISY_NOTE)
    if any(measurement.memory is not None and measurement.memory.problem for measurement in taken):
        notes.append(f"{FLAGGED}: two counters disagree, so there is no number.")
    failures: dict[str, list[str]] = {}
    for measurement in taken:
        if measurement.status == "failed":
            failures.setdefault(measurement.detail[:100], []).append(
                f"{measurement.variant_title} at {measurement.length}"
            )
    notes += [f"Failed: {', '.join(sorted(places))}: {detail}." for detail, places in sorted(failures.items())]
    counters = sorted({measurement.memory.counter for measurement in taken if measurement.memory is not None})
    load = highest_load(taken)
    return [
        *notes,
        f"Memory: {'; '.join(counters) or NOT_RUN}. Load of the machine when timing began: up to {load:.1f}.",
    ]
