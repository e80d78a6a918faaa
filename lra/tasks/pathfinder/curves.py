# SPDX-License-Identifier: Apache-2.0
"""Growth of dashed curves, many images at once: every step is one array operation over a batch of images.

A `Field` holds one occupancy map per image: how strongly the segments so far occupy each pixel, 0 to 255. The images
are the rows of the batch. A segment is given by its origin, a flat index into the map, and its direction, an index into
the tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lra.tasks.pathfinder.lookup_tables import CROWDED, SEED_DIRECTIONS, Ints, Recipe, Tables

Flags = npt.NDArray[np.bool_]

DRAWS = 3
"""Draws of a next segment before a curve is given up (`max_paddle_retrial` 2, plus the first)."""
SEED_STOCK = 4096
"""Pairs of seeds that are drawn together; more than a batch has rows."""
POOL = 500
"""Pairs of targets that are grown together where partners are looked for among them."""
FREE = 76
"""0.3 of 255: a pixel occupied by no more than this is available to a seed."""


class Field:
    """The occupancy maps of a batch of images, and the operations on them that all curves share."""

    def __init__(self, tables: Tables, images: int) -> None:
        self.tables = tables
        self.occupancy = np.tile(tables.blank, (images, 1))
        """(images, side x side), uint8."""
        # All maps are one flat array, so that a (row, pixel) pair is a single index: take and put are then much faster
        # than indexing with two arrays.
        self._flat = self.occupancy.reshape(-1)  # (images x side x side,), a view
        self._base = np.arange(images) * len(tables.blank)  # (images,), where the map of each row begins

    def clear(self, rows: Ints) -> None:
        """Empty some images."""
        self.occupancy[rows] = self.tables.blank

    def place(self, rows: Ints, origins: Ints, directions: Ints) -> None:
        """Add one segment to each of some images; arguments are (segments,), with no row twice."""
        where = self.tables.footprint.take(directions, axis=1) + (self._base[rows] + origins)  # (footprint, segments)
        # A footprint shorter than its column repeats its first pixel, with the same value: the maximum is unaffected.
        # A row that came twice would lose one of two writes to the same pixel.
        occupancy = self.tables.footprint_occupancy.take(directions, axis=1)  # (footprint, segments)
        self._flat[where] = np.maximum(self._flat.take(where), occupancy)

    def collides(self, rows: Ints, origins: Ints, directions: Ints) -> Flags:
        """Return whether segments would overlap what is there: (segments,)."""
        where = self.tables.core.take(directions, axis=1) + (self._base[rows] + origins)  # (core, segments)
        # The table is uint16, so the sum of two occupancies, up to 510, does not wrap around as uint8 would.
        sums = self._flat.take(where) + self.tables.core_occupancy.take(directions, axis=1)
        return sums.max(axis=0) >= CROWDED

    def has_room(self, rows: Ints, origins: Ints, directions: Ints) -> Flags:
        """Return whether a seed could lie there: arguments are (seeds,), directions those of seeds."""
        where = self.tables.seed_core.take(directions, axis=1) + (self._base[rows] + origins)  # (seed core, seeds)
        return self._flat.take(where).max(axis=0) <= FREE

    def extend(
        self, rows: Ints, pivots: Ints, directions: Ints, rng: np.random.Generator
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """Look for the next segment of one curve in each of some images, without placing it.

        The head lies on a circle around the new pivot. Its probability is in proportion to the weight of the turn and
        to how free the pixel is. A segment that collides is drawn again.

        Args:
            rows: (curves,), images.
            pivots: (curves,), pivots of the last segments.
            directions: (curves,), directions of the last segments.
            rng: Source of the draws.

        Returns:
            Indices into the arguments of the curves that go on, with their new pivots, directions and heads.
        """
        tables = self.tables
        pivots = pivots + tables.move[directions]  # (curves,)
        heads = tables.turn_head.take(directions, axis=1) + pivots  # (turns, curves)
        near = tables.turn_near.take(directions, axis=2) + (self._base[rows] + pivots)  # (pixels, turns, curves)
        # A head is as free as the fullest pixel of the circle of the margin's radius around it: (turns, curves).
        free = 255 - self._flat.take(near).max(axis=0).astype(np.int64)
        # Sampling by inversion, in whole numbers so that a draw is the same on every machine: the cumulative weights of
        # a curve end at their sum, a draw is uniform below it, and the choice is the first turn whose cumulative weight
        # exceeds it. Counting the others finds that turn in all curves at once.
        chances = np.cumsum(tables.turn_weight.take(directions, axis=1) * free, axis=0)  # (turns, curves)
        pending = np.flatnonzero(chances[-1])  # a curve whose weights are all zero has nowhere to go
        chosen = np.zeros(len(rows), dtype=np.int64)  # (curves,), index of the turn
        found = np.zeros(len(rows), dtype=np.bool_)
        for _ in range(DRAWS):
            if len(pending) == 0:
                break
            draw = (rng.random(len(pending)) * chances[-1, pending]).astype(np.int64)  # (pending,)
            choice = (chances.take(pending, axis=1) <= draw).sum(axis=0)  # (pending,)
            chosen[pending] = choice
            hit = self.collides(
                rows[pending], heads[choice, pending], tables.turn_direction[choice, directions[pending]]
            )
            found[pending[~hit]] = True
            pending = pending[hit]
        ok = np.flatnonzero(found)
        return ok, pivots[ok], tables.turn_direction[chosen[ok], directions[ok]], heads[chosen[ok], ok]


def grow_pairs(recipe: Recipe, tables: Tables, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Grow `count` pairs of target curves that keep clear of each other.

    While two curves grow, the newest segment of each is not tested against that of the other, so about a third of the
    finished pairs overlap somewhere. The original keeps those; here they are left out, if `recipe.keep_apart`.

    Returns:
        Origins (the tail of the first segment, the heads of the others) and directions: (count, 2, contour_length).
    """
    stream = _finished_pairs(recipe, tables, rng)
    kept = [(np.zeros((0, 2, recipe.contour_length), dtype=np.int64),) * 2]
    missing = count
    while missing > 0:
        # The stream gives a few pairs at a time; as many as are missing are tested together.
        batch: list[tuple[Ints, Ints]] = []
        while sum(len(origins) for origins, _ in batch) < missing:
            batch.append(next(stream))
        origins, directions = (np.concatenate(part) for part in zip(*batch, strict=True))
        apart = _keep_clear(tables, origins, directions) if recipe.keep_apart else np.ones(len(origins), dtype=np.bool_)
        kept.append((origins[apart], directions[apart]))
        missing -= int(apart.sum())
    origins, directions = (np.concatenate(part)[:count] for part in zip(*kept, strict=True))
    return origins, directions


