"""All figures that records give: which there are, and from which rows each is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lra.errors import UsageError

from ..result_set import ResultSet, label_by_settings
from ..tables.captions import headings
from ..tables.efficiency import REFERENCE, describe, reading_groups
from .lines import LINES_PER_PANEL, depth_curves, learning_curves, scaling_curves
from .scatter import bubbles, pareto, seed_dots
from .style import house_style, save, slug


def draw_all(loaded: ResultSet, folder: Path, form: str) -> list[Path]:
    """Draw every figure that the records give into a folder.

    Raises:
        UsageError: They give none, or a file cannot be written.
    """
    paths, counts = [], dict[str, int]()
    for title, figure in figures(loaded):
        name = slug(title)
        counts[name] = counts.get(name, 0) + 1
        number = f"-{counts[name]}" if counts[name] > 1 else ""
        paths.append(save(figure, folder / f"{name}{number}.{form}", form))
    if not paths:
        raise UsageError("no record here has a number to draw")
    return paths


def figures(loaded: ResultSet) -> Iterator[tuple[str, Figure]]:
    """Yield (title, figure) of every figure, one profile, track and task after the other, then cost by length."""
    for profile, track in loaded.profiles():
        part = loaded.only(profile, track)
        frame = part.frame()
        for column in headings(frame):
            here = frame[frame["column"] == column]
            if here["accuracy"].notna().any():
                where = place(column, profile, track)
                with house_style():
                    yield from _of_task(part, here, where)
    yield from _of_readings(loaded)


def curve_titles(frame: pd.DataFrame, where: str) -> list[str]:
    """Return for each row of one task the title of the figure with its learning curve."""
    labels = {label: position for position, label in enumerate(sorted(frame["label"].unique()))}
    panels = [labels[label] // LINES_PER_PANEL + 1 for label in frame["label"]]
    return [f"learning{f' {panel}' if max(panels) > 1 else ''}: {where}" for panel in panels]


def place(column: str, profile: str, track: str) -> str:
    """Say in a title what rows have in common."""
    return f"{column}, profile {profile}, {track} track"


def _of_readings(loaded: ResultSet) -> Iterator[tuple[str, Figure]]:
    for group in reading_groups(loaded):
        measurements = group.dropna(subset=["seconds"])
        if measurements["length"].nunique() < 2:
            continue
        others = sorted(set(measurements["label"]) - {REFERENCE})
        first = [REFERENCE] if REFERENCE in set(measurements["label"]) else []
        room = LINES_PER_PANEL - len(first)
        for start in range(0, max(1, len(others)), room):
            number = f" {start // room + 1}" if len(others) > room else ""
            where = describe(measurements)
            with house_style():
                yield (
                    f"scaling{number}: {where}",
                    scaling_curves(measurements, first + others[start : start + room], where),
                )


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a score and a speed; labels say how many of their runs those are, if not all."""
    rows = frame.dropna(subset=["accuracy", "tokens_per_second"])
    all_runs, here = frame["label"].value_counts(), rows["label"].value_counts()
    names = {x: x if here[x] == all_runs[x] else f"{x} ({here[x]} of {all_runs[x]} runs)" for x in here.index}
    return rows.assign(label=rows["label"].map(names))


def _of_task(loaded: ResultSet, frame: pd.DataFrame, where: str) -> Iterator[tuple[str, Figure]]:
    yield f"seeds: {where}", seed_dots(loaded, frame, where)
    for device, group in _scored(frame).groupby("device"):
        title = f"{where}, {device}"
        if group["peak_bytes"].notna().all():
            yield f"speed, score and memory: {title}", bubbles(group, title)
            yield f"front: {title}", pareto(group, title)
    panels = pd.Series(curve_titles(frame, where), index=frame.index)
    for title in sorted(panels.unique(), key=lambda title: (len(title), title)):
        drawn = learning_curves(loaded, frame[panels == title], where)
        if drawn is not None:
            yield title, drawn
    if frame["layers"].nunique() > 1:
        by_depth = frame.assign(label=label_by_settings(frame, leave_out=["model.num_layers"]))
        yield f"depth: {where}", depth_curves(by_depth, where)
