"""Published numbers with their sources, and our numbers beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from lra.config import Section, validate_section
from lra.errors import UsageError
from lra.strict_yaml import load_file

from .load import Loaded
from .tables import NOT_RUN, Table, select, with_columns


class Published(Section):
    """One source's table of test accuracies, in percent."""

    name: str
    title: str
    source: str
    profile: str
    """The profile of ours that has this source's sizes."""
    flags: list[str]
    """Known reasons why the numbers are not comparable with clean ones."""
    notes: dict[str, str] = Field(default_factory=dict)
    columns: list[str]
    """Tasks, in the order of the rows' values."""
    rows: dict[str, list[float]]
    printed_averages: dict[str, float]
    """What the source itself prints, misprints included."""


def load_published() -> list[Published]:
    """Load every shipped source.

    Raises:
        UsageError: A file does not hold what a source holds.
    """
    found = []
    for path in sorted((Path(__file__).parent / "published").glob("*.yaml")):
        source, problems = validate_section(Published, load_file(path), path.name)
        if source is None or any(len(row) != len(source.columns) for row in source.rows.values()):
            raise UsageError("\n".join(problems) or f"{path.name}: a row has not one value per column")
        found.append(source)
    return found


def beside(loaded: Loaded, profile: str, track: str) -> Table:
    """Put our mean test accuracy beside every published number under the same profile, with the difference.

    Raises:
        UsageError: No published source has this profile.
    """
    sources = [source for source in load_published() if source.profile == profile]
    if not sources:
        known = sorted({source.profile for source in load_published()})
        raise UsageError(f"nothing published under profile {profile!r}; there is {', '.join(known)}")
    frame = with_columns(select(loaded, profile, track))
    rows = []
    for source in sources:
        for variant, numbers in source.rows.items():
            for task, number in zip(source.columns, numbers, strict=True):
                ours = frame[(frame["variant"] == variant) & (frame["task"] == task)]["accuracy"].dropna()
                mean = ours.mean(skipna=False) if len(ours) else None
                rows.append(
                    {
                        "task": task,
                        "variant": variant,
                        "source": source.title,
                        "published": f"{number:.2f}",
                        "ours": NOT_RUN if mean is None else f"{mean:.2f} ({len(ours)})",
                        "difference": NOT_RUN if mean is None else f"{mean - number:+.2f}",
                    }
                )
    cells = pd.DataFrame(rows).sort_values(["task", "variant", "source"], ignore_index=True)
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    notes = [f"{source.title}: {source.source}; {', '.join(source.flags)}." for source in sources]
    editions = sorted(set(zip(frame["title"], frame["edition"], strict=True)))
    notes += [f"Ours, {title}: {edition}." for title, edition in editions]
    return Table(
        caption=f"Ours beside published, profile {profile}, {track} track", cells=cells, values=values, notes=notes
    )
