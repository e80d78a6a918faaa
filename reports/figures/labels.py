# SPDX-License-Identifier: Apache-2.0
"""Names written next to what they name: beside the points of a scatter plot, and at the ends of lines.

Placement is greedy and rounded, so that equal figures have equal labels on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Annotation, Text
from numpy.typing import ArrayLike

SIZE = 6.0
"""Font size of a label, in points."""
ROW = 7.6
"""Height of a line of labels, in points."""
SWEEPS = 4
"""How often each label is moved to its best place among the others."""
_DISTANCES = (2.0, 5.0, 10.0, 16.0, 24.0, 34.0, 46.0)
"""Distances of a label from the edge of its point, in points."""
_ANGLES = [np.pi / 8 * step for step in (0, 8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15)]
"""Directions from a point to its label; the first are preferred."""
_FREE = 2.0
"""Cost of a place, in points, that counts as free."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def label_points(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    names: Sequence[str],
    radii: Sequence[float],
    colours: Sequence[str],
    lines: Sequence[np.ndarray] = (),
) -> None:
    """Write a name beside each point, clear of other names and points, with a line to the point if it is far.

    Args:
        axes: Axes with everything else drawn, so that the layout is final.
        x: Horizontal positions of the points.
        y: Vertical positions of the points.
        names: What to write.
        radii: Sizes of the points, in points.
        colours: Colours of the points.
        lines: What no name should cover: the corners of lines that run along the axes, each (corners, 2).
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    spots = axes.transData.transform(np.column_stack([x, y])) * scale
    frame = axes.get_window_extent().padded(-3 / scale)
    inside = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    sizes = [_size(axes, name) for name in names]
    points = [(px - r, py - r, px + r, py + r) for (px, py), r in zip(spots, radii, strict=True)]
    corners = [axes.transData.transform(line) * scale for line in lines]
    drawn = [
        (*(np.minimum(a, b) - 1), *(np.maximum(a, b) + 1)) for line in corners for a, b in itertools.pairwise(line)
    ]
    choices = [
        [
            (distance, _beside(spot, radius + distance, angle, size))
            for distance, angle in itertools.product(_DISTANCES, _ANGLES)
        ]
        for spot, radius, size in zip(spots, radii, sizes, strict=True)
    ]
    places: list[tuple[float, Box] | None] = [None] * len(names)
    crowded = sorted(range(len(names)), key=lambda k: round(float(np.hypot(*(spots - spots[k]).T).sum()), 1))
    for _ in range(SWEEPS):
        for k in crowded:
            others = [place[1] for other, place in enumerate(places) if place is not None and other != k]
            foreign = [*drawn, *(box for other, box in enumerate(points) if other != k)]

            def cost(
                choice: tuple[float, Box], others: Sequence[Box] = others, foreign: Sequence[Box] = foreign, k: int = k
            ) -> float:
                distance, box = choice
                covered = sum(_overlap(box, other) for other in others) + sum(_overlap(box, p) for p in foreign)
                outside = _area(box) - _overlap(box, inside)
                crossed = sum(_crosses(tuple(spots[k]), box, other) for other in others) if distance > _FREE else 0
                return round(10 * covered + 60 * outside + 40 * crossed + distance, 1)

            places[k] = min(choices[k], key=cost)
    for spot, name, place, colour in zip(spots, names, places, colours, strict=True):
        assert place is not None
        distance, box = place
        middle = ((box[0] + box[2]) / 2 - spot[0], (box[1] + box[3]) / 2 - spot[1])
        position = axes.transData.inverted().transform(spot / scale)
        axes.annotate(
            name, tuple(position), xytext=(round(middle[0], 1), round(middle[1], 1)), textcoords="offset points",
            ha="center", va="center", fontsize=SIZE, color=ink(colour), zorder=5,
            arrowprops=_line(colour) if distance > 2 * _FREE else None,
        ).set_in_layout(False)  # fmt: skip


def label_ends(axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str], colours: Sequence[str]) -> None:
    """Write a name at the right of each line, one below the other, with a thin line from the end of the line.

    Args:
        axes: Axes with all lines drawn.
        ends: (x, y) of the last point of each line.
        names: What to write; it may have several lines.
        colours: Colours of the names.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    texts: list[Annotation] = [
        axes.annotate(
            name, end, xytext=(1.06, 0.5), textcoords="axes fraction", ha="left", va="center", fontsize=SIZE,
            color=ink(colour), annotation_clip=False, arrowprops=_line(colour) | {"relpos": (0.0, 0.5)},
        )
        for name, end, colour in zip(names, ends, colours, strict=True)
    ]  # fmt: skip
    needed = sum(ROW * (name.count("\n") + 1) for name in names)
    figure.draw_without_rendering()
    height = axes.get_window_extent().height * 72 / figure.dpi
    if needed > height:
        figure.set_figheight(figure.get_figheight() + (needed - height) / 72)
        figure.draw_without_rendering()
        height = axes.get_window_extent().height * 72 / figure.dpi
    wanted = [float(axes.transAxes.inverted().transform(axes.transData.transform(end))[1]) * height for end in ends]
    rooms = [ROW * (name.count("\n") + 1) for name in names]
    for text, place in zip(texts, spread(wanted, rooms, height), strict=True):
        text.set_position((1.06, round(place / height, 3)))


