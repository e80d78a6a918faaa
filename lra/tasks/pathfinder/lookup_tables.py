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

from lra.tasks.pathfinder.sprites import Bytes, direction, segment_stamps, whole_up

Ints = npt.NDArray[np.int64]

SEED_DIRECTIONS = 360
"""The first segment of a curve has a whole number of degrees; the others point to whole pixels."""
CROWDED = 459
"""1.8 of 255: the sum of two claims on one pixel that makes a collision."""
CLAIM = CROWDED - 255
"""A weaker claim can be in no collision."""
HAZE = 12
"""Claims up to this, under 5 %, are left out of the planes."""
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
    """How strongly a curve keeps its direction; 1 admits turns up to 90 degrees."""
    seed_distance: int
    """Between the origins of the two curves; twice this from the border."""
    padding: int
    """Width of the border that stays free."""
    marker_radius: float
    distractor_length: int
    """Segments of a distractor."""
    num_distractors: int
    """Distractors that are tried; one that finds no room is left out."""
    target_contrast: float
    distractor_contrast: float


@dataclass(frozen=True)
class Tables:
    """All directions of segments, seed directions first, for one margin.

    Positions are flat indices into a plane of `side` x `side` pixels: the image in a frame wide enough for every stamp.
    Directions are the last axis; a list of pixels that is shorter than its column repeats its first entry.
    """

    side: int
    frame: int
    move: Ints
    """(directions,), from the pivot of a segment of this direction to the pivot of the next."""
    turn_head: Ints
    """(turns, directions), from the new pivot to the head of each possible next segment."""
    turn_near: Ints
    """(pixels, turns, directions), from the new pivot to a circle around the head, of the margin's radius.

    What is claimed is wider than that circle, so it cannot come within the margin without touching it.
    """
    turn_direction: Ints
    """(turns, directions)."""
    turn_weight: Ints
    """(turns, directions), zero where the row is over."""
    core: Ints
    """(core, directions), pixels on which a collision can happen, from the anchor."""
    core_claim: npt.NDArray[np.uint16]
    """(core, directions), claims on them."""
    seed_core: Ints
    """(seed core, seed directions), pixels wholly inside the claimed area, from the anchor."""
    spread: Ints
    """(spread, directions), pixels that a segment claims, from the anchor."""
    spread_claim: Bytes
    """(spread, directions), claims on them."""
    seed_pivot: Ints
    """(seed directions,), from the anchor of a seed to its pivot."""
    seed_usable: Ints
    """Seed directions that the search for room admits, see `_spans_its_anchor`."""
    seed_low: Ints
    """(seed directions, 2), first row and column of the anchors of the first curve's seed."""
    seed_room: Ints
    """(seed directions, 2), number of rows and columns that such anchors can have."""
    blank: Bytes
    """(side x side,), the plane of an empty image: only its border is claimed."""
    ink: Ints
    """(ink, directions), pixels to draw, from the anchor."""
    ink_value: Ints
    """(ink, directions), brightness of them, 1 to 255."""


@functools.lru_cache(maxsize=8)
def make_tables(recipe: Recipe, margin: int) -> Tables:
    """Compute the tables of a recipe for one of its margins."""
    length, step = recipe.segment_length, recipe.segment_length + margin
    reach = length + math.ceil(recipe.thickness) + margin
    frame = reach + margin + 2
    side = recipe.size + 2 * frame
    strides = np.array([side, 1])
    heads = _circle(step)
    seed_angles = np.arange(-180, 180) * math.pi / 180
    step_angles = np.arctan2(heads[:, 0], heads[:, 1])
    angles = np.concatenate([seed_angles, step_angles])

    def shift(distance: float, angle: float) -> int:
        return int(whole_up(distance * direction(angle)) @ strides)

    # a seed is anchored in its tail and drawn forwards, every other segment in its head and drawn backwards
    stamps = [segment_stamps(a, length, recipe.thickness, margin) for a in [*seed_angles, *(step_angles + math.pi)]]
    strokes, claims = map(list, zip(*stamps, strict=True))
    turn_head, turn_direction, turn_weight = _turns(angles, heads @ strides, recipe.continuity)
    near = _rim(margin) @ strides
    seed_core = [claim == 255 for claim in claims[:SEED_DIRECTIONS]]
    seed_low, seed_room = _seed_boxes(recipe, seed_core, frame)
    return Tables(
        side=side,
        frame=frame,
        move=np.array([shift(length + 2 * margin, a) for a in angles]),
        turn_head=turn_head,
        turn_near=turn_head + near[:, None, None],
        turn_direction=turn_direction,
        turn_weight=turn_weight,
        core=_ragged([pixels(claim >= CLAIM, side) for claim in claims]),
        core_claim=_ragged([claim[claim >= CLAIM] for claim in claims]).astype(np.uint16),
        seed_core=_ragged([pixels(core, side) for core in seed_core]),
        spread=_ragged([pixels(claim > HAZE, side) for claim in claims]),
        spread_claim=_ragged([claim[claim > HAZE] for claim in claims]).astype(np.uint8),
        seed_pivot=np.array([shift(length, a) + shift(step, a + math.pi) for a in seed_angles]),
        seed_usable=np.flatnonzero([_spans_its_anchor(core) for core in seed_core]),
        seed_low=seed_low,
        seed_room=seed_room,
        blank=_blank(recipe, frame),
        ink=_ragged([pixels(stroke > 0, side) for stroke in strokes]),
        ink_value=_ragged([stroke[stroke > 0] for stroke in strokes]),
    )


