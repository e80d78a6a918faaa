# SPDX-License-Identifier: Apache-2.0
"""Line plots: learning curves with the band of the seeds, accuracy by depth, and cost by length."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lra.errors import StoreError
from lra.results.bench_format import short_length
from lra.results.bench_records import MIB

from ..result_set import ResultSet
from ..tables.captions import number, seeds_by_cell
from .style import (
    COLOURS,
    COLUMN,
    DASHES,
    MARKERS,
    legend_below,
    mark_preview,
    new_figure,
    plain_ticks,
    shown,
    wrapped,
)

LINES_PER_PANEL = 7
"""More lines cannot be told apart."""


def learning_curves(results: ResultSet, frame: pd.DataFrame, where: str) -> Figure | None:
    """Draw validation accuracy over training steps: the mean of the seeds, and the band from lowest to highest.

    Args:
        results: The records.
        frame: Rows of one task, of at most `LINES_PER_PANEL` labels.
        where: What the rows have in common, for the title.

    Returns:
        The figure, or None if no run has a curve.
    """
    figure = new_figure(2.6)
    axes = figure.subplots()
    names = []
    for index, (label, group) in enumerate(frame.groupby("label")):
        curves = [curve for run_id in group["run_id"] if (curve := validation_curve(results, str(run_id))) is not None]
        if not curves:
            continue
        steps, scores = on_common_steps(curves)
        names.append(wrapped(f"{label} ({len(curves)})", 50))
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        axes.plot(steps, scores.mean(axis=0), color=colour, linestyle=dash, label=names[-1])
        if len(curves) > 1:
            axes.fill_between(steps, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.18, linewidth=0)
    if not names:
        return None
    axes.set(xlabel="training step", ylabel="validation accuracy (%)")
    figure.suptitle(f"Line: mean of seeds (n); band: all of them\n{shown(where, 62)}", fontsize=7)
    mark_preview(axes, seeds_by_cell(frame)[1])
    legend_below(figure, axes, names)
    return figure


def validation_curve(results: ResultSet, run_id: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the steps and accuracies in % of a run; None if it has no number, or its arrays are missing or damaged."""
    record = results.records.get(run_id)
    if record is None or record.outcome is None:
        return None
    try:
        arrays = results.stores[run_id].arrays(run_id)
    except StoreError as error:
        results.problems.append(str(error))
        return None
    if "curve.step" not in arrays:
        return None
    return arrays["curve.step"], 100 * arrays["curve.validation_correct"] / record.outcome.validation.total


def on_common_steps(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that all curves have, and the scores at these steps: (curves, steps)."""
    steps = curves[0][0]
    for other, _ in curves[1:]:
        steps = np.intersect1d(steps, other)
    return steps, np.stack([scores[np.isin(own_steps, steps)] for own_steps, scores in curves])


def depth_curves(frame: pd.DataFrame, where: str) -> Figure:
    """Draw accuracy over layers and, if they were counted, over operations: runs as dots, means joined by a line.

    Args:
        frame: Rows of one task, with labels that leave out the number of layers.
        where: What the rows have in common, for the title.
    """
    rows = frame.dropna(subset=["accuracy"])
    counted = bool(rows["flops"].notna().all())
    figure = new_figure(2.6)
    panels = np.atleast_1d(figure.subplots(1, 1 + counted, sharey=True))
    names = []
    for index, (label, group) in enumerate(rows.groupby("label")):
        names.append(wrapped(label, 50))
        look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        by_depth = group.groupby("layers")
        means = by_depth["accuracy"].mean()
        places = ((group["layers"], means.index), (group["flops"] / 1e6, by_depth["flops"].median() / 1e6))
        for axes, (runs, joined) in zip(panels, places, strict=False):
            axes.scatter(runs, group["accuracy"], s=9, color=look["color"], alpha=0.45, linewidths=0)
            axes.plot(joined, means, linestyle=DASHES[index % len(DASHES)], label=names[-1], **look)
    panels[0].set(xlabel="layers", ylabel="test accuracy (%)", xticks=sorted(rows["layers"].unique()))
    if counted:
        panels[1].set(xscale="log", xlabel="MFLOPs per example")
        panels[1].margins(x=0.12)
        low, high = panels[1].get_xlim()
        plain_ticks(panels[1].xaxis, low, high)
    longest = int(62 * figure.get_size_inches()[0] / COLUMN)
    figure.suptitle(f"Dots: runs; line: mean\n{shown(where, longest)}", fontsize=7)
    for axes in panels:
        mark_preview(axes, seeds_by_cell(frame)[1])
    legend_below(figure, panels[0], names)
    return figure


def scaling_curves(measurements: pd.DataFrame, labels: Sequence[str], where: str) -> Figure:
    """Draw time and memory of one example over the length, on logarithmic axes, with the slope of each line.

    Args:
        measurements: One of the frames of `efficiency.measurement_groups`.
        labels: The lines to draw.
        where: Machine and recipe, for the title.
    """
    figure = new_figure(2.9)
    panels = figure.subplots(1, 2)
    step = [np.nan if r.memory is None or r.memory.problem else r.memory.step for r in measurements["measurement"]]
    costs = (
        ("ms per example", 1e3 * measurements["seconds"]),
        ("MiB per example", pd.Series(step, measurements.index) / MIB),
    )
    slopes: dict[str, list[str]] = {label: [] for label in labels}
    for axes, (unit, cost) in zip(panels, costs, strict=True):
        rows = measurements.assign(cost=cost / measurements["batch"]).dropna(subset=["cost"]).sort_values("length")
        for index, label in enumerate(labels):
            line = rows[rows["label"] == label]
            lengths, values = line["length"].to_numpy(dtype=float), line["cost"].to_numpy(dtype=float)
            slopes[label].append(number(log_slope(lengths, values), "{:.2f}"))
            axes.plot(
                lengths, values, color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
                linestyle=DASHES[index % len(DASHES)],
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="length (tokens)", ylabel=unit)
        ticks = sorted(rows["length"].unique())
        axes.set_xticks(ticks, [short_length(length) for length in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = axes.get_ylim()
        plain_ticks(axes.yaxis, low, high)
    names = [wrapped(f"{label} ({', '.join(slopes[label])})", 50) for label in labels]
    for drawn, name in zip(panels[0].lines, names, strict=True):
        drawn.set_label(name)
    longest = int(62 * figure.get_size_inches()[0] / COLUMN)
    lines = textwrap.wrap(shown(where, 3 * longest), longest)
    figure.suptitle("\n".join(["In brackets: slopes of time and of memory", *lines]), fontsize=7)
    legend_below(figure, panels[0], names)
    return figure


def log_slope(lengths: np.ndarray, costs: np.ndarray) -> float:
    """Return the exponent of the power law that fits best on logarithmic axes; NaN for fewer than two points."""
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0]) if len(lengths) > 1 else math.nan
