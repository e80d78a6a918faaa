# SPDX-License-Identifier: Apache-2.0
"""Scatter plots: speed, score and memory; the Pareto front of cost and score; and all seeds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lra.results.bench_format import STATUS_WORDS

from ..baselines import highest_baselines
from ..result_set import ResultSet
from ..statistics import comparable, exact_mean
from ..tables.captions import baseline_titles, seeds_by_cell
from .labels import ROW, SIZE, label_points
from .style import extra_height, looks, mark_preview, new_figure, plain_ticks, wrapped, write_title

MIB = 2**20
LABEL = 24
"""Letters in a line of a label."""
POINT = 26.0
"""Area of a point of the Pareto front, in square points."""
LARGEST_BUBBLE = 300.0
"""Area of the largest bubble, in square points."""
CENTRE = 9.0
"""Area of the marker in the middle of a bubble, in square points."""


def medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per label: mean accuracy, median speed, median memory in MiB, seeds, and whether none is lost."""
    groups = frame.groupby("label")
    return pd.DataFrame(
        {
            "accuracy": groups["accuracy"].agg(exact_mean),
            "speed": groups["tokens_per_second"].median(),
            "memory": groups["peak_bytes"].median() / MIB,
            "seeds": groups["seed"].nunique(),
            "variant": groups["variant"].first(),
            "whole": groups["whole"].all(),
        }
    ).sort_values("accuracy", ascending=False)


def bubbles(frame: pd.DataFrame, where: str, below: str = "") -> Figure:
    """Draw each variant at its speed and score, with an area in proportion to its memory.

    Args:
        frame: Rows of one task and device, all with numbers.
        where: What the rows have in common, for the title; empty for none.
        below: What is left out, in words; empty for nothing.
    """
    rows = medians(frame)
    figure = new_figure(2.2 + 0.1 * len(rows), below=below)
    axes = figure.subplots()
    area = LARGEST_BUBBLE * rows["memory"] / rows["memory"].max()
    found = looks(frame)
    styles = [found[str(label)] for label in rows.index]
    colours = [look.colour for look in styles]
    axes.scatter(rows["speed"], rows["accuracy"], s=area, c=colours, alpha=0.4, edgecolors=colours, linewidths=0.8)
    for look, x, y in zip(styles, rows["speed"], rows["accuracy"], strict=True):
        axes.scatter([x], [y], s=CENTRE, c=look.colour, marker=look.marker, linewidths=0)
    axes.set(xscale="log", xlabel="training speed (tokens/s)", ylabel="test accuracy (%)")
    axes.margins(0.25)
    plain_ticks(axes.xaxis, *axes.get_xlim())
    write_title(figure, "Area: peak memory", where)
    mark_preview(axes, int(rows["seeds"].max()))
    names = [
        f"{name}\n{memory:,.0f} MiB" for name, memory in zip(wrapped(rows.index, LABEL), rows["memory"], strict=True)
    ]
    label_points([(axes, rows["speed"])], rows["accuracy"], names, np.sqrt(area / np.pi), colours)
    return figure


def pareto(frame: pd.DataFrame, where: str, below: str = "") -> Figure:
    """Draw accuracy against training time and against memory; the points of the Pareto front are filled and joined.

    Args:
        frame: Rows of one task and device, all with numbers, and a column `whole`: whether their row lost no run.
        where: What the rows have in common, for the title; empty for none.
        below: What is left out, in words; empty for nothing.
    """
    rows = medians(frame)
    costs = {"time per 1000 tokens (ms)": 1e6 / rows["speed"], "peak memory (MiB)": rows["memory"]}
    return _fronts(frame, rows, costs, "Filled: nothing is cheaper and better", where, below)


def state_front(frame: pd.DataFrame, where: str) -> Figure:
    """Draw accuracy against the numbers that a layer keeps of a sequence, with the Pareto front.

    Args:
        frame: Rows of one task with numbers, and the columns `whole` and `state`; rows without a state are left out.
        where: What the rows have in common, for the title; empty for none.
    """
    frame = frame.dropna(subset=["state"])
    rows = medians(frame)
    kept = frame.groupby("label")["state"].first().reindex(rows.index)
    costs = {"state (numbers per layer and sequence)": kept}
    return _fronts(frame, rows, costs, "Filled: nothing keeps less and is better", where)


