# SPDX-License-Identifier: Apache-2.0
"""Long Range Arena harness: tasks, prepared data, shared models, strict configuration, records and checkpoints.

`load_run` gives the model of a run with its weights, and `load_results` the records of a store as a data frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from lra.trained import TrainedRun


def load_run(run: str | Path, store: str | Path = "lra-results") -> TrainedRun:
    """Find a run that was trained, by the file of its record or by its id: see `lra.trained.load_run`."""
    from lra import trained  # here, so that importing this package does not import torch

    return trained.load_run(run, store)


def load_results(store: str | Path = "lra-results") -> pd.DataFrame:
    """Return the records of a store as a tidy data frame, one row per run: see `lra.results.dataframe.load`."""
    from lra.results import load

    return load(store)


__all__ = ["load_results", "load_run"]
