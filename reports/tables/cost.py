# SPDX-License-Identifier: Apache-2.0
"""The table of the cost of training: speed, memory, operations and parameters."""

from __future__ import annotations

import math

import pandas as pd

from lra.results.bench_format import is_reference

from ..result_set import ResultSet
from .accuracy import accuracy_cell, lost_words
from .captions import number, parameter_notes, provenance_notes, table_caption
from .table import Table, Term, plain_table

FLOPS_NOTE = Term(
    "Operations: of one example of the longest length, forward and backward, a multiplication and an addition being "
    "two; matrix products, convolutions and fused attention only."
)
_MEASURED = (
    ("speed (tokens/s)", "tokens_per_second", 1.0, "{:,.0f}"),
    ("peak memory (MiB)", "peak_bytes", 2**20, "{:,.0f}"),
    ("operations (MFLOPs)", "flops", 1e6, "{:,.1f}"),
)
"""Head, column of the frame, unit and form of each cost that is a median over seeds."""
_WITHOUT_FULL = (
    "No ratios, since no run of full attention with its default options, the same recipe and device is in the table: "
)


def cost(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate the cost of training, relative to full attention by default options, on the same task and device."""
    results = results.for_profile(profile, track)
    frame = results.frame()
    rows, scores, alone = [], [], list[str]()
    frame["conditions"] = [_recipe(settings) for settings in frame["settings"]]
    full = [run_id for run_id, record in results.records.items() if is_reference(record.config)]
    for (column, device, label), group in frame.dropna(subset=["parameters"]).groupby(["column", "device", "label"]):
        peers = frame[(frame["column"] == column) & (frame["device"] == device) & frame["run_id"].isin(full)]
        base = peers[peers["conditions"] == group["conditions"].iloc[0]]
        parameters, reference = int(group["parameters"].iloc[0]), group["parameters_full"].iloc[0]
        row = {"task": str(column), "variant": str(label), "device": str(device)}
        alone += [f"{label} on {column}"] if base.empty else []
        for name, source, unit, form in _MEASURED:
            value = median(group[source])
            row |= {
                name: number(value / unit, form),
                f"{name.partition(' (')[0]} (x full)": number(value / median(base[source]), "{:.2f}"),
            }
        row |= {"parameters": f"{parameters:,}", "parameters (x full)": number(parameters / reference, "{:.3f}")}
        rows.append(row | {"backend": ", ".join(sorted(set(group["backend"])))})
        all_runs = frame[(frame["column"] == column) & (frame["label"] == label)]
        scores.append(accuracy_cell(all_runs, len(results.seeds))[1])
    methods = sorted({record.cost.peak_memory_method for record in results.records.values()})
    notes = [
        Term("Cost: medians over seeds, measured during training; other work may have run on the same machine."),
        Term("x full: relative to full attention with its default options and the same recipe."),
        f"Memory: {'; '.join(methods)}.",
        FLOPS_NOTE,
        *_without_cost(frame, len(results.seeds)),
        *([_WITHOUT_FULL + ", ".join(dict.fromkeys(alone)) + "."] if alone else []),
        *parameter_notes(frame),
        *provenance_notes(frame),
    ]
    return plain_table(table_caption("Cost of training", profile, track, frame), rows, notes, frame, scores)


def _without_cost(frame: pd.DataFrame, seeds: int) -> list[str]:
    """Name the rows of which a run lacks a cost that others have, or a seed that a suite asks for has no run.

    Args:
        frame: The runs.
        seeds: How many a suite asks for; 0 without one.
    """
    notes = []
    for (column, label), group in frame.groupby(["column", "label"]):
        shown = [source for _, source, *_ in _MEASURED if group[source].notna().any()]
        lost = group[["parameters", *shown]].isna().any(axis=1)
        found, expected = int((~lost).sum()), max(seeds, len(group))
        if found < expected:
            what = f"the cost of {found} of {expected} runs" if found else "no cost"
            words = ", ".join(lost_words(group, lost & (group["status"] != "ok")))
            notes.append(f"{label} on {column} has {what}{f': {words}' if words else ''}.")
    return notes


def median(column: pd.Series) -> float:
    """Return the median of the values that are there; NaN if there are none."""
    return float(column.median()) if column.notna().any() else math.nan


def _recipe(settings: dict[str, object]) -> str:
    """Return all settings but the variant's own, as a key."""
    return repr({name: value for name, value in settings.items() if not name.startswith("variant.")})
