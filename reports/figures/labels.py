# SPDX-License-Identifier: Apache-2.0
"""Names written next to what they name: beside the points of a scatter plot, and at the ends of lines.

Placement is greedy and rounded, so that equal figures have equal labels on every machine. A box is four numbers in
points: left, bottom, right, top.
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
_TOUCH = 1.0
"""Area that two texts may share, in square points."""
_PLACES = list(itertools.product(_DISTANCES, _ANGLES))


def label_points(
    panels: Sequence[tuple[Axes, ArrayLike]],
    y: ArrayLike,
    names: Sequence[str],
    radii: ArrayLike,
    colours: Sequence[str],
) -> None:
    """Write a name beside each point, clear of texts, points and lines, with a line to the point if it is far.

    If no place is free for a name in one of the panels, the names of all panels stand at their right: `label_ends`.

    Args:
        panels: The axes, with everything else drawn, so that the layout is final; and the horizontal positions of the
            points in each. Lines are drawn along the axes, as steps.
        y: Vertical positions of the points.
        names: What to write.
        radii: Sizes of the points, in points.
        colours: Colours of the points.
    """
    figure = panels[0][0].get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    ends = [np.column_stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)]) for _, x in panels]
    radii = np.broadcast_to(np.asarray(radii, dtype=float), len(names))
    found = [_offsets(axes, spots, names, radii) for (axes, _), spots in zip(panels, ends, strict=True)]
    for (axes, _), spots, offsets in zip(panels, ends, found, strict=True):
        if any(each is None for each in found):
            label_ends(axes, [(float(along), float(up)) for along, up in spots], names, colours)
            continue
        for spot, name, (along, up, far), colour in zip(spots, names, offsets or [], colours, strict=True):
            axes.annotate(
                name, (float(spot[0]), float(spot[1])), xytext=(along, up), textcoords="offset points",
                ha="center", va="center", fontsize=SIZE, color=ink(colour), zorder=5,
                arrowprops=_line(colour) if far else None,
            ).set_in_layout(False)  # fmt: skip


def _offsets(
    axes: Axes, ends: np.ndarray, names: Sequence[str], radii: np.ndarray
) -> list[tuple[float, float, bool]] | None:
    """Return how far right of and above its point each name stands, and whether it needs a line; None without room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = 72 / figure.dpi
    spots = axes.transData.transform(ends) * scale
    frame = np.array(axes.get_window_extent().padded(-3 / scale).extents) * scale
    texts = np.array([text.get_window_extent().extents for text in axes.texts]).reshape(-1, 4) * scale
    corners = [axes.transData.transform(line.get_xydata()) * scale for line in axes.lines]
    lines = [(*(np.minimum(a, b) - 1), *(np.maximum(a, b) + 1)) for c in corners for a, b in itertools.pairwise(c)]
    points = np.column_stack([spots - radii[:, None], spots + radii[:, None]])
    sizes = [_size(axes, name) for name in names]
    choices = np.stack([_beside(*each) for each in zip(spots, radii, sizes, strict=True)])
    places = _places(spots, choices, points, np.concatenate([np.array(lines).reshape(-1, 4), texts]), frame)
    boxes = choices[np.arange(len(names)), places]
    shared = _overlap(boxes, np.concatenate([boxes, texts]))
    np.fill_diagonal(shared, 0)
    if (shared > _TOUCH).any():
        return None
    middles = ((boxes[:, :2] + boxes[:, 2:]) / 2 - spots).round(1).tolist()
    return [(along, up, _PLACES[k][0] > 2 * _FREE) for (along, up), k in zip(middles, places, strict=True)]


def _places(
    spots: np.ndarray, choices: np.ndarray, points: np.ndarray, foreign: np.ndarray, frame: np.ndarray
) -> np.ndarray:
    """Choose a place for each name, moving one after the other to where it costs least: (names,) of indices.

    Args:
        spots: (names, 2).
        choices: The boxes of each name at all places, (names, places, 4).
        points: The boxes of the points, (names, 4).
        foreign: Other boxes that no name should cover, (boxes, 4).
        frame: The box in which names belong, (4,).
    """
    far = np.array([distance for distance, _ in _PLACES])
    places = np.full(len(spots), -1)
    crowded = sorted(range(len(spots)), key=lambda k: round(float(np.hypot(*(spots - spots[k]).T).sum()), 1))
    for _ in range(SWEEPS):
        before = places.copy()
        for k in crowded:
            placed = (places >= 0) & (np.arange(len(spots)) != k)
            others = choices[placed, places[placed]]
            covered = _overlap(choices[k], np.concatenate([others, foreign, np.delete(points, k, axis=0)])).sum(1)
            width, height = (choices[k, 0, 2:] - choices[k, 0, :2]).tolist()
            outside = width * height - _overlap(choices[k], frame[None])[:, 0]
            crossed = np.where(far > _FREE, _crossed(spots[k], choices[k], others), 0)
            places[k] = np.argmin((10 * covered + 60 * outside + 40 * crossed + far).round(1))
        if (places == before).all():
            break
    return places


def label_ends(axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str], colours: Sequence[str]) -> None:
    """Write names at the right of the axes, one below the other, with a thin line from what each of them names.

    Args:
        axes: Axes with everything else drawn.
        ends: (x, y) of the point, or of the last point of the line, that each name belongs to.
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
        grid = axes.get_gridspec()  # each row gets its part of the height
        figure.set_figheight(figure.get_figheight() + (grid.nrows if grid else 1) * (needed - height) / 72)
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


def _beside(spot: np.ndarray, radius: float, size: tuple[float, float]) -> np.ndarray:
    """Return the boxes of a label of a size around a point of a radius: (places, 4)."""
    away = np.array([[radius + distance] for distance, _ in _PLACES]) + np.array(size) / 2
    direction = np.array([(np.cos(angle), np.sin(angle)) for _, angle in _PLACES]).round(6)
    middle = spot + direction * away
    return np.concatenate([middle - np.array(size) / 2, middle + np.array(size) / 2], axis=1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the areas that boxes (n, 4) and boxes (m, 4) share: (n, m)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.asarray(sides.clip(0).prod(-1))


def _crossed(spot: np.ndarray, boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Count the other labels (m, 4) through which the line from a point to the middle of a box (n, 4) runs: (n,)."""
    steps = np.linspace(0.0, 1.0, 12)[:, None]
    path = spot * (1 - steps) + ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None] * steps  # (n, 12, 2)
    inside = (path[:, :, None] > others[None, None, :, :2]) & (path[:, :, None] < others[None, None, :, 2:])
    return np.asarray(inside.all(-1).any(1).sum(1))
