# SPDX-License-Identifier: Apache-2.0
"""Scatter plots: speed, score and memory; the Pareto front of cost and score; and all seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..result_set import ResultSet
from ..tables.captions import baseline_title, seeds_by_cell
from .style import (
    COLOURS,
    COLUMN,
    LINE,
    mark_preview,
    new_figure,
    plain_ticks,
    shown,
    wrapped,
)

MIB = 2**20
APART = 8.0
"""Smallest distance between two numbers on the plot, in points."""
ASIDE = np.array(
    [(0.0, 0.0), *((r * np.cos(a), r * np.sin(a)) for r in (11, 17, 24) for a in np.arange(8) * np.pi / 4)]
)
"""Places of a number relative to its point: on it, or around it."""
LARGEST_BUBBLE = 420.0
"""Area of the largest bubble, in square points."""


def medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per label: mean accuracy, median speed, median memory in MiB, seeds."""
    groups = frame.groupby("label")
    return pd.DataFrame(
        {
            "accuracy": groups["accuracy"].agg(lambda scores: scores.mean(skipna=False)),
            "speed": groups["tokens_per_second"].median(),
            "memory": groups["peak_bytes"].median() / MIB,
            "seeds": groups["seed"].nunique(),
        }
    ).sort_values("accuracy", ascending=False)


def bubbles(frame: pd.DataFrame, where: str) -> Figure:
    """Draw each variant at its speed and score, with an area in proportion to its memory.

    Args:
        frame: Rows of one task and device, all with numbers.
        where: What the rows have in common, for the title.
    """
    rows = medians(frame)
    figure = new_figure(2.5 + 0.13 * len(rows))
    axes = figure.subplots()
    area = LARGEST_BUBBLE * rows["memory"] / rows["memory"].max()
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(rows))]
    axes.scatter(rows["speed"], rows["accuracy"], s=area, c=colours, alpha=0.4, edgecolors=colours, linewidths=0.8)
    axes.set(xscale="log", xlabel="training speed (tokens/s)", ylabel="test accuracy (%)")
    axes.margins(0.18)
    plain_ticks(axes.xaxis, *axes.get_xlim())
    _title(figure, "Area: peak memory", where)
    mark_preview(axes, int(rows["seeds"].max()))
    _key(figure, [f"{label}: {row.memory:,.0f} MiB" for label, row in rows.iterrows()])
    _number_points(axes, rows["speed"], rows["accuracy"])
    return figure