def spread(wanted: Sequence[float], rooms: Sequence[float], height: float) -> list[float]:
    """Return places near the wanted ones, in their order, at which labels do not overlap.

    Args:
        wanted: Middle of each label.
        rooms: Height of each label.
        height: All labels lie between 0 and this, if they fit.
    """
    groups: list[tuple[list[int], float]] = []  # labels that touch, and the bottom of the lowest
    for k in sorted(range(len(wanted)), key=lambda k: (round(wanted[k], 2), k)):
        members, bottom = [k], wanted[k] - rooms[k] / 2
        while True:
            bottom = max(0.0, min(bottom, height - sum(rooms[m] for m in members)))
            if not groups or groups[-1][1] + sum(rooms[m] for m in groups[-1][0]) <= bottom:
                break
            members = groups.pop()[0] + members
            offsets = [sum(rooms[m] for m in members[:n]) + rooms[m] / 2 for n, m in enumerate(members)]
            bottom = sum(wanted[m] - offset for m, offset in zip(members, offsets, strict=True)) / len(members)
        groups.append((members, bottom))
    places = list(wanted)
    for members, bottom in groups:
        for member in members:
            places[member] = bottom + rooms[member] / 2
            bottom += rooms[member]
    return places


def ink(colour: str) -> str:
    """Return a colour darkened for thin letters on white."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.72 * red, 0.72 * green, 0.72 * blue))


def _line(colour: str) -> dict[str, object]:
    return {"arrowstyle": "-", "linewidth": 0.4, "color": colour, "shrinkA": 0, "shrinkB": 0, "alpha": 0.7}


def _size(axes: Axes, name: str) -> tuple[float, float]:
    """Return width and height of a label, in points."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    text: Text = axes.text(0, 0, name, fontsize=SIZE)
    box = text.get_window_extent()
    text.remove()
    return box.width * 72 / figure.dpi, box.height * 72 / figure.dpi


def _beside(spot: np.ndarray, distance: float, angle: float, size: tuple[float, float]) -> Box:
    """Return the box of a label whose edge is at a distance from a spot, in a direction."""
    along, up = round(float(np.cos(angle)), 6), round(float(np.sin(angle)), 6)
    x = spot[0] + along * (distance + size[0] / 2)
    y = spot[1] + up * (distance + size[1] / 2)
    return (x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _crosses(spot: tuple[float, ...], label: Box, other: Box) -> bool:
    """Say whether the line from a point to the middle of its label runs through another label."""
    end = ((label[0] + label[2]) / 2, (label[1] + label[3]) / 2)
    steps = np.linspace(0.0, 1.0, 12)[:, None]
    path = np.array(spot) * (1 - steps) + np.array(end) * steps
    inside = (path[:, 0] > other[0]) & (path[:, 0] < other[2]) & (path[:, 1] > other[1]) & (path[:, 1] < other[3])
    return bool(inside.any())
