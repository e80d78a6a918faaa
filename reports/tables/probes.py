# SPDX-License-Identifier: Apache-2.0
"""The table of the probes: accuracy at the length that was trained, and at longer ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lra.errors import UsageError
from lra.metrics import at_length, beatable, is_above
from lra.results.records import RunRecord

from ..baselines import all_baselines_of
from ..result_set import ResultSet
from ..statistics import comparable, exact_mean
from .accuracy import lost_words
from .captions import NOT_RUN, number, parameter_notes, preview, provenance_notes, seeds_by_cell, table_caption
from .table import RowKey, Table, Term, as_printed

SOLVED = 90.0
"""Accuracy in % from which a probe counts as solved in the notes."""
ERROR = 0.05
"""Probability that any cell of the table is called learnt by chance, which the cells share."""
KEPT = 5.0
"""Points that a run may lose at a longer length and still carry over to it."""
LOST = Term("(k/n): k of n seeds gave a number; such a row is not marked, and counts as neither learnt nor solved.")


def accuracy_by_length(record: RunRecord, correct: np.ndarray) -> dict[int, float]:
    """Return the test accuracy in % at each length, in the order of the test split.

    Args:
        record: A run of a generated task, whose test split has equally many examples of each length.
        correct: (test examples,), whether each answer was right.
    """
    data = record.config.data
    lengths = _lengths(data)
    return {
        length: 100.0 * float(part.mean())
        for length, part in zip(lengths, np.split(correct, len(lengths)), strict=True)
    }


def _lengths(data: Mapping[str, Any]) -> list[int]:
    return data["test_length"] or [data["length"]]


def scores_by_length(results: ResultSet) -> pd.DataFrame:
    """Return one row for each run of a generated task and each of its lengths.

    The columns are those of the frame of the runs, with `length`, `trained` (the length of training), `head` (of the
    column of a table), `accuracy` (at this length; NaN for a run without a number), `examples` (of this length),
    `chance` and `baseline` (the best at this length that a model can be asked to beat), in percent, and `pooled` (names
    of the baselines that are known of all lengths together only).
    """
    rows = []
    for row in results.frame().to_dict("records"):
        record = results.records.get(row["run_id"])
        data = (record or results.attempts[row["run_id"]]).config.data
        if "test_length" not in data:
            continue
        lengths, trained = _lengths(data), data["length"]
        scores, pooled = dict.fromkeys(lengths, math.nan), ""
        known = {length: {"chance": math.nan} for length in lengths}
        if record is not None and record.outcome is not None:
            scores = accuracy_by_length(record, results.arrays(record.run_id)["test_correct"])
            baselines = all_baselines_of(record)
            known = {length: beatable(at_length(baselines, length, lengths)) for length in lengths}
            pooled = ", ".join(_pooled(baselines, lengths))
        for length, score in scores.items():
            rows.append(
                row
                | {
                    "length": length,
                    "trained": trained,
                    "head": _head(row["column"], length, trained),
                    "accuracy": score,
                    "examples": data["test"],
                    "chance": known[length]["chance"],
                    "baseline": max(known[length].values()),
                    "pooled": pooled,
                }
            )
    return pd.DataFrame(rows)


def _pooled(baselines: Mapping[str, float], lengths: Sequence[int]) -> list[str]:
    """Name the baselines that are not known at each of several lengths of the test; chance is the same at all."""
    if len(lengths) == 1:
        return []
    endings = tuple(f" at {length}" for length in lengths)
    return [
        name
        for name in beatable(baselines)
        if name != "chance" and not name.endswith(endings) and not all(name + ending in baselines for ending in endings)
    ]


def _pooled_notes(scores: pd.DataFrame) -> list[str]:
    """Name for each probe the baselines whose values are those of all lengths together."""
    found = scores[scores["pooled"] != ""].drop_duplicates(["column", "pooled"])
    return [
        f"{column}: known of all lengths together only, and taken for each, which may be wrong by much: {pooled}."
        for column, pooled in zip(found["column"], found["pooled"], strict=True)
    ]


def probes(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate variants by probes: accuracy at the trained length, and at each longer one.

    Raises:
        UsageError: No run of a probe has a number.
    """
    results = results.for_profile(profile, track)
    scores = scores_by_length(results)
    if not len(scores) or scores["accuracy"].isna().all():
        raise UsageError(f"profile {profile}: no run of a probe, or of another generated task, has a number")
    heads = list(dict.fromkeys(scores.sort_values(["column", "length"])["head"]))
    labels = sorted(scores["label"].unique())
    cells = pd.DataFrame(NOT_RUN, index=labels, columns=heads, dtype=object)
    means = pd.DataFrame(np.nan, index=labels, columns=heads)
    for (label, head), group in scores.groupby(["label", "head"]):
        cells.loc[label, head], means.loc[label, head] = _cell(group, len(results.seeds))
    chance = scores.groupby("head")["chance"].first()
    cells.loc["Chance"] = [number(chance[head], "{:.1f}") for head in heads]
    cells_learnt = judged(scores, len(results.seeds))
    values = means.copy()
    for label, head in cells_learnt.loc[~cells_learnt["learnt"], ["label", "head"]].itertuples(index=False):
        values.loc[label, head] = -math.inf
    values.loc["Chance"] = np.nan
    variants = dict(zip(scores["label"], scores["variant"], strict=True))
    keys = [RowKey(label=label, variant=variants[label], score=exact_mean(means.loc[label])) for label in labels]
    frame = results.frame()
    frame = frame[frame["run_id"].isin(scores["run_id"])]
    notes: list[str] = [
        Term("Heads: probe and length of the test examples; x4: four times the length of training."),
        Term(
            "Learnt: above each baseline at that length that knows nothing hidden, with 5 % of error shared by all "
            "cells. Solved: "
            f"{SOLVED:.0f} % or more. Carried over: learnt, and at most {KEPT:.0f} points below the trained length. "
            "Marked: the best among those who learnt."
        ),
        *([LOST] if cells.iloc[:-1].map(lambda cell: "/" in cell).any(axis=None) else []),
        *verdicts(scores, len(results.seeds)),
        *_pooled_notes(scores),
        *parameter_notes(frame),
        *provenance_notes(frame),
    ]
    cells.index.name = values.index.name = None
    return Table(
        caption=table_caption("Accuracy on the probes by length", profile, track, seeds_by_cell(frame)),
        cells=cells,
        values=as_printed(values, 1),
        notes=preview(frame) + notes,
        records=frame["run_id"].tolist(),
        baselines=1,
        unit="%",
        keys=keys,
    )


