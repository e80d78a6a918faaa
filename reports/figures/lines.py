# SPDX-License-Identifier: Apache-2.0
"""Line plots: learning curves with the band of the seeds, accuracy by depth, and cost by length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lra.results.bench_format import short_length
from lra.results.bench_records import MIB

from ..result_set import ResultSet
from ..tables.captions import number, seeds_by_cell
from .labels import label_ends
from .style import looks, mark_preview, new_figure, plain_ticks, wrapped, write_title

LINES_PER_PANEL = 7
"""Lines in a figure, full attention among them; more cannot be told apart."""
LABEL = 24
"""Letters in a line of a label."""


def learning_curves(results: ResultSet, frame: pd.DataFrame, where: str) -> Figure | None:
    """Draw validation accuracy over training steps: the mean of the seeds, and the band from lowest to highest.

    Args:
        results: The records.
        frame: Rows of one task, of at most `LINES_PER_PANEL` labels.
        where: What the rows have in common, for the title; empty for none.

    Returns:
        The figure, or None if no run has a curve.
    """
    figure = new_figure(2.6)
    axes = figure.subplots()
    styles, ends, names, colours = looks(frame), [], list[str](), list[str]()
    for label, group in frame.groupby("label"):
        curves = [curve for run_id in group["run_id"] if (curve := validation_curve(results, str(run_id))) is not None]
        if not curves:
            continue
        steps, scores = on_common_steps(curves)
        mean, look = scores.mean(axis=0), styles[str(label)]
        axes.plot(steps, mean, color=look.colour, linestyle=look.dash)
        if len(curves) > 1:
            axes.fill_between(steps, scores.min(axis=0), scores.max(axis=0), color=look.colour, alpha=0.15, linewidth=0)
        ends.append((float(steps[-1]), float(mean[-1])))
        tried = max(group["seed"].nunique(), len(results.seeds))
        names.append(f"{label} ({len(curves)})" if len(curves) == tried else f"{label} ({len(curves)}/{tried})")
        colours.append(look.colour)
    if not names:
        return None
    axes.set(xlabel="training step", ylabel="validation accuracy (%)")
    write_title(figure, "Line: mean of seeds (n); band: all of them", where)
    mark_preview(axes, seeds_by_cell(frame)[1])
    label_ends(axes, ends, wrapped(names, LABEL), colours)
    return figure


def validation_curve(results: ResultSet, run_id: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the steps and accuracies in % of a run; None if it has no number.

    Raises:
        StoreError: Its arrays were removed or replaced since the store was read.
    """
    record = results.records.get(run_id)
    if record is None or record.outcome is None:
        return None
    arrays = results.arrays(run_id)
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
        where: What the rows have in common, for the title; empty for none.
    """
    rows = frame.dropna(subset=["accuracy"])
    # Where devices count differently, no one number of operations belongs to a mean.
    one_count = rows.groupby(["label", "layers"])["flops"].nunique() == 1
    counted = bool(rows["flops"].notna().all() and one_count.all())
    below = "" if counted or rows["flops"].isna().all() else "No panel by operations: not counted alike for all runs"
    figure = new_figure(2.6, below=below)
    panels = np.atleast_1d(figure.subplots(1, 1 + counted, sharey=True))
    styles, ends, names, colours = looks(rows), [], list[str](), list[str]()
    for label, group in rows.groupby("label"):
        look = styles[str(label)]
        by_depth = group.groupby("layers")
        means = by_depth["accuracy"].mean()
        places = ((group["layers"], means.index), (group["flops"] / 1e6, by_depth["flops"].median() / 1e6))
        for axes, (runs, joined) in zip(panels, places, strict=False):
            axes.scatter(runs, group["accuracy"], s=9, color=look.colour, alpha=0.45, linewidths=0)
            axes.plot(joined, means, linestyle=look.dash, color=look.colour, marker=look.marker)
        ends.append((float(np.asarray(places[counted][1])[-1]), float(means.iloc[-1])))
        names.append(str(label))
        colours.append(look.colour)
    panels[0].set(xlabel="layers", ylabel="test accuracy (%)", xticks=sorted(rows["layers"].unique()))
    if counted:
        panels[1].set(xscale="log", xlabel="MFLOPs per example")
        panels[1].margins(x=0.12)
        low, high = panels[1].get_xlim()
        plain_ticks(panels[1].xaxis, low, high)
    write_title(figure, "Dots: runs; line: mean", where)
    for axes in panels:
        mark_preview(axes, seeds_by_cell(frame)[1])
    label_ends(panels[-1], ends, wrapped(names, LABEL), colours)
    return figure


def scaling_curves(measurements: pd.DataFrame, labels: Sequence[str], where: str) -> Figure:
    """Draw time and memory of one example over the length, on logarithmic axes, with the slope of each line.

    Args:
        measurements: One of the frames of `efficiency.measurement_groups`.
        labels: The lines to draw.
        where: Machine and recipe, for the title; empty for none.
    """
    figure = new_figure(4.2)
    panels = figure.subplots(2, 1, sharex=True)
    step = [np.nan if r.memory is None or r.memory.problem else r.memory.step for r in measurements["measurement"]]
    noisy = [record.timing is not None and record.timing.noisy for record in measurements["measurement"]]
    steady = [False] * len(noisy)
    costs = (
        ("ms per example", 1e3 * measurements["seconds"], noisy),
        ("MiB per example", pd.Series(step, measurements.index) / MIB, steady),
    )
    styles = looks(measurements)
    for axes, (unit, cost, hollow) in zip(panels, costs, strict=True):
        rows = (
            measurements.assign(cost=cost / measurements["batch"], hollow=hollow)
            .dropna(subset=["cost"])
            .sort_values("length")
        )
        ends, names, colours = list[tuple[float, float]](), list[str](), list[str]()
        for label in labels:
            line = rows[rows["label"] == label]
            lengths, values = line["length"].to_numpy(dtype=float), line["cost"].to_numpy(dtype=float)
            look = styles[label]
            axes.plot(lengths, values, color=look.colour, marker=look.marker, linestyle=look.dash)
            doubtful = line["hollow"].to_numpy(dtype=bool)
            if doubtful.any():
                axes.plot(lengths[doubtful], values[doubtful], look.marker, color=look.colour, markerfacecolor="white")
            if len(lengths):
                ends.append((lengths[-1], values[-1]))
                names.append(f"{label} ({number(log_slope(lengths, values), '{:.2f}')})")
                colours.append(look.colour)
        axes.set(xscale="log", yscale="log", ylabel=unit)
        ticks = sorted(rows["length"].unique())
        axes.set_xticks(ticks, [short_length(length) for length in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = axes.get_ylim()
        plain_ticks(axes.yaxis, low, high)
        label_ends(axes, ends, wrapped(names, LABEL), colours)
    panels[1].set_xlabel("length (tokens)")
    write_title(figure, f"In brackets: slope{'; hollow: noisy' if any(noisy) else ''}", where)
    return figure


def log_slope(lengths: np.ndarray, costs: np.ndarray) -> float:
    """Return the exponent of the power law that fits best on logarithmic axes; NaN for fewer than two points."""
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0]) if len(lengths) > 1 else math.nan
