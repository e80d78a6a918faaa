# SPDX-License-Identifier: Apache-2.0
"""The table of test accuracy by number of layers."""

from __future__ import annotations

from lra.errors import UsageError
from lra.results.dataframe import label_rows

from ..result_set import ResultSet
from .accuracy import accuracy_cell
from .captions import NOT_RUN, number, preview, provenance_notes, seeds_by_cell, table_caption
from .cost import FLOPS_NOTE, median, partly_measured
from .table import Table, Term, plain_table

COSTS = {"operations": "flops", "step time": "step_seconds"}
"""Costs in the table, and their columns of the frame."""


def depth(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate accuracy, operations and time by number of layers: one row per task, variant and number.

    Raises:
        UsageError: All runs have the same number.
    """
    frame = results.for_profile(profile, track).frame()
    if frame["layers"].nunique() == 1:
        raise UsageError(f"all runs under profile {profile}, {track} track, have the same number of layers")
    frame["label"] = label_rows(frame, leave_out=["model.num_layers"], elsewhere=results.naming.differing)
    frame["step_seconds"] = frame["batch_size"] / frame["examples_per_second"]
    seed_count = len(results.seeds)
    rows, scores = [], []
    for (column, label, layers), group in frame.groupby(["column", "label", "layers"]):
        times = [
            number(median(part["step_seconds"]), "{:.3f}") + ("" if frame["device"].nunique() == 1 else f" ({device})")
            for device, part in group.groupby("device")
        ]
        counts = {
            str(device): number(median(part["flops"]) / 1e6, "{:,.1f}") for device, part in group.groupby("device")
        }
        if len(set(counts.values())) > 1:
            counts = {device: f"{text} ({device})" for device, text in counts.items()}
        text, mean = accuracy_cell(group, seed_count)
        scores.append(mean)
        rows.append(
            {
                "task": str(column),
                "variant": str(label),
                "layers": str(layers),
                "test accuracy (%)": text,
                "operations (MFLOPs)": ", ".join(dict.fromkeys(counts.values())) or NOT_RUN,
                "step time (s)": ", ".join(times) or NOT_RUN,
            }
        )
    notes: list[str] = [
        FLOPS_NOTE,
        Term("Step time: median over seeds; other work may have run on the same machine."),
        *partly_measured(frame, seed_count, ["label", "column", "layers"], COSTS),
    ]
    notes = preview(frame) + notes + provenance_notes(frame)
    title = table_caption("Test accuracy by depth", profile, track, seeds_by_cell(frame))
    return plain_table(title, rows, notes, frame, scores)
