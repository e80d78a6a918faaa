# SPDX-License-Identifier: Apache-2.0
"""Published numbers with their sources, and the table that sets our numbers against them."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from pydantic import Field

from attention_zoo.registry import is_own
from lra.config.builtin import profile_names
from lra.config.labels import Settings, fits, names_no_more, split_row
from lra.config.schema import Section, validate_section
from lra.config.yaml_loader import load_file
from lra.errors import UsageError
from lra.models.downsamplers import is_own as is_own_layer
from lra.tasks import is_own as is_own_task

from ..recipe import off_recipe
from ..result_set import ResultSet
from ..statistics import exact_mean
from .accuracy import accuracy_cell
from .captions import FIVE, NOT_RUN, SIX, preview, provenance_notes, seeds_by_cell, table_caption
from .table import Table, Term, plain_table

OTHER_RECIPE = "other recipe"
AVERAGES = (("A5", FIVE), ("A6", SIX))
"""Averages of this project, and their tasks."""
Average = Literal["A5", "A6", "A6_as_zero"]
"""Mean of the five tasks; of six, with Path-X counted as 50 where it failed; of six, with it counted as 0."""


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
    """What else there is to say of single rows; printed below the table."""
    columns: list[str]
    """Tasks, in the order of the rows' values; or averages, `A5` or `A6`, where the numbers of tasks are not known."""
    rows: dict[str, list[float | None]]
    """By registered name, if need be with options, `lion [decay=none]`; null where the source says that it failed."""
    average: Average = "A5"
    """Over what the source averages."""
    row_averages: dict[str, Average] = Field(default_factory=dict)
    """Over what it averages single rows, where it mixes several averages in one column."""
    printed_averages: dict[str, float]
    """Averages as the source prints them, misprints included; for checks only. Tables have averages over the same tasks
    for all rows."""

    def mean(self, row: str, average: str, tasks: Collection[str]) -> float | None:
        """Return an average of a row over tasks; None unless it has a number for each of them, or the average alone."""
        numbers = dict(zip(self.columns, self.rows[row], strict=True))
        if average in numbers:
            return numbers[average]
        chosen = [numbers.get(task) for task in tasks]
        found = [number for number in chosen if number is not None]
        return exact_mean(found) if found and len(found) == len(chosen) else None


class Cell(NamedTuple):
    """Our runs of one variant on one task, as a table of accuracies writes them."""

    variant: str
    task: str
    column: str
    label: str
    settings: Settings
    seeds: frozenset[int]
    text: str
    mean: float
    """NaN if there is none."""
    has_recipe: bool
    """Whether all of them have the recipe of their profile."""


@functools.cache
def load_published() -> Sequence[Published]:
    """Load every built-in source, once in a process.

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
    listed, and without a difference, which would compare recipes rather than variants. The averages A5 and A6 are
    computed from the rows of both sides, over the same tasks, and only where each task has a number from each seed.

    Raises:
        UsageError: Nothing comparable was published.
    """
    frame = results.for_profile(profile, track).frame()
    name_of_profile = frame["profile"].iloc[0]  # `profile` also names the settings of one of several recipes
    seeds = len(results.seeds)
    cells = [
        Cell(
            str(variant), str(task), str(column), str(label), group["settings"].iloc[0], frozenset(group["seed"]),
            *accuracy_cell(group, seeds), not any(is_off_recipe(results, str(run_id)) for run_id in group["run_id"]),
        )
        for (variant, column, task, label), group in frame.groupby(["variant", "column", "task", "label"])
    ]  # fmt: skip
    rows, used, remarks = [], [], list[str]()
    for source in load_published():
        comparable = source.profile == name_of_profile and track == "matched"
        for name in source.rows:
            variant, options = split_row(name)
            ours = [
                cell
                for cell in cells
                if cell.variant == variant
                and fits(cell.settings, options)
                and names_no_more(cell.label, cell.settings, options)
            ]
            found = [
                _row(source, name, number, heading, label, text, mean, comparable and recipe)
                for task, number, beside in (*_by_task(source, name, ours), *_averages(source, name, ours))
                for heading, label, text, mean, recipe in beside
                or ([(task, name, NOT_RUN, math.nan, True)] if comparable else [])
            ]
            rows += found
            if found:
                used.append(source)
                remarks += [f"{source.title}, {name}: {source.notes[name]}."] if name in source.notes else []
    if not rows:
        known = ", ".join(sorted({source.profile for source in load_published() if source.profile}))
        raise UsageError(
            f"nothing published has the sizes of profile {profile!r} or one of its variants; there is {known}"
        )
    rows.sort(key=lambda row: (row["task"], row["variant"], row["source"]))
    notes = [f"{s.title}: {s.source}; {', '.join(s.flags)}." for s in {s.name: s for s in used}.values()] + remarks
    shown = {row["task"] for row in rows}
    notes += [
        Term(f"{name}: mean of {len(members)} tasks, for both sides; only where each task has a number from each seed.")
        for name, members in AVERAGES
        if name in shown
    ]
    notes.append(
        Term(
            f"{OTHER_RECIPE}: the source's model, data rules or training differ from the profile, or those of our runs "
            "do; no difference."
        )
    )
    if name_of_profile == "quick":
        notes.append(
            "Profile quick: less data, a smaller model and shorter training than in any source: not comparable."
        )
    places = {(row["variant"], row["task"]) for row in rows if row["ours (%)"] != NOT_RUN}
    places |= {(label, column) for label, name in places for column in _members(frame, name)}
    beside = [place in places for place in zip(frame["label"], frame["column"], strict=True)]
    frame = frame[beside]
    title = table_caption("Ours and published numbers", profile, track, seeds_by_cell(frame))
    return plain_table(title, rows, preview(frame) + notes + (provenance_notes(frame) if len(frame) else []), frame)


