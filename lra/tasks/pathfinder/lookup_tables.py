# SPDX-License-Identifier: Apache-2.0
"""The recipe of a Pathfinder dataset variant, and the look-up tables that its generator works with.

Parameters: lra_benchmarks/data/pathfinder.py of google-research/long-range-arena, with what it leaves open taken from
Linsley et al. (arXiv:1805.08315).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lra.tasks.pathfinder.sprites import Bytes, direction, segment_sprites, whole_up

Ints = npt.NDArray[np.int64]

SEED_DIRECTIONS = 360
"""The first segment of a curve has a whole number of degrees; the others point to whole pixels."""
CROWDED = 459
"""1.8 of 255: two segments collide where their occupancies of one pixel sum to this."""
COLLIDABLE = CROWDED - 255
"""A pixel that a segment occupies less than this can be in no collision."""
FAINT = 12
"""Occupancies up to this, under 5 %, are not written into the maps."""
WEIGHT_ONE = 4095
"""Turn weights are whole numbers up to this, so that a draw is exact on every machine."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Parameters of one dataset variant; lengths in pixels unless they count segments."""

    size: int
    contour_length: int
    """Segments of each of the two target curves."""
    segment_length: int
    thickness: float
    margins: tuple[int, ...]
    """Free space around segments; one of them for each image."""
    continuity: float
    """How strongly a curve keeps its direction; 1 allows turns up to 90 degrees."""
    seed_distance: int
    """Between the starts of the two curves; twice this from the edge of the image."""
    padding: int
    """Width of the rim of the image that stays free."""
    marker_radius: float
    distractor_length: int
    """Segments of a distractor."""
    num_distractors: int
    """Distractors that are tried; one that finds no room is left out."""
    target_contrast: float
    distractor_contrast: float
    keep_apart: bool = True
    """Whether pairs of targets that touch are given up, see `curves.grow_pairs`."""
    balanced_discs: bool = False
    """Whether pairs of targets are chosen so that the discs tell nothing, see `curves.grow_balanced_pairs`."""


@dataclass(frozen=True)
class Tables:
    """All directions of segments, seed directions first, for one margin.

    Positions are flat indices into a map of `side` x `side` pixels: the image with a border wide enough for every
    sprite. A segment is drawn from its origin. Directions are the last axis, so that taking one column per segment
    gives arrays with one segment per column. A list of pixels that is shorter than its column repeats its first entry.
    """

    side: int
    border: int
    move: Ints
    """(directions,), from the pivot of a segment of this direction to the pivot of the next."""
    turn_head: Ints
    """(turns, directions), from the new pivot to the head of each possible next segment."""
    turn_near: Ints
    """(pixels, turns, directions), from the new pivot to a circle around the head, of the margin's radius.

    A footprint is wider than that circle, so it cannot come within the margin without touching the circle.
    """
    turn_direction: Ints
    """(turns, directions)."""
    turn_weight: Ints
    """(turns, directions), zero after the last turn that a direction allows."""
    core: Ints
    """(core, directions), the collision core: pixels on which a collision can happen, from the origin."""
    core_occupancy: npt.NDArray[np.uint16]
    """(core, directions), how strongly the segment occupies them; wide enough for a sum of two."""
    seed_core: Ints
    """(seed core, seed directions), pixels that a seed occupies wholly, from the origin."""
    footprint: Ints
    """(footprint, directions), pixels that a segment occupies, from the origin."""
    footprint_occupancy: Bytes
    """(footprint, directions), how strongly it occupies them."""
    seed_pivot: Ints
    """(seed directions,), from the origin of a seed to its pivot."""
    seed_usable: Ints
    """Seed directions with which the search for room succeeds, see `_spans_its_origin`."""
    seed_low: Ints
    """(seed directions, 2), first row and column of the origins of the first curve's seed."""
    seed_room: Ints
    """(seed directions, 2), number of rows and columns that such origins can have."""
    blank: Bytes
    """(side x side,), the occupancy map of an empty image: only border and rim are occupied."""
    stroke: Ints
    """(stroke pixels, directions), pixels to draw, from the origin."""
    stroke_value: Ints
    """(stroke pixels, directions), brightness of them, 1 to 255."""


