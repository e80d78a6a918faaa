# SPDX-License-Identifier: Apache-2.0
"""The data frame of records as a CSV or Parquet file, for other tools."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from lra.errors import UsageError, refusals_as
from lra.terminal import clean_line

from .render import no_formula
from .result_set import ResultSet


def export_frame(results: ResultSet) -> pd.DataFrame:
    """Return one row per run, with the settings as one JSON text, so that every column has one type."""
    frame = results.frame()
    frame["settings"] = [json.dumps(settings, sort_keys=True) for settings in frame["settings"]]
    return frame


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write CSV in which no text is a formula for a spreadsheet or a command for a terminal.

    Raises:
        UsageError: The file cannot be written.
    """
    texts = frame.select_dtypes(include=["object", "string"]).columns
    safe = frame.assign(
        **{
            name: [no_formula(clean_line(text)) if isinstance(text, str) else text for text in frame[name]]
            for name in texts
        }
    )
    with refusals_as(UsageError, f"cannot write {path}"):
        safe.to_csv(path, index=False, lineterminator="\n")


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write Parquet, with the extra `export`.

    Raises:
        UsageError: pyarrow is not installed, or the file cannot be written.
    """
    if find_spec("pyarrow") is None:
        raise UsageError("pyarrow is not installed; pip install 'lra-harness[export]'")
    with refusals_as(UsageError, f"cannot write {path}"):
        frame.to_parquet(path, index=False, engine="pyarrow")
