# SPDX-License-Identifier: Apache-2.0
"""The figure of average ranks over tasks, with Nemenyi's critical difference."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..tables.captions import seeds_by_cell
from ..tables.comparisons import Ranking
from .style import REFERENCE_COLOUR, extra_height, mark_preview, new_figure, wrapped, write_title

ROW = 0.19
"""Height of a row, in inches."""


def critical_difference(ranking: Ranking, where: str) -> Figure:
    """Draw the average rank of each variant with a bar as long as the critical difference.

    Two variants whose bars do not overlap differ by more than that (J. Demsar, 2006, section 3.2.2).

    Args:
        ranking: The variants, best first.
        where: What the runs have in common, for the title; empty for none.
    """
    places, names = range(len(ranking.labels)), wrapped(ranking.labels, 40, 1)
    words = f"average rank over {len(ranking.columns)} tasks (1 is best)"
    if ranking.missing:
        words += f"; left out, as a task or a seed is missing: {', '.join(ranking.missing)}"
    figure = new_figure(0.79 + ROW * len(names) + extra_height(names), below=words)
    axes = figure.subplots()
    axes.errorbar(
        ranking.ranks, places, xerr=ranking.critical / 2, fmt="o", color=REFERENCE_COLOUR, elinewidth=1.5, capsize=0
    )
    axes.set_yticks(places, names)
    axes.set(ylim=(len(places) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    mark_preview(axes, seeds_by_cell(ranking.runs)[1])
    write_title(figure, "Average ranks", where)
    return figure