@functools.lru_cache(maxsize=8)
def make_tables(recipe: Recipe, margin: int) -> Tables:
    """Compute the tables of a recipe for one of its margins."""
    length, step = recipe.segment_length, recipe.segment_length + margin
    reach = length + math.ceil(recipe.thickness) + margin  # of the largest sprite, from its origin
    border = reach + margin + 2  # no look-up leaves the map, so none needs a test of bounds
    side = recipe.size + 2 * border
    strides = np.array([side, 1])  # (row, column) @ strides is a flat index
    heads = _circle(step)  # (heads, 2), from a pivot to the head of every possible next segment
    seed_angles = np.arange(-180, 180) * math.pi / 180  # (360,)
    # The turn weights have exact ties of rounding, which one unit in the last place of an angle or a cosine decides.
    # numpy's functions differ by that much between processors; those of `math` do not.
    step_angles = np.array([math.atan2(row, column) for row, column in heads.tolist()])  # (heads,)
    angles = np.concatenate([seed_angles, step_angles])  # (directions,), seeds first

    def shift(distance: float, angle: float) -> int:
        """Return a distance in a direction as a flat index."""
        return int(whole_up(distance * direction(angle)) @ strides)

    # A seed has its origin in its tail and is drawn forwards. Every other segment has it in its head and is drawn
    # backwards, so that the head drawn by `Field.extend` is its origin.
    sprites = [segment_sprites(a, length, recipe.thickness, margin) for a in [*seed_angles, *(step_angles + math.pi)]]
    strokes, areas = map(list, zip(*sprites, strict=True))  # one (rows, columns) uint8 sprite per direction each
    turn_head, turn_direction, turn_weight = _turns(angles, heads @ strides, recipe.continuity)
    near = _rim(margin) @ strides
    seed_core = [area == 255 for area in areas[:SEED_DIRECTIONS]]
    seed_low, seed_room = _seed_boxes(recipe, seed_core, border)
    return Tables(
        side=side,
        border=border,
        move=np.array([shift(length + 2 * margin, a) for a in angles]),
        turn_head=turn_head,
        turn_near=turn_head + near[:, None, None],
        turn_direction=turn_direction,
        turn_weight=turn_weight,
        core=_ragged([pixels(area >= COLLIDABLE, side) for area in areas]),
        core_occupancy=_ragged([area[area >= COLLIDABLE] for area in areas]).astype(np.uint16),
        seed_core=_ragged([pixels(core, side) for core in seed_core]),
        footprint=_ragged([pixels(area > FAINT, side) for area in areas]),
        footprint_occupancy=_ragged([area[area > FAINT] for area in areas]).astype(np.uint8),
        # from the tail forwards to the head, and back to where the pivot of a segment with that head lies
        seed_pivot=np.array([shift(length, a) + shift(step, a + math.pi) for a in seed_angles]),
        seed_usable=np.flatnonzero([_spans_its_origin(core) for core in seed_core]),
        seed_low=seed_low,
        seed_room=seed_room,
        blank=_blank(recipe, border),
        stroke=_ragged([pixels(stroke > 0, side) for stroke in strokes]),
        stroke_value=_ragged([stroke[stroke > 0] for stroke in strokes]),
    )


def _circle(radius: int) -> Ints:
    """List the distinct pixels on a circle around a pixel, one sample per pixel of arc: (pixels, 2)."""
    angle = np.arange(0, 2 * math.pi, 1 / radius)
    circle = radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)  # (samples, 2), (row, column)
    return np.unique(np.floor(np.round(circle, 9)).astype(np.int64), axis=0)


def _rim(radius: int) -> Ints:
    """List the outermost pixels of a disc around a pixel: (pixels, 2)."""
    y, x = np.indices((2 * radius + 1, 2 * radius + 1)) - radius
    # A pixel is on the rim if it is in the disc, and its neighbour away from the centre, in a row or a column, is not.
    further = np.maximum((abs(y) + 1) ** 2 + x**2, y**2 + (abs(x) + 1) ** 2)
    return np.stack(np.nonzero((y**2 + x**2 <= radius**2) & (further > radius**2)), axis=1) - radius


