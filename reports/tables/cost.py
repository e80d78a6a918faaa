# SPDX-License-Identifier: Apache-2.0
"""The table of the cost of training: speed, memory, operations and parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from lra.config.schema import canonical_json
from lra.results.bench_format import is_reference

from ..result_set import ResultSet
from .accuracy import accuracy_cell, lost_words
from .captions import number, parameter_notes, provenance_notes, seeds_by_cell, table_caption
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
_NAMES = {name.partition(" (")[0]: source for name, source, *_ in _MEASURED}
"""Column of the frame by the cost's name in a sentence, which is its head without the unit."""
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
        where = f" on {device}" if frame["device"].nunique() > 1 else ""
        alone += [f"{label} on {column}{where}"] if base.empty else []
        for name, source, unit, form in _MEASURED:
            value, whole = median(group[source]), median(base[source]) or math.nan  # no ratio to a peak of no bytes
            row |= {
                name: number(value / unit, form),
                f"{name.partition(' (')[0]} (x full)": number(value / whole, "{:.2f}"),
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
        *partly_measured(frame, len(results.seeds), ["label", "column"], _NAMES),
        *([_WITHOUT_FULL + ", ".join(dict.fromkeys(alone)) + "."] if alone else []),
        *parameter_notes(frame),
        *provenance_notes(frame),
    ]
    there = ["parameters", *(source for source in _NAMES.values() if frame[source].notna().any())]
    fewest, most = zip(*(seeds_by_cell(frame, source, ["device"]) for source in there), strict=True)
    title = table_caption("Cost of training", profile, track, (min(fewest), max(most)))
    return plain_table(title, rows, notes, frame, scores)


def partly_measured(frame: pd.DataFrame, seeds: int, places: Sequence[str], costs: Mapping[str, str]) -> list[str]:
    """Name the rows whose costs are medians over some of their runs, as others lack one or ran on another device.

    Args:
        frame: The runs.
        seeds: How many a suite asks for; 0 without one.
        places: The columns of the frame that tell rows of the table apart: label, heading, and layers if these count.
        costs: The costs that the table shows, and their columns of the frame.
    """
    notes = []
    for place, group in frame.groupby(list(places)):
        known = {name: group[column].notna() for name, column in costs.items() if group[column].notna().any()}
        parts: dict[str, list[str]] = {}  # of how many runs -> which costs
        for name, here in known.items():
            parts.setdefault(_share(group, here, max(seeds, len(group))), []).append(name)
        what = [f"{' and '.join(names)} of {words}" for words, names in parts.items() if words]
        if len(parts) == 1 and what:
            what = [f"the cost of {words}" for words in parts]
        if what or not known:
            incomplete = pd.DataFrame(known, index=group.index).sum(axis=1) < max(1, len(known))
            lost = ", ".join(lost_words(group, incomplete & (group["status"] != "ok")))
            label, column, *layers = place
            row = f"{label} on {column}" + "".join(f" with {count} layers" for count in layers)
            notes.append(f"{row} has {', '.join(what) or 'no cost'}{f': {lost}' if lost else ''}.")
    return notes


def _share(group: pd.DataFrame, known: pd.Series, expected: int) -> str:
    """Say how many of the expected runs of a row have a known cost, on each device; empty if one has them all."""
    counts = group[known].groupby("device").size()
    if list(counts) == [expected]:
        return ""
    several = group["device"].nunique() > 1
    return " and of ".join(
        f"{count} of {expected} runs" + (f" on {device}" if several else "") for device, count in counts.items()
    )


def median(column: pd.Series) -> float:
    """Return the median of the values that are there; NaN if there are none."""
    return float(column.median()) if column.notna().any() else math.nan


def _recipe(settings: dict[str, object]) -> str:
    """Return all settings but the variant's own, as a key."""
    own = {name: value for name, value in settings.items() if not name.startswith("variant.")}
    return canonical_json(own).decode()  # whatever the order of the keys in the file of the record
