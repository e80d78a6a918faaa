"""What every table is: text cells, with what is needed to mark the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(kw_only=True)
class Table:
    """Text cells with what is needed to mark the best ones."""

    caption: str
    cells: pd.DataFrame
    """Text; the index holds the rows' names, unless it is a plain range."""
    values: pd.DataFrame
    """Numbers of the same shape, higher is better, NaN where a cell takes no part."""
    notes: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    """Ids of the cells that the table was made from."""


def plain_table(caption: str, rows: Sequence[dict[str, str]], notes: list[str], frame: pd.DataFrame) -> Table:
    """Make a table in which no cell is marked as best."""
    cells = pd.DataFrame(list(rows))
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    return Table(caption=caption, cells=cells, values=values, notes=notes, records=frame["run_id"].tolist())