def _turns(angles: npt.NDArray[np.float64], heads: Ints, continuity: float) -> tuple[Ints, Ints, Ints]:
    """List, for every direction, the heads that may follow with their directions and weights cos^2(c x turn)."""
    new = angles[SEED_DIRECTIONS:]  # (heads,), a curve never turns back into a seed direction
    turn = np.abs(angles[:, None] - new)  # (directions, heads)
    # The smaller of the two angles between them, and a right angle, of weight zero, where the turn is too sharp.
    turn = np.minimum(np.minimum(turn, 2 * math.pi - turn) * continuity, math.pi / 2)
    cosine = np.array([math.cos(each) for each in turn.ravel().tolist()]).reshape(turn.shape)  # `math`: see above
    weight = np.round(WEIGHT_ONE * cosine**2).astype(np.int64)
    # Heads by falling weight, cut to the most that any direction allows: (directions, turns).
    order = np.argsort(-weight, axis=1, kind="stable")[:, : int((weight > 0).sum(axis=1).max())]
    weight = np.take_along_axis(weight, order, axis=1)
    return _columns(heads[order]), _columns(order + SEED_DIRECTIONS), _columns(weight)


def pixels(where: npt.NDArray[np.bool_], side: int) -> Ints:
    """Return the flat shifts of marked pixels of a sprite from its centre, in a map of `side` columns."""
    y, x = np.nonzero(where)
    centre = len(where) // 2
    return (y - centre) * side + x - centre


def _ragged(rows: list[npt.NDArray[np.generic]] | list[Ints] | list[Bytes]) -> Ints:
    """Make rows of different lengths the columns of one array, each continued with its first entry."""
    width = max(map(len, rows))
    filled = [np.concatenate([row, np.repeat(row[:1], width - len(row))]) for row in rows]
    return _columns(np.stack(filled).astype(np.int64))


def _columns(rows: Ints) -> Ints:
    """Turn rows into columns."""
    return np.ascontiguousarray(rows.T)  # in memory too, which is what `take` along the last axis reads fastest


def _spans_its_origin(core: npt.NDArray[np.bool_]) -> bool:
    """Return whether a seed's core, moved one pixel down and right, lies on all four sides of the origin.

    The original searches for room by a dilation with that shifted core. Where all of it falls outside the image the
    dilation returns a value below any pixel, on which the search gives up. At 32 and 64 pixels, cores are so small that
    only seeds pointing up and left pass, and most distractors fail. The released images have the densities that follow
    from this accident, so it is kept.
    """
    y, x = np.nonzero(core)
    y, x = y - len(core) // 2 + 1, x - len(core) // 2 + 1
    return all(bool(((sy * y >= 0) & (sx * x >= 0)).any()) for sy in (-1, 1) for sx in (-1, 1))


def _seed_boxes(recipe: Recipe, cores: list[npt.NDArray[np.bool_]], border: int) -> tuple[Ints, Ints]:
    """Return where a seed can lie so that its core stays twice the seed distance from the edge of the image.

    Returns:
        The first (row, column) of its origin, and the number of rows and columns: (seed directions, 2) each.
    """
    centre = len(cores[0]) // 2
    # (seed directions, 2, 2): for rows and columns, how far the core reaches before and behind the origin.
    ends = np.array([[(p.min() - centre, p.max() - centre) for p in np.nonzero(core)] for core in cores])
    inset = 2 * recipe.seed_distance
    low = border + inset - ends[:, :, 0]
    high = border + recipe.size - inset - ends[:, :, 1]
    return low, high - low


def _blank(recipe: Recipe, border: int) -> Bytes:
    """Return the flat occupancy map of an empty image."""
    inner = np.zeros((recipe.size - 2 * recipe.padding,) * 2, dtype=np.uint8)
    return np.pad(inner, recipe.padding + border, constant_values=255).ravel()
