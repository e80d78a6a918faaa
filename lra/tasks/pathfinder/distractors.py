# SPDX-License-Identifier: Apache-2.0
"""Distractors: short curves in the room that the targets leave, for many images at once."""

from __future__ import annotations

import numpy as np

from lra.tasks.pathfinder.curves import Field, Flags
from lra.tasks.pathfinder.lookup_tables import SEED_DIRECTIONS, Ints, Recipe

TRIES = 5
"""Tries for each distractor (`max_distractor_contour_retrial` 4, plus the first)."""
SAMPLED_PIXELS = 32
"""Pixels that are tried for a seed before all of them are."""


def add_distractors(recipe: Recipe, field: Field, rng: np.random.Generator) -> tuple[Ints, Ints, Flags]:
    """Grow the distractors of all images of a field, which already holds the targets.

    The original also stops once less than 1 % of an image is free; nothing fits then in any case.

    Returns:
        Origins and directions, (images, distractors, distractor_length), and which distractors there are,
        (images, distractors).
    """
    shape = (len(field.occupancy), recipe.num_distractors, recipe.distractor_length)
    origins, directions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    present = np.zeros(shape[:2], dtype=np.bool_)
    for index in range(recipe.num_distractors):
        missing = np.arange(len(field.occupancy))  # rows that have no distractor of this index yet
        for _ in range(TRIES):
            if len(missing) == 0:
                break
            grown, new_origins, new_directions = _grow(recipe, field, missing, rng)
            rows = missing[grown]
            origins[rows, index], directions[rows, index] = new_origins, new_directions
            present[rows, index] = True
            missing = missing[~grown]
    return origins, directions, present


def _grow(recipe: Recipe, field: Field, rows: Ints, rng: np.random.Generator) -> tuple[Flags, Ints, Ints]:
    """Try one distractor in each of some images.

    Returns:
        Where one grew, (rows,), and the origins and directions of those, (grown, distractor_length).
    """
    length = recipe.distractor_length
    before = field.occupancy[rows]  # a copy: (rows, side x side)
    origins = np.zeros((len(rows), length), dtype=np.int64)
    directions = np.zeros_like(origins)
    directions[:, 0] = rng.integers(SEED_DIRECTIONS, size=len(rows))
    seeded, origins[:, 0] = find_room(recipe, field, rows, directions[:, 0], rng)
    alive = np.flatnonzero(seeded)  # indices into `rows` of the distractors that still grow
    pivots = origins[alive, 0] + field.tables.seed_pivot[directions[alive, 0]]  # (alive,)
    for index in range(1, length):
        ok, pivots, direction, head = field.extend(rows[alive], pivots, directions[alive, index - 1], rng)
        alive = alive[ok]
        # A segment is placed once its successor is found, which would collide with it otherwise.
        field.place(rows[alive], origins[alive, index - 1], directions[alive, index - 1])
        origins[alive, index], directions[alive, index] = head, direction
    grown = np.zeros(len(rows), dtype=np.bool_)
    grown[alive] = True
    field.place(rows[alive], origins[alive, -1], directions[alive, -1])
    field.occupancy[rows[~grown]] = before[~grown]  # what a failed try has placed is taken back
    return grown, origins[alive], directions[alive]


def find_room(
    recipe: Recipe, field: Field, rows: Ints, directions: Ints, rng: np.random.Generator
) -> tuple[Flags, Ints]:
    """Draw an origin among those at which a seed has room, all equally likely.

    Args:
        recipe: The dataset variant.
        field: The images.
        rows: (seeds,), images.
        directions: (seeds,), directions of the seeds.
        rng: Source of the draws.

    Returns:
        Which seeds have room somewhere, and their origins: (seeds,).
    """
    size, tables = recipe.size, field.tables

    def has_room(seeds: Ints, pixels: Ints) -> tuple[Flags, Ints]:
        """Test (seeds, candidates) pixels of the images; return which have room, and their origins in the maps."""
        y, x = np.divmod(pixels, size)
        places = (y + tables.border) * tables.side + x + tables.border
        candidates = pixels.shape[1]
        room = field.has_room(np.repeat(rows[seeds], candidates), places.ravel(),
                              np.repeat(directions[seeds], candidates))  # fmt: skip
        return room.reshape(places.shape), places

    found, origins = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.int64)
    usable = np.flatnonzero(np.isin(directions, tables.seed_usable))
    # First pass, by rejection: of a few uniform pixels take the first with room. It is uniform among all with room, as
    # in the second pass, and mostly saves testing every pixel.
    room, places = has_room(usable, rng.integers(size * size, size=(len(usable), SAMPLED_PIXELS)))
    found[usable], origins[usable] = room.any(axis=1), places[np.arange(len(usable)), room.argmax(axis=1)]
    left = usable[~found[usable]]
    if len(left):
        # Second pass, exhaustive: number the pixels with room, draw a number, find its pixel by the running count.
        room, places = has_room(left, np.tile(np.arange(size * size), (len(left), 1)))  # (left, size x size)
        draw = (rng.random(len(left)) * room.sum(axis=1)).astype(np.int64)
        pick = (np.cumsum(room, axis=1) <= draw[:, None]).sum(axis=1)
        found[left] = room.any(axis=1)
        # Without any room `pick` is one past the end; what it gives then is not used.
        origins[left] = places[np.arange(len(left)), np.minimum(pick, size * size - 1)]
    return found, origins
