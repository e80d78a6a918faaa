# SPDX-License-Identifier: Apache-2.0
"""The table of the probes: accuracy at the length that was trained, and at longer ones."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lra.errors import UsageError
from lra.metrics import beatable, is_above
from lra.results.records import RunRecord

from ..result_set import ResultSet
from .captions import NOT_RUN, parameter_notes, preview, provenance_notes, table_caption
from .table import RowKey, Table, Term

SOLVED = 90.0
"""Accuracy in % from which a probe counts as solved in the notes."""
ERROR = 0.05
"""Probability that any cell of the table is called learnt by chance, which the cells share."""
KEPT = 5.0
"""Points that a run may lose at a longer length and still carry over to it."""


def accuracy_by_length(record: RunRecord, correct: np.ndarray) -> dict[int, float]:
    """Return the test accuracy in % at each length, in the order of the test split.

    Args:
        record: A run of a generated task, whose test split has equally many examples of each length.
        correct: (test examples,), whether each answer was right.
    """
    data = record.config.data
    lengths = data["test_length"] or [data["length"]]
    return {
        length: 100.0 * float(part.mean())
        for length, part in zip(lengths, np.split(correct, len(lengths)), strict=True)
    }


def scores_by_length(results: ResultSet) -> pd.DataFrame:
    """Return one row for each run of a generated task and each of its lengths.

    The columns are those of the frame of the runs, with `length`, `trained` (the length of training), `head` (of the
    column of a table), `accuracy` (at this length), `examples` (of this length), `chance` and `baseline` (the best that
    a model can be asked to beat), in percent.
    """
    rows = []
    for row in results.frame().to_dict("records"):
        record = results.records.get(row["run_id"])
        if record is None or record.outcome is None or "test_length" not in record.config.data:
            continue
        correct = results.arrays(record.run_id)["test_correct"]
        for length, score in accuracy_by_length(record, correct).items():
            trained = record.config.data["length"]
            rows.append(
                row
                | {
                    "length": length,
                    "trained": trained,
                    "head": _head(row["column"], length, trained),
                    "accuracy": score,
                    "examples": record.config.data["test"],
                    "chance": record.baselines["chance"],
                    "baseline": max(beatable(record.baselines).values()),
                }
            )
    return pd.DataFrame(rows)


def probes(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate variants by probes: accuracy at the trained length, and at each longer one.

    Raises:
        UsageError: No run of a probe has a number.
    """
    results = results.for_profile(profile, track)
    scores = scores_by_length(results)
    if not len(scores):
        raise UsageError(f"profile {profile}: no run of a probe, or of another generated task, has a number")
    heads = list(dict.fromkeys(scores.sort_values(["column", "length"])["head"]))
    labels = sorted(scores["label"].unique())
    means = scores.pivot_table(index="label", columns="head", values="accuracy").reindex(index=labels, columns=heads)
    cells = means.map(lambda value: NOT_RUN if np.isnan(value) else f"{value:.1f}").astype(object)
    chance = scores.groupby("head")["chance"].first()
    cells.loc["Chance"] = [f"{chance[head]:.1f}" for head in heads]
    values = means.copy()
    values.loc["Chance"] = np.nan
    variants = dict(zip(scores["label"], scores["variant"], strict=True))
    keys = [RowKey(label=label, variant=variants[label], score=float(means.loc[label].mean())) for label in labels]
    frame = results.frame()
    frame = frame[frame["run_id"].isin(scores["run_id"])]
    notes: list[str] = [
        Term("Heads: probe and length of the test examples; x4: four times the length of training."),
        Term(
            "Learnt: above each baseline that knows nothing hidden, with 5 % of error shared by all cells. Solved: "
            f"{SOLVED:.0f} % or more. Carried over: learnt, and at most {KEPT:.0f} points below the trained length."
        ),
        *verdicts(scores),
        *parameter_notes(frame),
        *provenance_notes(frame),
    ]
    cells.index.name = values.index.name = None
    return Table(
        caption=table_caption("Accuracy on the probes by length", profile, track, frame),
        cells=cells,
        values=values,
        notes=preview(frame) + notes,
        records=frame["run_id"].tolist(),
        baselines=1,
        unit="%",
        keys=keys,
    )


def verdicts(scores: pd.DataFrame) -> list[str]:
    """Say for each head of the table which variants learnt it, solved it, and carried it over from a shorter length.

    Args:
        scores: The frame of `scores_by_length`. The seeds of a variant count as one run with their mean accuracy.
    """
    cells = scores.groupby(["column", "length", "label"], as_index=False).agg(
        {"head": "first", "trained": "first", "accuracy": "mean", "examples": "min", "baseline": "max"}
    )
    cells["learnt"] = [
        is_above(round(accuracy / 100 * examples), examples, baseline, confidence=1 - ERROR / len(cells))
        for accuracy, examples, baseline in zip(cells["accuracy"], cells["examples"], cells["baseline"], strict=True)
    ]
    before = cells[cells["length"] == cells["trained"]].set_index(["column", "label"])["accuracy"]
    lost = [
        before.get((column, label), math.inf) for column, label in zip(cells["column"], cells["label"], strict=True)
    ]
    cells["kept"] = cells["learnt"] & (cells["length"] != cells["trained"]) & (lost - cells["accuracy"] <= KEPT)
    found = []
    for (_, _), group in cells.groupby(["column", "length"]):
        solved = group["learnt"] & (group["accuracy"] >= SOLVED)
        parts = [
            f"{word} by {', '.join(group['label'][chosen])}"
            for word, chosen in (
                ("solved", solved),
                ("learnt", group["learnt"] & ~solved),
                ("carried over", group["kept"]),
            )
            if chosen.any()
        ]
        found.append(f"{group['head'].iloc[0]}: {'; '.join(parts) or 'learnt by no variant'}.")
    return found


def _head(column: str, length: int, trained: int) -> str:
    times = f" (x{length / trained:g})" if length != trained else ""
    return f"{column} {length}{times}"