def _circle(radius: int) -> Ints:
    """List the distinct pixels on a circle around a pixel, one sample per pixel of arc: (pixels, 2)."""
    angle = np.arange(0, 2 * math.pi, 1 / radius)
    circle = radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return np.unique(np.floor(np.round(circle, 9)).astype(np.int64), axis=0)


def _rim(radius: int) -> Ints:
    """List the outermost pixels of a disc around a pixel: (pixels, 2)."""
    y, x = np.indices((2 * radius + 1, 2 * radius + 1)) - radius
    further = np.maximum((abs(y) + 1) ** 2 + x**2, y**2 + (abs(x) + 1) ** 2)
    return np.stack(np.nonzero((y**2 + x**2 <= radius**2) & (further > radius**2)), axis=1) - radius


def _turns(angles: npt.NDArray[np.float64], heads: Ints, continuity: float) -> tuple[Ints, Ints, Ints]:
    """List, for every direction, the heads that may follow with their directions and weights cos^2(c x turn)."""
    new = angles[SEED_DIRECTIONS:]
    turn = np.abs(angles[:, None] - new)
    turn = np.minimum(np.minimum(turn, 2 * math.pi - turn) * continuity, math.pi / 2)
    weight = np.round(WEIGHT_ONE * np.cos(turn) ** 2).astype(np.int64)
    order = np.argsort(-weight, axis=1, kind="stable")[:, : int((weight > 0).sum(axis=1).max())]
    weight = np.take_along_axis(weight, order, axis=1)
    return _columns(heads[order]), _columns(order + SEED_DIRECTIONS), _columns(weight)


def pixels(where: npt.NDArray[np.bool_], side: int) -> Ints:
    """Return the flat shifts of marked pixels of a stamp from its centre, in a plane of `side` columns."""
    y, x = np.nonzero(where)
    centre = len(where) // 2
    return (y - centre) * side + x - centre


def _ragged(rows: list[npt.NDArray[np.generic]] | list[Ints] | list[Bytes]) -> Ints:
    """Make rows of different lengths the columns of one array, each continued with its first entry."""
    width = max(map(len, rows))
    filled = [np.concatenate([row, np.repeat(row[:1], width - len(row))]) for row in rows]
    return _columns(np.stack(filled).astype(np.int64))


def _columns(rows: Ints) -> Ints:
    return np.ascontiguousarray(rows.T)


def _spans_its_anchor(core: npt.NDArray[np.bool_]) -> bool:
    """Say whether a seed's core, moved one pixel down and right, lies on all four sides of the anchor.

    The original searches for room by a dilation with that shifted core. Where all of it falls outside the image the
    dilation returns a value below any pixel, on which the search gives up. At 32 and 64 pixels, cores are so small that
    only seeds pointing up and left pass, and most distractors fail. The released images have the densities that follow
    from this accident, so it is kept.
    """
    y, x = np.nonzero(core)
    y, x = y - len(core) // 2 + 1, x - len(core) // 2 + 1
    return all(bool(((sy * y >= 0) & (sx * x >= 0)).any()) for sy in (-1, 1) for sx in (-1, 1))


def _seed_boxes(recipe: Recipe, cores: list[npt.NDArray[np.bool_]], frame: int) -> tuple[Ints, Ints]:
    """Return where a seed can be anchored so that its core stays twice the seed distance from the border."""
    centre = len(cores[0]) // 2
    ends = np.array([[(p.min() - centre, p.max() - centre) for p in np.nonzero(core)] for core in cores])
    inset = 2 * recipe.seed_distance
    low = frame + inset - ends[:, :, 0]
    high = frame + recipe.size - inset - ends[:, :, 1]
    return low, high - low


def _blank(recipe: Recipe, frame: int) -> Bytes:
    inner = np.zeros((recipe.size - 2 * recipe.padding,) * 2, dtype=np.uint8)
    return np.pad(inner, recipe.padding + frame, constant_values=255).ravel()
