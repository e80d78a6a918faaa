# SPDX-License-Identifier: Apache-2.0
"""How well one recipe stands for another: the rank correlation of the variants that both have."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lra.config.labels import Settings, default_options, fits, short_name, split_row
from lra.config.schema import canonical_json
from lra.errors import UsageError
from lra.names import suggest
from lra.results.dataframe import label_rows

from ..result_set import ResultSet
from ..statistics import exact_mean, rank_correlation
from .accuracy import accuracy_cell
from .captions import NOT_RUN, number, p_text, preview, provenance_notes, seeds_by_cell, seeds_in_words
from .published import Published, load_published
from .table import Table, Term, plain_table

FEWEST = 4
"""Common variants; fewer have so few orders that none would be surprising."""
_PUBLISHED = "published:"
_OPEN = ":open"


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The scores of one of the two."""

    title: str
    scores: Mapping[str, Mapping[str, float]]
    """Task -> row -> test accuracy in %."""
    frame: pd.DataFrame | None
    """The runs behind them; None for a published table."""
    note: str


def calibration(results: ResultSet, first: str, second: str) -> Table:
    """Tabulate Kendall's tau-b between the test accuracies of two recipes, task by task and for the mean of the tasks.

    Args:
        results: The records.
        first: `PROFILE` for its runs on the matched track, `PROFILE:open` for those on the open one, or
            `published:SOURCE` for a published table.
        second: Another one of these.

    Raises:
        UsageError: One of them is unknown, or no task has `FEWEST` variants in common.
    """
    if first == second:
        raise UsageError(f"{first} against itself shows nothing; calibration takes two profiles, or published:SOURCE")
    sides = _sides(results, (first, second))
    pairs = {task: _paired(sides, task) for task in sides[0].scores if task in sides[1].scores}
    apart = []
    for task, found in pairs.items():
        one, other = ({split_row(row)[0] for row in side.scores[task]} for side in sides)
        ours = {row for side in sides if side.frame is not None for row in side.scores[task]}
        lost = set.intersection(*(_tried(side, task) for side in sides))  # they are told of as left out
        alone = [row for row in sorted(ours - found.keys() - lost) if split_row(row)[0] in one & other]
        apart += [f"{row} on {task}" for row in alone]
    enough = {task: found for task, found in pairs.items() if len(found) >= FEWEST}
    if not enough:
        counts = "; ".join(f"{task} has {len(found)} ({', '.join(found) or 'none'})" for task, found in pairs.items())
        raise UsageError(
            f"{first} and {second} need {FEWEST} variants in common on a task: {counts or 'they have no common task'}"
        )
    rows = [_row(task, found) for task, found in enough.items()]
    everywhere = set.intersection(*(set(found) for found in enough.values()))
    if len(enough) > 1 and len(everywhere) >= FEWEST:
        means = {
            row: (
                exact_mean(each[row][0] for each in enough.values()),
                exact_mean(each[row][1] for each in enough.values()),
            )
            for row in sorted(everywhere)
        }
        rows.append(_row(f"mean of {len(enough)} tasks", means))
    left_out = [f"{task} ({len(pairs[task])})" for task in pairs if task not in enough]
    frames = [side.frame for side in sides if side.frame is not None]
    if not frames:
        raise UsageError("calibration needs the runs of at least one profile")
    used = {(task, row) for task, found in enough.items() for row in found}
    frame = pd.concat(frames)
    frame = frame[[place in used for place in zip(frame["task"], frame["row"], strict=True)]]
    notes: list[str] = [
        Term("Tau: Kendall's tau-b of the mean test accuracies; 1 is the same order, 0 none, -1 the reverse."),
        Term("Interval: bootstrap over the variants, 95 %. It does not show what other seeds would do."),
        Term("P: exact, against no relation; for equal accuracies or more than 33 variants, the normal approximation."),
    ]
    if any(row["95 % interval"] == NOT_RUN != row["tau"] for row in rows):
        notes.append(Term(f"{NOT_RUN}: a full agreement or reversal has no spread to make an interval of."))
    if any(row["tau"] == NOT_RUN for row in rows):
        notes.append(Term(f"Tau {NOT_RUN}: all accuracies of one side are equal, so it has no order."))
    if apart:
        notes.append(f"Not paired, since the two sides have another program or other settings: {', '.join(apart)}.")
    notes += [f"Fewer than {FEWEST} common variants: {', '.join(left_out)}."] if left_out else []
    notes += [side.note for side in sides if side.note] + _unlike_data(frame)
    parts = [part for _, part in frame.groupby("side")]  # each has seeds of its own
    words = " and ".join(dict.fromkeys(seeds_in_words(*seeds_by_cell(part)) for part in parts))
    title = f"Rank correlation of variants, {sides[0].title} and {sides[1].title}, {words}"
    warnings = list(dict.fromkeys(line for part in parts for line in preview(part)))
    return plain_table(title, rows, warnings + notes + provenance_notes(frame), frame)


