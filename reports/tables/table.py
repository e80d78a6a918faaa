# SPDX-License-Identifier: Apache-2.0
"""`Table`, the form of every table: text cells with the numbers that decide which of them are marked as best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(kw_only=True)
class Table:
    """Text cells with the numbers that decide which of them are marked as best."""

    caption: str
    cells: pd.DataFrame
    """Text; the index holds the names of the rows, unless it is a plain range."""
    values: pd.DataFrame
    """Numbers of the same shape; higher is better, and NaN takes no part in the comparison."""
    notes: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    """Ids of the runs that the table was made from."""
    baselines: int = 0
    """How many of the last rows are trivial baselines, which are set apart from the variants."""


def plain_table(caption: str, rows: Sequence[dict[str, str]], notes: list[str], frame: pd.DataFrame) -> Table:
    """Make a table without marks."""
    cells = pd.DataFrame(list(rows))
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    return Table(caption=caption, cells=cells, values=values, notes=notes, records=frame["run_id"].tolist())