def grow_balanced_pairs(
    recipe: Recipe, tables: Tables, count: int, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Grow pairs of target curves with labels, so that where the second disc lies from the first says nothing.

    The first disc is at the start of the first curve; the second at the end of the same curve (label 1) or of the other
    (label 0). Each pair is kept together with one of the other label whose discs lie equally far apart, in the same
    direction; what finds no such partner is left out.

    Returns:
        Origins and directions as `grow_pairs` does, and labels (count,).
    """
    alone: dict[tuple[int, int], list[tuple[Ints, Ints, int]]] = defaultdict(list)  # by displacement and label
    kept: list[tuple[Ints, Ints, int]] = []
    while len(kept) < count:
        origins, directions = grow_pairs(recipe, tables, POOL, rng)
        labels = rng.integers(2, size=POOL)
        ends = origins[np.arange(POOL), 1 - labels, -1]  # (POOL,), on the first curve for label 1
        displacements = ends - origins[:, 0, 0]  # starts are near the centre, so each number stands for one place
        for pair, away in zip(
            zip(origins, directions, labels.tolist(), strict=True), displacements.tolist(), strict=True
        ):
            label = pair[2]
            if partners := alone[away, 1 - label]:
                kept += [partners.pop(), pair]
            else:
                alone[away, label].append(pair)
    kept_origins, kept_directions, kept_labels = zip(*kept[:count], strict=True)
    return np.stack(kept_origins), np.stack(kept_directions), np.array(kept_labels)


def _finished_pairs(recipe: Recipe, tables: Tables, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints]]:
    """Yield pairs of curves as they are finished. A pair that gets stuck is given up, and another begins in its row.

    All pairs take the same number of steps, so those that are finished first are those that were begun first: the
    order depends on nothing about their shape.
    """
    length, images = recipe.contour_length, images_at_once(tables)
    field = Field(tables, images)
    origins = np.zeros((images, 2, length), dtype=np.int64)
    directions = np.zeros_like(origins)
    pivots = np.zeros((images, 2), dtype=np.int64)  # of the last segment of either curve
    done = np.zeros(images, dtype=np.int64)  # segments added to either curve of a pair, seeds not counted
    fresh = everyone = np.arange(images)  # rows in which a new pair begins
    seeds, used = _draw_seeds(recipe, tables, rng), 0
    while True:
        field.clear(fresh)
        if used + len(fresh) > SEED_STOCK:
            seeds, used = _draw_seeds(recipe, tables, rng), 0
        origins[fresh, :, 0], directions[fresh, :, 0] = (part[used : used + len(fresh)] for part in seeds)
        used += len(fresh)
        pivots[fresh] = origins[fresh, :, 0] + tables.seed_pivot[directions[fresh, :, 0]]
        done[fresh] = 0
        # The two curves take turns: at even counts the first one grows. Each row is at its own count.
        turn, last = done % 2, done // 2  # (images,), which curve, and the index of its last segment
        ok, pivot, direction, head = field.extend(
            everyone, pivots[everyone, turn], directions[everyone, turn, last], rng
        )
        turn, last = turn[ok], last[ok]
        # The last segment is placed only now: placed before, it would collide with the one that continues it.
        field.place(ok, origins[ok, turn, last], directions[ok, turn, last])
        pivots[ok, turn] = pivot
        origins[ok, turn, last + 1] = head
        directions[ok, turn, last + 1] = direction
        done[ok] += 1
        whole = ok[done[ok] == 2 * (length - 1)]
        if len(whole):
            yield origins[whole], directions[whole]  # copies, so the rows can be used again
        stuck = np.ones(images, dtype=np.bool_)
        stuck[ok] = False
        stuck[whole] = True  # finished, not stuck, but its row is free as well
        fresh = np.flatnonzero(stuck)


def _keep_clear(tables: Tables, origins: Ints, directions: Ints) -> Flags:
    """Return which pairs (pairs, 2, segments) have no collision between their curves: (pairs,)."""
    everyone = np.arange(len(origins))
    field = Field(tables, len(everyone))
    # Only the first curve is placed, so that the second is tested against it and not against itself.
    for segment in range(origins.shape[2]):
        field.place(everyone, origins[:, 0, segment], directions[:, 0, segment])
    collisions = [
        field.collides(everyone, origins[:, 1, segment], directions[:, 1, segment])
        for segment in range(origins.shape[2])
    ]
    return ~np.any(collisions, axis=0)


def _draw_seeds(recipe: Recipe, tables: Tables, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw the two seeds of a stock of pairs: origins and directions, (SEED_STOCK, 2)."""
    count = SEED_STOCK
    first = tables.seed_usable[rng.integers(len(tables.seed_usable), size=count)]  # direction of the first seed
    directions = np.stack([first, rng.integers(SEED_DIRECTIONS, size=count)], axis=1)
    low, room = tables.seed_low[directions[:, 0]], tables.seed_room[directions[:, 0]]  # (count, 2), (row, column)
    y, x = (low + rng.random((count, 2)) * room).astype(np.int64).T
    first = y * tables.side + x  # from here on the origin of the first seed, as a flat index
    bearing = rng.integers(360, size=count) * np.pi / 180  # whole degrees, from the first seed to the second
    # Nine decimals before the floor, so that a sine off by one unit in the last place does not move a pixel.
    away = np.floor(np.round(recipe.seed_distance * np.stack([np.sin(bearing), np.cos(bearing)]), 9) + 0.5)
    second = first + away[0].astype(np.int64) * tables.side + away[1].astype(np.int64)
    return np.stack([first, second], axis=1), directions


def images_at_once(tables: Tables) -> int:
    """Return how many images are best grown at once.

    Index arrays below 128 KiB stay in the allocator's hands; larger ones are mapped anew by every operation, which was
    measured to be five to ten times slower per element.
    """
    pixels, turns, _ = tables.turn_near.shape
    return (127 << 10) // (pixels * turns * 8)  # `near` in `Field.extend` is the largest, of int64
