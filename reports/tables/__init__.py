# SPDX-License-Identifier: Apache-2.0
"""Tables of runs and measurements: each function takes a result set and returns a `Table` of text cells."""

from .accuracy import accuracy
from .calibration import calibration
from .comparisons import ablation, head_to_head, ranks
from .cost import cost
from .depth import depth
from .efficiency import efficiency_tables
from .probes import probes
from .published import vs_published
from .seeds import seeds
from .table import Table, sort_rows

__all__ = [
    "Table",
    "ablation",
    "accuracy",
    "calibration",
    "cost",
    "depth",
    "efficiency_tables",
    "head_to_head",
    "probes",
    "ranks",
    "seeds",
    "sort_rows",
    "vs_published",
]