def _fronts(
    frame: pd.DataFrame, rows: pd.DataFrame, costs: dict[str, pd.Series], title: str, where: str, below: str = ""
) -> Figure:
    """Draw one panel for each cost; `rows` are the medians of the frame, and the costs have their index."""
    figure = new_figure(len(costs) * (1.8 + 0.07 * len(rows)), below=below)
    panels = np.ravel(figure.subplots(len(costs), 1))
    found = looks(frame)
    styles = [found[str(label)] for label in rows.index]
    colours = [look.colour for look in styles]
    for axes, (text, cost) in zip(panels, costs.items(), strict=True):
        # A mean of the runs that are left is drawn, and is not among the best.
        on_front = front(cost.to_numpy(), rows["accuracy"].where(rows["whole"]).to_numpy())
        best = np.flatnonzero(on_front)[np.argsort(cost.to_numpy()[on_front])]
        corners = np.repeat(np.column_stack([cost.iloc[best], rows["accuracy"].iloc[best]]), 2, axis=0)
        axes.plot(corners[1:, 0], corners[:-1, 1], color="#999999", linewidth=0.9, zorder=1)  # across, then up
        for look, x, y, held in zip(styles, cost, rows["accuracy"], on_front, strict=True):
            face = look.colour if held else "white"
            axes.scatter(
                [x], [y], s=POINT, c=face, edgecolors=look.colour, marker=look.marker, linewidths=0.9, zorder=2
            )
        axes.set(xscale="log", xlabel=text, ylabel="test accuracy (%)")
        axes.margins(0.25)
        plain_ticks(axes.xaxis, *axes.get_xlim())
        mark_preview(axes, int(rows["seeds"].max()))
    write_title(figure, title, where)
    names = wrapped(rows.index, LABEL)
    panels_with_costs = list(zip(panels, costs.values(), strict=True))
    label_points(panels_with_costs, rows["accuracy"], names, math.sqrt(POINT / 2), colours)  # a diamond is the widest
    return figure


def front(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Say of each point whether it is on the Pareto front: (points,) bool.

    It is, unless another point is at least as cheap and as good, and better in one of the two. A point whose cost or
    score is not known (NaN) is not.
    """
    score = comparable(score)
    cheaper, better = cost[:, None] >= cost[None, :], score[:, None] <= score[None, :]
    strictly = (cost[:, None] > cost[None, :]) | (score[:, None] < score[None, :])
    known = ~(np.isnan(cost) | np.isnan(score))
    return np.logical_not(np.any(cheaper & better & strictly, axis=1)) & known


def seed_dots(results: ResultSet, frame: pd.DataFrame, where: str) -> Figure:
    """Draw every run as a dot, the mean as a bar, and the trivial baselines as lines.

    A row that lacks seeds which its suite asks for says how many it has.

    Args:
        results: The records.
        frame: Rows of one task.
        where: What the rows have in common, for the title; empty for none.
    """
    labels = sorted(frame["label"].unique(), reverse=True)
    short = wrapped(labels, 34)
    figure = new_figure(1.3 + 0.2 * len(labels) + extra_height(short))
    axes = figure.subplots()
    names, styles = [], looks(frame)
    for row, (label, name) in enumerate(zip(labels, short, strict=True)):
        group = frame[frame["label"] == label]
        scores = group["accuracy"].dropna()
        offsets = np.linspace(-0.18, 0.18, len(scores)) if len(scores) > 1 else np.zeros(len(scores))
        look = styles[label]
        axes.scatter(
            scores, row + offsets, s=14, color=look.colour, marker=look.marker, alpha=0.8, linewidths=0, zorder=3
        )
        if len(scores) > 1:
            axes.vlines(scores.mean(skipna=False), row - 0.32, row + 0.32, color="#777777", linewidth=1.4, zorder=2)
        lost = group["status"][group["accuracy"].isna()].value_counts().sort_index()
        missing = len(results.seeds) - group["seed"].nunique()
        words = ", ".join(
            [f"{STATUS_WORDS.get(status, status)} {count}" for status, count in lost.items()]
            + [f"not run {missing}"] * (missing > 0)
        )
        names.append(name + (f"\n({words})" if words else ""))
    baselines, _ = highest_baselines(results.records[each] for each in frame["run_id"] if each in results.records)
    axes.set_yticks(range(len(labels)), names)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.margins(x=0.06)
    axes.set_xlabel("test accuracy (%)")
    write_title(figure, "Dots: runs; bar: mean", where)
    mark_preview(axes, seeds_by_cell(frame)[1])
    _draw_baselines(axes, baselines)
    return figure


def _draw_baselines(axes: Axes, baselines: dict[str, float]) -> None:
    """Draw each trivial baseline as a line with its name above the axes, in as many rows as keep the names apart."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    for value in baselines.values():
        axes.axvline(value, color="#777777", linewidth=0.8, linestyle="--", zorder=1)
    figure.draw_without_rendering()
    middle = sum(axes.get_xlim()) / 2
    ends = list[float]()  # the right end of the last name in each row, in pixels
    titles = wrapped(list(baseline_titles(baselines).values()), 20, 1)
    for title, value in sorted(zip(titles, baselines.values(), strict=True), key=lambda item: item[1]):
        text = axes.annotate(
            f"{title} {value:.1f}", (value, 1.0), xycoords=("data", "axes fraction"),
            textcoords="offset points", xytext=(0, 3), ha="left" if value < middle else "right", va="bottom",
            fontsize=SIZE, color="#555555",
        )  # fmt: skip
        box = text.get_window_extent()
        row = next((row for row, end in enumerate(ends) if box.x0 > end + 4), len(ends))
        ends[row : row + 1] = [box.x1]
        text.set_position((0, 3 + ROW * row))