def _unlike_data(frame: pd.DataFrame) -> list[str]:
    """Name the tasks of which the two sides have other data under one name, with the digests of the data."""
    notes = []
    for (task, dataset), part in frame.groupby(["task", "dataset"]):
        if part["data_digest"].nunique() > 1:
            sides = part[["data_digest", "profile", "track"]].drop_duplicates().itertuples(index=False)
            words = [f"{digest[:8]} in profile {profile}, {track} track" for digest, profile, track in sides]
            notes.append(f"{task}, {dataset}: other data on each side: {'; '.join(words)}.")
    return notes


def _row(task: str, scores: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    found = rank_correlation([one for one, _ in scores.values()], [other for _, other in scores.values()])
    return {
        "task": task,
        "variants": str(len(scores)),
        "tau": number(found.tau, "{:+.2f}"),
        "95 % interval": NOT_RUN if math.isnan(found.low) else f"[{found.low:+.2f}, {found.high:+.2f}]",
        "p": p_text(found.p_value),
        "of": ", ".join(scores),
    }


def _sides(results: ResultSet, names: Sequence[str]) -> list[_Side]:
    """Find what a user names.

    Raises:
        UsageError: There is no such profile in the store, and no such published table.
    """
    sources = {source.name: source for source in load_published()}
    frames = [
        _runs(results, name, sources).assign(side=index)
        for index, name in enumerate(names)
        if not name.startswith(_PUBLISHED)
    ]
    if frames:  # all are labelled together, so that one variant has one name on both sides
        together = pd.concat(frames, ignore_index=True)
        apart = together.assign(column=together["side"].astype(str) + " " + together["column"])
        together["row"] = label_rows(apart, name="variant", elsewhere=results.naming.differing)
    sides = []
    for index, name in enumerate(names):
        if not name.startswith(_PUBLISHED):
            sides.append(_side(results, name, together[together["side"] == index]))
            continue
        source = sources.get(name.removeprefix(_PUBLISHED))
        if source is None:
            raise UsageError(f"no published table {name!r}; {suggest(name.removeprefix(_PUBLISHED), sources)}")
        sides.append(_published(source))
    return sides


def _place(name: str) -> tuple[str, str]:
    """Return the profile and the track that a user names."""
    return (name.removesuffix(_OPEN), "open") if name.endswith(_OPEN) else (name, "matched")


def _runs(results: ResultSet, name: str, sources: Mapping[str, Published]) -> pd.DataFrame:
    """Return the runs of a profile that a user names."""
    places = {profile + (_OPEN if track == "open" else ""): (profile, track) for profile, track in results.profiles()}
    if _place(name) not in places.values():
        hint = f"; published:{name} is the published table" if name in sources else ""
        raise UsageError(f"no runs of profile {name!r}; {suggest(name, places)}{hint}")
    return results.for_profile(*_place(name)).frame()


def _side(results: ResultSet, name: str, frame: pd.DataFrame) -> _Side:
    """Summarise the runs of a profile, whose rows have names."""
    place = _place(name)
    scores: dict[str, dict[str, float]] = {}
    lost = []
    for (task, row), group in frame.groupby(["task", "row"]):  # by task: another profile has other data of it
        text, mean = accuracy_cell(group, len(results.seeds))
        if math.isnan(mean):
            lost.append(f"{row} on {task}: {text}")
        else:
            scores.setdefault(str(task), {})[str(row)] = mean
    several = [task for task, part in frame.groupby("task") if part["column"].nunique() > 1]
    if several:
        raise UsageError(f"profile {name} has several datasets of {', '.join(map(str, several))}; --suite chooses one")
    title = f"profile {place[0]}, {place[1]} track"
    notes = [f"Left out of {title}, since a run is lost or missing: {'; '.join(lost)}."] if lost else []
    others = [
        f"{other} ({', '.join(sorted(set(results.for_profile(other, track).frame()['task'])))})"
        for other, track in results.profiles()
        if other.startswith(f"{place[0]} [") and track == place[1]
    ]
    if others:
        notes.append(f"Left out of {title}, since their runs have several recipes: {'; '.join(others)}.")
    return _Side(title=title, scores=scores, frame=frame, note=" ".join(notes))


def _tried(side: _Side, task: str) -> set[str]:
    """Return the rows that a side has on a task, with or without a number."""
    return set(side.scores[task] if side.frame is None else side.frame["row"][side.frame["task"] == task])


def _published(source: Published) -> _Side:
    scores = {
        task: {row: number for row, numbers in source.rows.items() if (number := numbers[column]) is not None}
        for column, task in enumerate(source.columns)
    }
    rows = {row: [*source.row_flags.get(row, []), *filter(None, [source.notes.get(row)])] for row in source.rows}
    of_rows = [f"{row}: {', '.join(words)}" for row, words in rows.items() if words]
    note = f"{source.title}: {'; '.join([source.source, ', '.join(source.flags), *of_rows])}."
    return _Side(title=source.title, scores=scores, frame=None, note=note)


def _paired(sides: Sequence[_Side], task: str) -> dict[str, tuple[float, float]]:
    """Return the accuracies of the rows that both sides have on a task, by row.

    Rows of one name are the same. A published row is also the one row of ours that it means, though that may be named
    by other settings.
    """
    scores = [dict(side.scores[task]) for side in sides]
    for own, (side, other) in enumerate((sides, sides[::-1])):
        frame = other.frame
        if side.frame is not None or frame is None:
            continue
        for name in list(scores[own]):
            variant, options = split_row(name)
            here = frame[(frame["task"] == task) & (frame["variant"] == variant)]
            places = zip(here["settings"], here["profile"], strict=True)
            fitting = set(
                here["row"][[_is_meant(settings, variant, profile, task, options) for settings, profile in places]]
            )
            if name not in fitting and len(fitting) == 1:
                scores[own][fitting.pop()] = scores[own].pop(name)
    return {row: (scores[0][row], scores[1][row]) for row in scores[0] if row in scores[1]}


def _is_meant(settings: Settings, variant: str, profile: str, task: str, options: str) -> bool:
    """Say whether a run is what a published row names: it has the options of that name, and nothing else but defaults.

    Pretraining and a start from another run are not the default.
    """
    defaults = default_options(variant, profile, task, str(settings.get("model.positions")))
    others = [
        name
        for name, value in settings.items()
        if name.startswith(("pretrain.", "start."))
        or (name in defaults and canonical_json(value).decode() != defaults[name])
    ]
    named = set(re.findall(r"[\w.]+(?==)", options))
    return fits(settings, options) and all(short_name(name) in named for name in others)
