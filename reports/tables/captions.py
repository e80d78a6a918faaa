# SPDX-License-Identifier: Apache-2.0
"""The words around the numbers of a report: headings, captions, notes, and the mark of a missing number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from lra.config.labels import usual_elsewhere
from lra.results.bench_format import MISSING, breaks_parameter_rule

FIVE = ("listops", "text", "retrieval", "image", "pathfinder")
"""Tasks of the five-task average, A5."""
SIX = (*FIVE, "pathx")
NOT_RUN = MISSING


def headings(frame: pd.DataFrame) -> list[str]:
    """List the headings of the tasks: those of the benchmark in its order, then the others."""
    order = {task: position for position, task in enumerate(SIX)}
    tasks = dict(zip(frame["column"], frame["task"], strict=True))
    return sorted(tasks, key=lambda column: (order.get(tasks[column], len(order)), column))


def preview(frame: pd.DataFrame) -> list[str]:
    """Warn if there is one seed only."""
    return ["PREVIEW: one seed. No claim can rest on it."] if seeds_by_cell(frame)[1] == 1 else []


def seeds_by_cell(frame: pd.DataFrame, numbers: str = "accuracy", also: Sequence[str] = ()) -> tuple[int, int]:
    """Return the fewest and the most seeds behind a number: of each label under each heading, at each depth.

    Runs of several profiles or tracks may stand in one frame, and do not count together.

    If no run gave a number, the seeds that were tried are counted.

    Args:
        frame: The runs.
        numbers: The column with the numbers.
        also: Other columns that tell numbers apart.
    """
    scored = frame.dropna(subset=[numbers])
    counts = (
        (scored if len(scored) else frame)
        .groupby(["profile", "track", "column", "label", "layers", *also], dropna=False)["seed"]
        .nunique()
    )
    return int(counts.min() if len(counts) else 0), int(counts.max() if len(counts) else 0)


def seeds_in_words(fewest: int, most: int) -> str:
    """Say how many seeds are behind the numbers of a table, such as `3 to 5 seeds`."""
    return f"{most} seed{'' if most == 1 else 's'}" if fewest == most else f"{fewest} to {most} seeds"


def provenance_notes(frame: pd.DataFrame) -> list[str]:
    """Name training steps, hardware, data, recipes of which a profile has several, and runs of two environments."""
    machines = sorted(set(frame["device"].dropna()))
    steps = "/".join(f"{int(count)}" for count in sorted(set(frame["steps"])))
    datasets = sorted(set(zip(frame["title"], frame["dataset"], strict=True)))
    notes = [f"Trained for {steps} steps on {', '.join(machines) or 'no device'}."]
    notes += [f"{title}: {dataset}." for title, dataset in datasets]
    notes += _usual_elsewhere(frame)
    notes += [
        f"{column} with {recipe}: the stores also hold runs of profile {profile} with another recipe there."
        for profile, column, recipe in sorted(set(zip(frame["profile"], frame["column"], frame["recipe"], strict=True)))
        if recipe
    ]
    continued = frame[frame["continued"] == True]  # noqa: E712 - missing for runs without a record
    if len(continued):
        runs = ", ".join(f"{row.label} on {row.column}, seed {row.seed}" for row in continued.itertuples())
        notes.append(f"Continued under another environment, on which the last bits may depend: {runs}.")
    return notes


def _usual_elsewhere(frame: pd.DataFrame) -> list[str]:
    """Say of options in names of rows on which other tasks the profile has them itself: such runs stand elsewhere."""
    found: dict[tuple[str, str, str], set[str]] = {}
    rows = frame.drop_duplicates(["variant", "profile", "task", "label"])
    columns = (rows[name] for name in ("variant", "profile", "task", "settings"))
    for variant, profile, task, settings in zip(*columns, strict=True):
        for setting, tasks in usual_elsewhere(variant, profile, task, settings).items():
            found.setdefault((variant, profile, setting), set()).update(tasks)
    return [
        f"{setting} of {variant} is what profile {profile} has itself on {', '.join(sorted(tasks))}: runs with it "
        "there stand in the row without it."
        for (variant, profile, setting), tasks in sorted(found.items())
    ]


def parameter_notes(frame: pd.DataFrame) -> list[str]:
    """Name the variants that break the benchmark's rule on the number of parameters."""
    ratio = frame["parameters"] / frame["parameters_full"]
    names = sorted(set(frame["label"][ratio.map(breaks_parameter_rule)]))
    return [f"Parameters more than 10 % off full attention's: {', '.join(names)}."] if names else []


def table_caption(what: str, profile: str, track: str, seeds: tuple[int, int]) -> str:
    """Write a caption: the subject, profile, track, and the fewest and the most seeds behind a number."""
    return f"{what}, profile {profile}, {track} track, {seeds_in_words(*seeds)}"


def baseline_titles(names: Iterable[str]) -> dict[str, str]:
    """Return the display names of trivial baselines: `chance` is shown as Chance.

    Where two would have one, each has the name in its records: `bag` and `Bag`.
    """
    titles = {name: name[:1].upper() + name[1:] for name in names}
    holders = Counter(titles.values())
    return {name: title if holders[title] == 1 else name for name, title in titles.items()}


def number(value: float, form: str) -> str:
    """Write a number, or the mark of a missing one."""
    return NOT_RUN if math.isnan(value) else form.format(value)


def p_text(value: float) -> str:
    """Write a p value, which is never zero, or the mark of a missing one."""
    return "<0.001" if value < 0.001 else number(value, "{:.3f}")