def _members(frame: pd.DataFrame, average: str) -> set[str]:
    """Return the headings of the tasks of an average; none for the name of something else."""
    return set(frame["column"][frame["task"].isin(dict(AVERAGES).get(average, ()))])


Beside = tuple[str, float | None, list[tuple[str, str, str, float, bool]]]
"""A task or average, its published number, and ours beside it: heading, label, text, mean and `Cell.has_recipe`."""


def is_off_recipe(results: ResultSet, run_id: str) -> bool:
    """Say whether a run on the matched track has another recipe than its profile has here; False where nobody knows."""
    config = (results.records.get(run_id) or results.attempts[run_id]).config
    own = is_own(config.variant.name, config.variant.options) and is_own_layer(config.model.pool)
    if config.track != "matched" or config.profile not in profile_names() or not own or not is_own_task(config.task):
        return False
    try:
        return bool(off_recipe(config))
    except UsageError:
        return True


def _by_task(source: Published, name: str, ours: Sequence[Cell]) -> Iterable[Beside]:
    """Yield the numbers of a published row, with our runs of its variant."""
    for task, published in zip(source.columns, source.rows[name], strict=True):
        if task in dict(AVERAGES):
            continue
        yield task, published, [(c.column, c.label, c.text, c.mean, c.has_recipe) for c in ours if c.task == task]


def _averages(source: Published, name: str, ours: Sequence[Cell]) -> Iterable[Beside]:
    """Yield the averages of a published row, with ours over the same tasks."""
    for average, members in AVERAGES:
        published = source.mean(name, average, members)
        if published is None:
            continue
        beside = []
        for label in sorted({cell.label for cell in ours}):
            part = [cell for cell in ours if cell.label == label and cell.task in members]
            # Each task once, with the same seeds: of two dataset variants of one task there is no single average.
            if len({cell.task for cell in part}) == len(part) == len(members) and len({c.seeds for c in part}) == 1:
                mean = exact_mean(cell.mean for cell in part)
                recipe = all(cell.has_recipe for cell in part)
                beside += [] if math.isnan(mean) else [(average, label, f"{mean:.2f}", mean, recipe)]
        yield average, published, beside


def _row(
    source: Published,
    name: str,
    published: float | None,
    heading: str,
    label: str,
    text: str,
    mean: float,
    comparable: bool,  # noqa: FBT001
) -> dict[str, str]:
    """Write one row: a published number, and ours as `text` and as a number, which is NaN if there is none."""
    flags = source.row_flags.get(name, [])
    difference = NOT_RUN if math.isnan(mean) or published is None else f"{mean - published:+.2f}"
    return {
        "task": heading,
        "variant": label,
        "source": source.title + (f" ({', '.join(flags)})" if flags else ""),
        "published (%)": "fails" if published is None else f"{published:.2f}",
        "ours (%)": text,
        "difference (points)": difference if comparable else OTHER_RECIPE,
    }
