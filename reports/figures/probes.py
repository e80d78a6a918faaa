# SPDX-License-Identifier: Apache-2.0
"""The figure of the probes: variants by probes, coloured by how far an accuracy is above chance."""

from __future__ import annotations

import functools

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..tables.probes import whole_mean
from .style import PAGE, extra_height, new_figure, wrapped

ROW = 0.17
"""Height of a row, in inches."""


def probe_panels(scores: pd.DataFrame, expected: int = 0) -> Figure:
    """Draw one panel for the length of training and one for the longest test, with the accuracies in %.

    Args:
        scores: See `reports.tables.probes.scores_by_length`, of one profile and track.
        expected: How many seeds a suite asks for; 0 without one. A row that lacks one has no cell.
    """
    labels, columns = sorted(scores["label"].unique(), reverse=True), sorted(scores["column"].unique())
    names = wrapped(labels, 40, 1)
    figure = new_figure(1.1 + ROW * len(names) + extra_height(names), PAGE)
    longest = scores.groupby("column")["length"].transform("max")
    panels = {
        "length of training": scores[scores["length"] == scores["trained"]],
        "longest test": scores[(scores["length"] == longest) & (longest > scores["trained"])],
    }
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, part) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(title)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(labels) - 0.5))
        axes.grid(visible=False)
        found = part.groupby(["label", "column"])
        means = found.agg({"accuracy": functools.partial(whole_mean, expected=expected), "chance": "mean"}).dropna()
        for (label, column), (accuracy, chance) in zip(means.index, means.to_numpy(), strict=True):
            place = (columns.index(column), labels.index(label))
            above = max(0.0, (accuracy - chance) / (100.0 - chance))
            corner = (place[0] - 0.5, place[1] - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor="#0072B2", alpha=above, linewidth=0))
            ink = "white" if above > 0.6 else "black"
            axes.text(*place, f"{accuracy:.0f}", ha="center", va="center", fontsize=6, color=ink)
        axes.set_xticks(range(len(columns)), wrapped(columns, 12), rotation=60, ha="right")
        axes.set_yticks(range(len(labels)), names)
        axes.tick_params(length=0)
    return figure