def pareto(frame: pd.DataFrame, where: str) -> Figure:
    """Draw accuracy against training time and against memory; the points of the Pareto front are filled and joined.

    Args:
        frame: Rows of one task and device, all with numbers.
        where: What the rows have in common, for the title.
    """
    rows = medians(frame)
    figure = new_figure(2.3 + 0.13 * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    costs = (("time per 1000 tokens (ms)", 1e6 / rows["speed"]), ("peak memory (MiB)", rows["memory"]))
    for axes, (text, cost) in zip(panels, costs, strict=True):
        on_front = front(cost.to_numpy(), rows["accuracy"].to_numpy())
        best = np.flatnonzero(on_front)[np.argsort(cost.to_numpy()[on_front])]
        axes.step(cost.iloc[best], rows["accuracy"].iloc[best], where="post", color=COLOURS[0], linewidth=0.9, zorder=1)
        faces = [COLOURS[0] if held else "white" for held in on_front]
        axes.scatter(cost, rows["accuracy"], s=70, c=faces, edgecolors=COLOURS[0], linewidths=0.9, zorder=2)
        axes.set(xscale="log", xlabel=text)
        axes.margins(0.2)
        plain_ticks(axes.xaxis, *axes.get_xlim())
        mark_preview(axes, int(rows["seeds"].max()))
    panels[0].set_ylabel("test accuracy (%)")
    _title(figure, "Filled: nothing is cheaper and better", where)
    _key(figure, [str(label) for label in rows.index])
    for axes, (_, cost) in zip(panels, costs, strict=True):
        _number_points(axes, cost, rows["accuracy"], front(cost.to_numpy(), rows["accuracy"].to_numpy()))
    return figure


def front(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Say of each point whether it is on the Pareto front: (points,) bool.

    It is, unless another point is at least as cheap and as good, and better in one of the two. A point whose cost or
    score is not known (NaN) is not.
    """
    cheaper, better = cost[:, None] >= cost[None, :], score[:, None] <= score[None, :]
    strictly = (cost[:, None] > cost[None, :]) | (score[:, None] < score[None, :])
    known = ~(np.isnan(cost) | np.isnan(score))
    return np.logical_not(np.any(cheaper & better & strictly, axis=1)) & known


def seed_dots(results: ResultSet, frame: pd.DataFrame, where: str) -> Figure:
    """Draw every run as a dot, the mean as a bar, and the trivial baselines as lines.

    Args:
        results: The records.
        frame: Rows of one task.
        where: What the rows have in common, for the title.
    """
    labels = sorted(frame["label"].unique(), reverse=True)
    figure = new_figure(1.3 + 0.2 * len(labels))
    axes = figure.subplots()
    names = []
    for row, label in enumerate(labels):
        group = frame[frame["label"] == label]
        scores = group["accuracy"].dropna()
        offsets = np.linspace(-0.18, 0.18, len(scores)) if len(scores) > 1 else np.zeros(len(scores))
        axes.scatter(scores, row + offsets, s=14, color=COLOURS[0], alpha=0.8, linewidths=0, zorder=3)
        if len(scores) > 1:
            axes.vlines(scores.mean(skipna=False), row - 0.32, row + 0.32, color=COLOURS[1], linewidth=1.4, zorder=2)
        lost = group["status"][group["accuracy"].isna()].value_counts().sort_index()
        words = ", ".join(f"{status} {count}" for status, count in lost.items())
        names.append(wrapped(label, 34) + (f"\n({words})" if words else ""))
    baselines = {name: value for run_id in frame["run_id"] if run_id in results.records
             for name, value in results.records[run_id].baselines.items()}  # fmt: skip
    for number, (name, value) in enumerate(sorted(baselines.items(), key=lambda item: item[1])):
        text = f"{shown(baseline_title(name))} {value:.1f}"
        line = ("--", ":", "-.")[number % 3]
        axes.axvline(
            value,
            color="#777777",
            linewidth=0.8,
            linestyle=line,
            label=text,
            zorder=1,
        )
    tallest = max(wrapped(label, 34).count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + LINE * tallest * len(labels))
    axes.set_yticks(range(len(labels)), names)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.margins(x=0.06)
    axes.set_xlabel("test accuracy (%)")
    _title(figure, "Dots: runs; bar: mean", where)
    mark_preview(axes, seeds_by_cell(frame)[1])
    if baselines:
        figure.legend(loc="outside lower center", ncols=3, handlelength=1.6, columnspacing=1.0)
    return figure


def _number_points(axes: Axes, x: pd.Series, y: pd.Series, dark: np.ndarray | None = None) -> None:
    """Number the points; a number that would cover another one is moved aside, with a line to its point.

    Args:
        axes: Axes with everything else drawn, legend and key included, so that the layout is final.
        x: Horizontal positions of the points.
        y: Vertical positions of the points.
        dark: (points,) bool, whether a point has a dark face.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    spots = axes.transData.transform(np.column_stack([x, y])) * 72 / figure.dpi
    placed = np.empty((0, 2))
    for number, spot in enumerate(spots, start=1):
        others = np.vstack([placed, np.delete(spots, number - 1, axis=0)])
        room = [_nearest(placed, spot), *(_nearest(others, spot + aside) for aside in ASIDE[1:])]
        chosen = next(
            (aside for aside, space in zip(ASIDE, room, strict=True) if space > APART), ASIDE[np.argmax(room)]
        )
        placed = np.vstack([placed, spot + chosen])
        aside = bool(np.any(chosen))
        axes.annotate(
            str(number), (x.iloc[number - 1], y.iloc[number - 1]), xytext=tuple(chosen), textcoords="offset points",
            ha="center", va="center", fontsize=5.5, zorder=5,
            color="white" if dark is not None and dark[number - 1] and not aside else "black",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 2, "shrinkB": 0} if aside else None,
        ).set_in_layout(False)  # fmt: skip


def _nearest(points: np.ndarray, spot: np.ndarray) -> float:
    return float(np.hypot(*(points - spot).T).min(initial=np.inf))


def _key(figure: Figure, names: list[str]) -> None:
    """List the numbered points under the axes."""
    lines = [wrapped(name, 56).replace("\n", "\n     ") for name in names]
    text = "\n".join(f"{number}  {line}" for number, line in enumerate(lines, start=1))
    figure.set_figheight(figure.get_figheight() + LINE * sum(line.count("\n") for line in lines))
    figure.supxlabel(text, fontsize=6.5, ha="left", x=0.12)


def _title(figure: Figure, what: str, where: str) -> None:
    longest = int(figure.get_size_inches()[0] / COLUMN * 62)
    figure.suptitle(f"{what}\n{shown(where, longest)}", fontsize=7)
