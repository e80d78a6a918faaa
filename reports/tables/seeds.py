# SPDX-License-Identifier: Apache-2.0
"""The table of test accuracy over seeds: intervals, extremes, and how many runs learnt anything."""

from __future__ import annotations

import math

from lra.metrics import wilson_interval

from ..result_set import ResultSet
from ..statistics import exact_mean, mean_with_interval
from .accuracy import is_above_chance
from .captions import NOT_RUN, preview, provenance_notes, seeds_by_cell, table_caption
from .table import Table, Term, plain_table


def seeds(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate each variant on each task over its seeds: interval, extremes, and how many runs learnt anything."""
    results = results.for_profile(profile, track)
    frame = results.frame()
    rows, scores = [], []
    for (column, label), group in frame.groupby(["column", "label"]):
        found = group["accuracy"].dropna()
        expected = max(len(results.seeds), len(group))
        whole = len(found) == expected
        scores.append(exact_mean(found) if whole else math.nan)
        runs = str(expected) if whole else f"{len(found)} of {expected}"
        row = {"task": str(column), "variant": str(label), "runs": runs}
        row |= dict.fromkeys(("mean (%)", "interval (%)", "lowest (%)", "highest (%)", "above chance"), NOT_RUN)
        if len(found):
            estimate = mean_with_interval(found.tolist())
            low, high, kind = estimate.low, estimate.high, "t"
            if estimate.count == 1:
                single = group.loc[found.index[0]]
                low, high = (100 * bound for bound in wilson_interval(int(single["correct"]), int(single["total"])))
                kind = "Wilson"
            interval = f"{low:.2f} to {high:.2f} ({kind})" if low < high else NOT_RUN
            row |= {"mean (%)": f"{estimate.mean:.2f}", "interval (%)": interval}
            learnt = sum(is_above_chance(results, run_id) for run_id in group["run_id"])
            row |= {"lowest (%)": f"{found.min():.2f}", "highest (%)": f"{found.max():.2f}"}
            row["above chance"] = f"{learnt}/{len(found)}"
        rows.append(row)
    notes: list[str] = [
        Term(
            "Interval: 95 %, Student's t over seeds. With a single run: Wilson over test examples, which says nothing "
            "about other seeds."
        ),
        Term("Runs: those with a number, and of how many if some have none; mean and interval are over those."),
        Term(
            "Above chance: above every answer that needs no input, by more than the noise of the test set; of the "
            "runs with a number."
        ),
    ]
    if any(row["interval (%)"] == NOT_RUN != row["mean (%)"] for row in rows):
        notes.append(f"{NOT_RUN} for an interval: all seeds have one score, and equal scores have no spread.")
    notes = preview(frame) + notes + provenance_notes(frame)
    title = table_caption("Test accuracy over seeds", profile, track, seeds_by_cell(frame))
    return plain_table(title, rows, notes, frame, scores)
