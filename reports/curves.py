"""Figures of lines: learning curves with the band of the seeds, and accuracy by depth."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lra.errors import StoreError

from .load import Loaded
from .style import COLOURS, COLUMN, DASHES, MARKERS, legend_below, mark_preview, new_figure, plain_ticks, shown

LINES_PER_PANEL = 7
"""More lines are not told apart."""


def learning_curves(loaded: Loaded, frame: pd.DataFrame, where: str) -> Figure | None:
    """Draw validation accuracy over training steps: the mean of the seeds, and the band from lowest to highest.

    Args:
        loaded: Where the records are.
        frame: Rows of one task, of at most `LINES_PER_PANEL` labels.
        where: What they have in common, for the title.

    Returns:
        None if no run has a curve.
    """
    figure = new_figure(2.6)
    axes = figure.subplots()
    names = []
    for number, (label, group) in enumerate(frame.groupby("label")):
        curves = [curve for cell in group["cell_id"] if (curve := validation_curve(loaded, str(cell))) is not None]
        if not curves:
            continue
        steps, scores = on_common_steps(curves)
        names.append(f"{shown(label, 34)} ({len(curves)})")
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        axes.plot(steps, scores.mean(axis=0), color=colour, linestyle=dash, label=names[-1])
        if len(curves) > 1:
            axes.fill_between(steps, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.18, linewidth=0)
    if not names:
        return None
    axes.set(xlabel="training step", ylabel="validation accuracy (%)")
    figure.suptitle(f"Line: mean of seeds (n); band: all of them\n{shown(where, 62)}", fontsize=7)
    mark_preview(axes, frame["seed"].nunique())
    legend_below(figure, axes, names)
    return figure


def validation_curve(loaded: Loaded, cell: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (steps, accuracy in %) of a run; None if it gave no number, or its arrays are gone or damaged."""
    record = loaded.records.get(cell)
    if record is None or record.outcome is None:
        return None
    try:
        arrays = loaded.stores[cell].arrays(cell)
    except StoreError as error:
        loaded.problems.append(str(error))
        return None
    if "curve.step" not in arrays:
        return None
    return arrays["curve.step"], 100 * arrays["curve.validation_correct"] / record.outcome.validation.total


def on_common_steps(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that all curves have, and the scores there: (curves, steps)."""
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    return steps, np.stack([scores[np.isin(own, steps)] for own, scores in curves])


def depth_curves(frame: pd.DataFrame, where: str) -> Figure:
    """Draw accuracy over layers, and over operations where they were counted: runs as dots, means joined by depth.

    Args:
        frame: Rows of one task, with labels that leave out the number of layers.
        where: What they have in common, for the title.
    """
    rows = frame.dropna(subset=["accuracy"])
    counted = bool(rows["flops"].notna().all())
    figure = new_figure(2.6)
    panels = np.atleast_1d(figure.subplots(1, 1 + counted, sharey=True))
    names = []
    for number, (label, group) in enumerate(rows.groupby("label")):
        names.append(shown(label, 34))
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        by_depth = group.groupby("layers")
        means = by_depth["accuracy"].mean(skipna=False)
        places = ((group["layers"], means.index), (group["flops"] / 1e6, by_depth["flops"].median() / 1e6))
        for axes, (runs, joined) in zip(panels, places, strict=False):
            axes.scatter(runs, group["accuracy"], s=9, color=look["color"], alpha=0.45, linewidths=0)
            axes.plot(joined, means, linestyle=DASHES[number % len(DASHES)], label=names[-1], **look)
    panels[0].set(xlabel="layers", ylabel="test accuracy (%)", xticks=sorted(rows["layers"].unique()))
    if counted:
        panels[1].set(xscale="log", xlabel="MFLOPs per example")
        panels[1].margins(x=0.12)
        low, high = panels[1].get_xlim()
        plain_ticks(panels[1].xaxis, low, high)
    longest = int(62 * figure.get_size_inches()[0] / COLUMN)
    figure.suptitle(f"Dots: runs; line: mean\n{shown(where, longest)}", fontsize=7)
    for axes in panels:
        mark_preview(axes, frame["seed"].nunique())
    legend_below(figure, panels[0], names)
    return figure
