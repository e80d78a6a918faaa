# SPDX-License-Identifier: Apache-2.0
"""All figures that a result set gives: which there are, and which rows each of them shows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lra.config.schema import RunConfig
from lra.errors import UsageError
from lra.measure.state_size import UNKNOWN, state_size
from lra.results.bench_format import REFERENCE
from lra.results.dataframe import label_rows

from ..result_set import ResultSet
from ..tables.captions import headings
from ..tables.comparisons import rank_variants
from ..tables.efficiency import describe, labels_in_order, measurement_groups
from .lines import LINES_PER_PANEL, depth_curves, learning_curves, scaling_curves
from .ranks import critical_difference
from .scatter import bubbles, pareto, seed_dots, state_front
from .style import house_style, save, slug

FIGURES = {
    "ranks": "Dot: average rank; variants whose bars do not overlap are told apart (Nemenyi, 0.05).",
    "seeds": "Dots: runs; bar: mean; dashed: trivial baselines.",
    "speed, score and memory": "Area: peak memory.",
    "front": "Filled: nothing is cheaper and better.",
    "state": "Filled: nothing keeps less and is better. Left out: what keeps nothing, has no such form, or is unknown.",
    "learning": "Line: mean of seeds (n); band: from the lowest to the highest of them.",
    "depth": "Dots: runs; line: mean.",
    "scaling": "In brackets: slope of the line. Hollow: noisy, as the step times vary by more than 10 % of the median.",
}
"""What a reader of each kind of figure must know, by the beginning of their titles."""


def draw_all(results: ResultSet, folder: Path, form: str, *, titled: bool = False) -> list[Path]:
    """Draw every figure of a result set into a folder, with or without titles.

    Raises:
        UsageError: There is nothing to draw, or a file cannot be written.
    """
    paths, counts = [], dict[str, int]()
    for title, figure in all_figures(results, titled=titled):
        name = slug(title)
        counts[name] = counts.get(name, 0) + 1
        number = f"-{counts[name]}" if counts[name] > 1 else ""
        paths.append(save(figure, folder / f"{name}{number}.{form}", form))
    if not paths:
        raise UsageError("no record here has a number to draw")
    return paths


def all_figures(results: ResultSet, *, titled: bool = False) -> Iterator[tuple[str, Figure]]:
    """Yield the title and the figure of everything that can be drawn: ranks, task by task, then cost by length.

    Args:
        results: The records; full attention is drawn beside them even if it was not selected, but not ranked with them.
        titled: Whether the title also stands in the figure.
    """
    selected, results = results, results.with_full()
    for profile, track in results.profiles():
        part = results.for_profile(profile, track)
        frame = part.frame()
        with contextlib.suppress(UsageError):  # too few tasks or variants for ranks
            ranking = rank_variants(selected.for_profile(profile, track).frame(), len(part.seeds))
            where = f"profile {profile}, {track} track"
            with house_style():
                yield f"ranks: {where}", critical_difference(ranking, where if titled else "")
        for column in headings(frame):
            here = frame[frame["column"] == column]
            if here["accuracy"].notna().any():
                where = figure_subtitle(column, profile, track)
                with house_style():
                    yield from _of_task(part, here, where, titled=titled)
    yield from _of_measurements(results, titled=titled)


def curve_titles(frame: pd.DataFrame, where: str) -> list[str]:
    """Return for each row of one task the title of the figure that shows its learning curve."""
    reference = _reference_labels(frame)
    others = sorted(set(frame["label"]) - set(reference))
    room = LINES_PER_PANEL - len(reference)
    places = {label: position // room for position, label in enumerate(others)} | dict.fromkeys(reference, 0)
    panels = [places[label] + 1 for label in frame["label"]]
    return [f"learning{f' {panel}' if max(panels) > 1 else ''}: {where}" for panel in panels]


def _reference_labels(frame: pd.DataFrame) -> list[str]:
    """Return the label of full attention, with which every figure begins; none if it was not run, or in many forms."""
    found = sorted(frame["label"][frame["variant"] == REFERENCE].unique())
    return found[:1]


def figure_subtitle(column: str, profile: str, track: str) -> str:
    """Name what the rows of a figure have in common: task, profile and track."""
    return f"{column}, profile {profile}, {track} track"


def _of_measurements(results: ResultSet, *, titled: bool) -> Iterator[tuple[str, Figure]]:
    for group in measurement_groups(results):
        measurements = group.dropna(subset=["seconds"])
        if measurements["length"].nunique() < 2:
            continue
        labels = labels_in_order(measurements)
        count = 1 if measurements["is_reference"].any() else 0  # every figure shows full attention
        first, others = labels[:count], labels[count:]
        room = LINES_PER_PANEL - len(first)
        for start in range(0, max(1, len(others)), room):
            number = f" {start // room + 1}" if len(others) > room else ""
            where = describe(measurements)
            with house_style():
                yield (
                    f"scaling{number}: {where}",
                    scaling_curves(measurements, first + others[start : start + room], where if titled else ""),
                )


def _counted(rows: pd.DataFrame, frame: pd.DataFrame, expected: int) -> pd.DataFrame:
    """Return rows that a figure shows, with labels that say how many of their runs these are, and `whole`, if all.

    Args:
        rows: What the figure shows, such as the runs on one device.
        frame: All rows of the task.
        expected: How many seeds a suite asks for; 0 without one.
    """
    all_runs = frame.groupby(["label", "layers"]).size().clip(lower=expected).groupby("label").sum()
    here = rows["label"].value_counts()
    names = {x: x if here[x] == all_runs[x] else f"{x} ({here[x]} of {all_runs[x]} runs)" for x in here.index}
    return rows.assign(label=rows["label"].map(names), whole=[here[x] == all_runs[x] for x in rows["label"]])


def _state(config: RunConfig) -> float:
    """Return the state of a layer; NaN where there is none, or none is known."""
    size = state_size(config)
    return math.nan if size == UNKNOWN else size or math.nan


def _of_task(results: ResultSet, frame: pd.DataFrame, where: str, *, titled: bool) -> Iterator[tuple[str, Figure]]:
    seeds = len(results.seeds)
    yield f"seeds: {where}", seed_dots(results, frame, where if titled else "")
    scored = frame.dropna(subset=["accuracy"])
    measured = scored.dropna(subset=["tokens_per_second", "peak_bytes"])
    unknown = sorted(set(scored["label"]) - set(measured["label"]))
    below = f"Left out, with no run of known speed and memory: {', '.join(unknown)}" if unknown else ""
    for device, rows in measured.groupby("device"):
        title, group = f"{where}, {device}", _counted(rows, frame, seeds)
        yield f"speed, score and memory: {title}", bubbles(group, title if titled else "", below)
        yield f"front: {title}", pareto(group, title if titled else "", below)
    scored = _counted(scored, frame, seeds)
    kept = scored["run_id"].map(lambda run_id: _state(results.records[run_id].config))
    if kept.notna().any():
        yield f"state: {where}", state_front(scored.assign(state=kept), where if titled else "")
    panels = pd.Series(curve_titles(frame, where), index=frame.index)
    reference = frame["label"].isin(_reference_labels(frame))  # in every figure
    for title in sorted(panels.unique(), key=lambda title: (len(title), title)):
        drawn = learning_curves(results, frame[(panels == title) | reference], where if titled else "")
        if drawn is not None:
            yield title, drawn
    if frame["layers"].nunique() > 1:
        by_depth = frame.assign(
            label=label_rows(frame, leave_out=["model.num_layers"], elsewhere=results.naming.differing)
        )
        rows = _counted(by_depth.dropna(subset=["accuracy"]), by_depth, seeds)
        yield f"depth: {where}", depth_curves(rows, where if titled else "")
