# SPDX-License-Identifier: Apache-2.0
"""The figure of locality: from how far influence comes, what answers need, and who influences whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from lra.measure.locality import Change
from lra.results.dataframe import record_frame
from lra.results.records import RunRecord

from ..tables.locality import DONE, Audit, names_of
from .style import PAGE, looks, new_figure, wrapped

MAPS = 4
"""Runs whose map is drawn, the first ones."""


def locality_panels(
    records: Sequence[RunRecord], audits: Sequence[Audit], scores: Mapping[Change, Sequence[dict[int, float]]]
) -> Figure:
    """Draw curves over distance above, one for each run, and a map of the first example of each run below.

    Args:
        records: The runs.
        audits: What was measured of each.
        scores: By change, the accuracy in % of each run by radius.
    """
    frame = record_frame(records, together=["profile"])
    names = [", ".join(each.values()) for each in names_of(frame.assign(seed="seed " + frame["seed"].astype(str)))]
    look = looks(frame.assign(label=names))
    figure = new_figure(4.2, PAGE)
    parts = figure.subfigures(2, 1, height_ratios=[1.2, 1.0], squeeze=False)
    above, below = parts[0, 0], parts[1, 0]
    axes, *others = above.subplots(1, 1 + len(scores), squeeze=False)[0]
    lines = []
    for name, audit in zip(names, audits, strict=True):
        within = [100.0 * share for share in audit.mixing.within]
        lines += axes.plot(range(len(within)), within, color=look[name].colour, linestyle=look[name].dash)
    axes.set(xlabel="distance (tokens)", ylabel="influence from within (%)", ylim=(0, 102))
    for panel, (change, found) in zip(others, scores.items(), strict=True):
        for name, score in zip(names, found, strict=True):
            each = look[name]
            panel.plot(list(score), list(score.values()), color=each.colour, linestyle=each.dash, marker=each.marker)
        panel.set(xlabel=f"radius beyond which tokens are {DONE[change]}", ylabel="accuracy (%)", ylim=(0, 102))
    for panel in (axes, *others):
        panel.set_xscale("symlog", base=2, linthresh=1)
        farthest = max(2.0, *(float(line.get_xdata()[-1]) for line in panel.get_lines()))
        panel.set(xlim=(0, farthest), xticks=(marks := [0, *(4**power for power in range(8) if 4**power <= farthest)]))
        panel.set_xticklabels([str(mark) for mark in marks])
        panel.minorticks_off()
    above.legend(lines, wrapped(names, 50, 1), loc="outside lower center", ncols=2)
    maps = below.subplots(1, min(MAPS, len(names)), squeeze=False)[0]
    for panel, name, audit in zip(maps, wrapped(names[:MAPS], 90 // len(maps)), audits, strict=False):
        # Each row is divided by its largest influence; what is a thousandth of it or less is as pale as nothing.
        rows = audit.influences / audit.influences.amax(dim=1, keepdim=True)
        panel.imshow(
            torch.log10(rows.clamp(min=1e-3)).numpy(), aspect="auto", cmap="Greys", vmin=-3, interpolation="nearest"
        )
        panel.grid(visible=False)
        panel.set_title(name)
        panel.set(xlabel="token", ylabel="token that was read", yticks=[])
    return figure