def _cell(group: pd.DataFrame, expected: int) -> tuple[str, float]:
    """Write the runs of one row at one length, and return their mean: see `whole_mean`.

    Args:
        group: The runs.
        expected: How many seeds a suite asks for; 0 without one.
    """
    found, mean = group["accuracy"].dropna(), whole_mean(group["accuracy"], expected)
    expected = max(expected, len(group))
    words = lost_words(group)
    if len(found):
        count = f" ({len(found)}/{expected})" if len(found) < expected else ""
        words.insert(0, f"{exact_mean(found):.1f}{count}")
    return ", ".join(words), mean


def judged(scores: pd.DataFrame, expected: int = 0) -> pd.DataFrame:
    """Return one row for each variant at each head of the table, with `learnt`.

    Args:
        scores: The frame of `scores_by_length`. The seeds of a variant count as one run with their mean accuracy; a
            variant that lacks one of them at a head is left out there.
        expected: How many seeds a suite asks for; 0 without one.
    """
    cells = scores.groupby(["column", "length", "label"], as_index=False).agg(
        {
            "head": "first",
            "trained": "first",
            "accuracy": functools.partial(whole_mean, expected=expected),
            "examples": "min",
            "baseline": "max",
        }
    )
    cells = cells.dropna(subset=["accuracy"])
    cells["learnt"] = [
        is_above(round(accuracy / 100 * examples), examples, baseline, confidence=1 - ERROR / len(cells))
        for accuracy, examples, baseline in zip(cells["accuracy"], cells["examples"], cells["baseline"], strict=True)
    ]
    return cells


def verdicts(scores: pd.DataFrame, expected: int = 0) -> list[str]:
    """Say for each head of the table which variants learnt it, solved it, and carried it over from a shorter length.

    Args:
        scores: See `judged`.
        expected: See `judged`.
    """
    heads = scores.sort_values(["column", "length"]).drop_duplicates(["column", "length"])[["column", "length", "head"]]
    cells = judged(scores, expected)
    before = cells[cells["length"] == cells["trained"]].set_index(["column", "label"])["accuracy"]
    lost = [
        before.get((column, label), math.inf) for column, label in zip(cells["column"], cells["label"], strict=True)
    ]
    near = comparable(lost - cells["accuracy"]) <= KEPT
    cells["kept"] = cells["learnt"] & (cells["length"] != cells["trained"]) & near
    found = []
    for column, length, head in heads.itertuples(index=False):
        group = cells[(cells["column"] == column) & (cells["length"] == length)]
        solved = group["learnt"] & (comparable(group["accuracy"]) >= SOLVED)
        parts = [
            f"{word} by {', '.join(group['label'][chosen])}"
            for word, chosen in (
                ("solved", solved),
                ("learnt", group["learnt"] & ~solved),
                ("carried over", group["kept"]),
            )
            if chosen.any()
        ]
        found.append(f"{head}: {'; '.join(parts) or 'learnt by no variant'}.")
    return found


def whole_mean(accuracies: pd.Series, expected: int) -> float:
    """Return the mean; NaN if a run has no number, or if there are fewer runs than a suite asks for."""
    return exact_mean(accuracies) if len(accuracies) >= expected else math.nan


def _head(column: str, length: int, trained: int) -> str:
    times = f" (x{length / trained:g})" if length != trained else ""
    return f"{column} {length}{times}"
