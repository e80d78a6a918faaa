"""Distractors: short curves in the room that the targets leave, for many images at once."""

from __future__ import annotations

import numpy as np

from lra.tasks.pathfinder.curves import Field, Flags
from lra.tasks.pathfinder.lookup_tables import SEED_DIRECTIONS, Ints, Recipe

TRIES = 5
"""Tries for each distractor (`max_distractor_contour_retrial` 4, plus the first)."""
PLACES = 32
"""Pixels that are probed for a seed before all of them are."""


def add_distractors(recipe: Recipe, field: Field, rng: np.random.Generator) -> tuple[Ints, Ints, Flags]:
    """Grow the distractors of all images of a field, which already holds the targets.

    The original also stops once less than 1 % of an image is free; nothing fits then in any case.

    Returns:
        Anchors and directions, (images, distractors, distractor_length), and which distractors there are,
        (images, distractors).
    """
    shape = (len(field.planes), recipe.num_distractors, recipe.distractor_length)
    anchors, directions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    present = np.zeros(shape[:2], dtype=np.bool_)
    for index in range(recipe.num_distractors):
        missing = np.arange(len(field.planes))
        for _ in range(TRIES):
            if len(missing) == 0:
                break
            grown, its_anchors, its_directions = _grow(recipe, field, missing, rng)
            there = missing[grown]
            anchors[there, index], directions[there, index] = its_anchors, its_directions
            present[there, index] = True
            missing = missing[~grown]
    return anchors, directions, present


def _grow(recipe: Recipe, field: Field, slots: Ints, rng: np.random.Generator) -> tuple[Flags, Ints, Ints]:
    """Try one distractor in each of some images; return where it grew, with anchors and directions of those."""
    length = recipe.distractor_length
    before = field.planes[slots]
    anchors = np.zeros((len(slots), length), dtype=np.int64)
    directions = np.zeros_like(anchors)
    directions[:, 0] = rng.integers(SEED_DIRECTIONS, size=len(slots))
    seeded, anchors[:, 0] = find_room(recipe, field, slots, directions[:, 0], rng)
    alive = np.flatnonzero(seeded)
    pivots = anchors[alive, 0] + field.tables.seed_pivot[directions[alive, 0]]
    for index in range(1, length):
        ok, pivots, direction, head = field.extend(slots[alive], pivots, directions[alive, index - 1], rng)
        alive = alive[ok]
        field.place(slots[alive], anchors[alive, index - 1], directions[alive, index - 1])
        anchors[alive, index], directions[alive, index] = head, direction
    grown = np.zeros(len(slots), dtype=np.bool_)
    grown[alive] = True
    field.place(slots[alive], anchors[alive, -1], directions[alive, -1])
    field.planes[slots[~grown]] = before[~grown]
    return grown, anchors[alive], directions[alive]


def find_room(
    recipe: Recipe, field: Field, slots: Ints, directions: Ints, rng: np.random.Generator
) -> tuple[Flags, Ints]:
    """Draw an anchor among those where a seed has room, all equally likely; say for which images there is none."""
    size, tables = recipe.size, field.tables

    def probe(rows: Ints, pixels: Ints) -> tuple[Flags, Ints]:
        y, x = np.divmod(pixels, size)
        places = (y + tables.frame) * tables.side + x + tables.frame
        room = field.has_room(
            np.repeat(slots[rows], pixels.shape[1]), places.ravel(), np.repeat(directions[rows], pixels.shape[1])
        )
        return room.reshape(places.shape), places

    found, anchors = np.zeros(len(slots), dtype=np.bool_), np.zeros(len(slots), dtype=np.int64)
    usable = np.flatnonzero(np.isin(directions, tables.seed_usable))
    room, places = probe(usable, rng.integers(size * size, size=(len(usable), PLACES)))
    found[usable], anchors[usable] = room.any(axis=1), places[np.arange(len(usable)), room.argmax(axis=1)]
    left = usable[~found[usable]]
    if len(left):
        room, places = probe(left, np.tile(np.arange(size * size), (len(left), 1)))
        draw = (rng.random(len(left)) * room.sum(axis=1)).astype(np.int64)
        pick = (np.cumsum(room, axis=1) <= draw[:, None]).sum(axis=1)
        found[left] = room.any(axis=1)
        anchors[left] = places[np.arange(len(left)), np.minimum(pick, size * size - 1)]
    return found, anchors
