# SPDX-License-Identifier: Apache-2.0
"""Published numbers with their sources, and the table that sets our numbers against them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field

from lra.config.schema import Section, validate_section
from lra.config.yaml_loader import load_file
from lra.errors import UsageError

from ..result_set import ResultSet
from .accuracy import accuracy_cell
from .captions import NOT_RUN, preview, provenance_notes, table_caption
from .table import Table, Term, plain_table

OTHER_RECIPE = "other recipe"


class Published(Section):
    """The table of test accuracies of one source, in percent."""

    name: str
    title: str
    source: str
    profile: str
    """Our profile with the sizes of this source; empty if there is none."""
    flags: list[str]
    """Known reasons why the numbers are not comparable with clean ones; docs/reports.md explains each."""
    row_flags: dict[str, list[str]] = Field(default_factory=dict)
    """Further reasons that apply to single rows."""
    notes: dict[str, str] = Field(default_factory=dict)
    columns: list[str]
    """Tasks, in the order of the rows' values."""
    rows: dict[str, list[float | None]]
    """By registered name; null where the source says that the model failed."""
    average: Literal["A5", "A6"] = "A5"
    """Mean of the five tasks, or of six with Path-X counted as 50 where it failed."""
    printed_averages: dict[str, float]
    """Averages as the source prints them, misprints included."""


def load_published() -> list[Published]:
    """Load every built-in source.

    Raises:
        UsageError: A file is not a valid source.
    """
    found = []
    for path in sorted((Path(__file__).parents[1] / "published").glob("*.yaml")):
        source, problems = validate_section(Published, load_file(path), path.name)
        if source is None or any(len(row) != len(source.columns) for row in source.rows.values()):
            raise UsageError("\n".join(problems) or f"{path.name}: a row does not have one value per column")
        found.append(source)
    return found


def vs_published(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate our mean test accuracy and published numbers, with the difference and the source of each.

    All numbers of a source with the profile's sizes are listed. Of other sources, only variants that were run here are
    listed, and without a difference, which would compare recipes rather than variants.

    Raises:
        UsageError: Nothing comparable was published.
    """
    frame = results.for_profile(profile, track).frame()
    seeds = len(results.seeds)
    ours: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for (variant, task, _, _), group in frame.groupby(["variant", "task", "column", "label"]):
        ours.setdefault((str(variant), str(task)), []).append(group)
    rows, used = [], []
    for source in load_published():
        comparable = source.profile == profile and track == "matched"
        for variant, numbers in source.rows.items():
            for task, published in zip(source.columns, numbers, strict=True):
                found = [_row(source, published, group, seeds, comparable) for group in ours.get((variant, task), [])]
                if comparable and not found:
                    found = [_row(source, published, frame[:0], seeds, comparable) | {"task": task, "variant": variant}]
                rows += found
                used += [source] if found else []
    if not rows:
        known = ", ".join(sorted({source.profile for source in load_published() if source.profile}))
        raise UsageError(
            f"nothing published has the sizes of profile {profile!r} or one of its variants; there is {known}"
        )
    rows.sort(key=lambda row: (row["task"], row["variant"], row["source"]))
    notes = [f"{s.title}: {s.source}; {', '.join(s.flags)}." for s in {s.name: s for s in used}.values()]
    notes.append(
        Term(f"{OTHER_RECIPE}: the source's model, data rules or training differ from the profile; no difference.")
    )
    if profile == "quick":
        notes.append(
            "Profile quick: less data, a smaller model and shorter training than in any source: not comparable."
        )
    title = table_caption("Ours and published numbers", profile, track, frame)
    return plain_table(title, rows, preview(frame) + notes + provenance_notes(frame), frame)


def _row(
    source: Published,
    published: float | None,
    group: pd.DataFrame,
    seeds: int,
    comparable: bool,  # noqa: FBT001
) -> dict[str, str]:
    """Write one row; `group` has our runs of one label under one heading, or none."""
    text, mean, label, column, flags = NOT_RUN, math.nan, "", "", list[str]()
    if len(group):
        text, mean = accuracy_cell(group, seeds)
        label, column = group["label"].iloc[0], group["column"].iloc[0]
        flags = source.row_flags.get(group["variant"].iloc[0], [])
    difference = NOT_RUN if math.isnan(mean) or published is None else f"{mean - published:+.2f}"
    return {
        "task": column,
        "variant": label,
        "source": source.title + (f" ({', '.join(flags)})" if flags else ""),
        "published (%)": "fails" if published is None else f"{published:.2f}",
        "ours (%)": text,
        "difference (points)": difference if comparable else OTHER_RECIPE,
    }
