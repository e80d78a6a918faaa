# SPDX-License-Identifier: Apache-2.0
"""`Table`, the form of every table: text cells, the numbers that decide on marks, and what rows are sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import pandas as pd

from attention_zoo.registry import Family, get_variant, is_known
from lra.errors import UsageError


class Term(str):
    """A note `WORD: meaning`, which holds for every table with this word; other notes hold for their table alone."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """What a row is sorted by, among the rows of its task."""

    label: str
    """Name of the row."""
    variant: str
    """Registered name of its variant."""
    score: float
    """Higher is better; NaN comes last."""
    task: str = ""


@dataclass(kw_only=True)
class Table:
    """Text cells with the numbers that decide which of them are marked as best."""

    caption: str
    cells: pd.DataFrame
    """Text; the index holds the names of the rows, unless it is a plain range."""
    values: pd.DataFrame
    """Numbers of the same shape, rounded as in the text; higher is better. NaN takes no part in the comparison, and
    -inf has no mark."""
    notes: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    """Ids of the runs that the table was made from."""
    baselines: int = 0
    """How many of the last rows are trivial baselines, which are set apart from the variants."""
    unit: str = ""
    """Unit of all numbers, which stands in the head of each column; empty if each head has its own."""
    keys: list[RowKey] = field(default_factory=list)
    """One for each row before the baselines; empty if the rows cannot be sorted otherwise."""
    name: str = "table"
    """Name for references from a text: preset, profile and track."""


def as_printed(values: pd.DataFrame, decimals: int) -> pd.DataFrame:
    """Round numbers as their cells are printed, so that equal ones share a mark."""
    return values.map(lambda value: float(f"{value:.{decimals}f}"))


def plain_table(
    caption: str,
    rows: Sequence[dict[str, str]],
    notes: list[str],
    frame: pd.DataFrame,
    scores: Sequence[float] = (),
) -> Table:
    """Make a table without marks.

    Args:
        caption: What the table shows.
        rows: Cells by head of the column.
        notes: What stands below.
        frame: The runs behind it.
        scores: One for each row, if the rows can be sorted: higher is better.
    """
    cells = pd.DataFrame(list(rows))
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    variants = dict(zip(frame["label"], frame["variant"], strict=True))
    keys = [
        RowKey(
            label=row["variant"],
            variant=variants.get(row["variant"], row["variant"]),
            score=score,
            task=row.get("task", ""),
        )
        for row, score in zip(rows, scores, strict=bool(scores))
    ]
    return Table(caption=caption, cells=cells, values=values, notes=notes, records=frame["run_id"].tolist(), keys=keys)


def sort_rows(table: Table, by: str) -> Table:
    """Return a table with its rows in another order; tasks keep theirs, and baselines stay below.

    Args:
        table: What to sort.
        by: `score`, best first; `family` of the variant, then name; or `name`.

    Raises:
        UsageError: The rows of this table have an order of their own.
    """
    if not table.keys:
        raise UsageError("--sort: the rows of this table have one order only")
    tasks = list(dict.fromkeys(key.task for key in table.keys))

    def place(row: int) -> tuple[float, ...]:
        key = table.keys[row]
        first = {"score": math.inf if math.isnan(key.score) else -key.score, "family": _family(key.variant), "name": 0}
        return tasks.index(key.task), first[by], names.index(key.label)

    names = sorted({key.label for key in table.keys}, key=str.casefold)
    order = sorted(range(len(table.keys)), key=place)
    rows = [*order, *range(len(order), len(table.cells))]
    cells, values = table.cells.iloc[rows], table.values.iloc[rows]
    if isinstance(table.cells.index, pd.RangeIndex):  # rows without names
        cells, values = cells.reset_index(drop=True), values.reset_index(drop=True)
    keys = [table.keys[row] for row in order]
    return replace(
        table, cells=cells, values=values, keys=keys, notes=table.notes + (family_notes(keys) if by == "family" else [])
    )


def family_notes(keys: Sequence[RowKey]) -> list[str]:
    """Name the variants of each family, for a table that is sorted by family."""
    members: dict[int, list[str]] = {}
    for key in keys:
        labels = members.setdefault(_family(key.variant), [])
        labels += [] if key.label in labels else [key.label]
    words = [f"{get_args(Family)[place]} ({', '.join(labels)})" for place, labels in sorted(members.items())]
    return [f"Sorted by family: {'; '.join(words)}."]


def _family(variant: str) -> int:
    """Return the place of the family of a variant; what cannot be imported here is of the family `other`."""
    family: Family = "other"
    if is_known(variant):
        try:
            family = get_variant(variant).family
        except Exception:  # noqa: BLE001 - whatever another's plug-in raises: a table of records does without it
            family = "other"
    return get_args(Family).index(family)
