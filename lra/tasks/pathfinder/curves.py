"""Growing curves, many at once: each slot of a field is an image in the making, and every step is one array operation.

A field holds one plane of pixels per slot: how strongly each pixel is claimed by the segments so far, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lra.tasks.pathfinder.lookup_tables import CROWDED, SEED_DIRECTIONS, Ints, Recipe, Tables

Flags = npt.NDArray[np.bool_]

DRAWS = 3
"""Draws of a next segment before a curve is given up (`max_paddle_retrial` 2, plus the first)."""
SEED_STOCK = 4096
"""Pairs of seeds that are drawn together; more than there are slots."""
FREE = 76
"""0.3 of 255: a weaker claim leaves a pixel available to a seed."""


class Field:
    """The planes of `slots` images, and the curves' common operations on them."""

    def __init__(self, tables: Tables, slots: int) -> None:
        self.tables = tables
        self.planes = np.tile(tables.blank, (slots, 1))
        """(slots, side x side), uint8."""
        self._flat = self.planes.reshape(-1)
        self._base = np.arange(slots) * len(tables.blank)

    def clear(self, slots: Ints) -> None:
        """Empty some images."""
        self.planes[slots] = self.tables.blank

    def place(self, slots: Ints, anchors: Ints, directions: Ints) -> None:
        """Add one segment to each of some images; arguments are (segments,), with no slot twice."""
        where = self.tables.spread.take(directions, axis=1) + (self._base[slots] + anchors)
        self._flat[where] = np.maximum(self._flat.take(where), self.tables.spread_claim.take(directions, axis=1))

    def collides(self, slots: Ints, anchors: Ints, directions: Ints) -> Flags:
        """Say whether segments would overlap what is there: (segments,)."""
        where = self.tables.core.take(directions, axis=1) + (self._base[slots] + anchors)
        return (self._flat.take(where) + self.tables.core_claim.take(directions, axis=1)).max(axis=0) >= CROWDED

    def has_room(self, slots: Ints, anchors: Ints, directions: Ints) -> Flags:
        """Say whether a seed could lie there: arguments are (seeds,), directions those of seeds."""
        where = self.tables.seed_core.take(directions, axis=1) + (self._base[slots] + anchors)
        return self._flat.take(where).max(axis=0) <= FREE

    def extend(
        self, slots: Ints, pivots: Ints, directions: Ints, rng: np.random.Generator
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """Look for the next segment of one curve in each of some images, without placing it.

        The head lies on a circle around the new pivot, with probability in proportion to the weight of the turn and to
        how free the pixel is; a segment that collides is drawn again.

        Args:
            slots: (curves,), images.
            pivots: (curves,), pivots of the last segments.
            directions: (curves,), directions of the last segments.
            rng: Source of the draws.

        Returns:
            Indices into the arguments of the curves that go on, with their new pivots, directions and heads.
        """
        tables = self.tables
        pivots = pivots + tables.move[directions]
        heads = tables.turn_head.take(directions, axis=1) + pivots
        near = tables.turn_near.take(directions, axis=2) + (self._base[slots] + pivots)
        free = 255 - self._flat.take(near).max(axis=0).astype(np.int64)
        chances = np.cumsum(tables.turn_weight.take(directions, axis=1) * free, axis=0)
        pending = np.flatnonzero(chances[-1])
        chosen = np.zeros(len(slots), dtype=np.int64)
        found = np.zeros(len(slots), dtype=np.bool_)
        for _ in range(DRAWS):
            if len(pending) == 0:
                break
            draw = (rng.random(len(pending)) * chances[-1, pending]).astype(np.int64)
            choice = (chances.take(pending, axis=1) <= draw).sum(axis=0)
            chosen[pending] = choice
            hit = self.collides(
                slots[pending], heads[choice, pending], tables.turn_direction[choice, directions[pending]]
            )
            found[pending[~hit]] = True
            pending = pending[hit]
        ok = np.flatnonzero(found)
        return ok, pivots[ok], tables.turn_direction[chosen[ok], directions[ok]], heads[chosen[ok], ok]


def grow_pairs(recipe: Recipe, tables: Tables, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Grow `count` pairs of target curves that keep clear of each other.

    While two curves grow, the newest segment of each is not tested against that of the other, so about a third of the
    finished pairs overlap somewhere. The original keeps those; here they are left out.

    Returns:
        Anchors (the tail of the first segment, the heads of the others) and directions: (count, 2, contour_length).
    """
    stream = _finished_pairs(recipe, tables, rng)
    kept = [(np.zeros((0, 2, recipe.contour_length), dtype=np.int64),) * 2]
    missing = count
    while missing > 0:
        batch: list[tuple[Ints, Ints]] = []
        while sum(len(anchors) for anchors, _ in batch) < missing:
            batch.append(next(stream))
        anchors, directions = (np.concatenate(part) for part in zip(*batch, strict=True))
        apart = _keep_clear(tables, anchors, directions)
        kept.append((anchors[apart], directions[apart]))
        missing -= int(apart.sum())
    anchors, directions = (np.concatenate(part)[:count] for part in zip(*kept, strict=True))
    return anchors, directions


def _finished_pairs(recipe: Recipe, tables: Tables, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints]]:
    """Yield pairs of curves as they are finished; one that gets stuck is given up, another begun in its slot.

    All pairs take the same number of steps, so those that are finished first are those that were begun first: the
    order says nothing of their shape.
    """
    length, slots = recipe.contour_length, num_slots(tables)
    field = Field(tables, slots)
    anchors = np.zeros((slots, 2, length), dtype=np.int64)
    directions = np.zeros_like(anchors)
    pivots = np.zeros((slots, 2), dtype=np.int64)
    done = np.zeros(slots, dtype=np.int64)
    fresh = everyone = np.arange(slots)
    seeds, used = _draw_seeds(recipe, tables, rng), 0
    while True:
        field.clear(fresh)
        if used + len(fresh) > SEED_STOCK:
            seeds, used = _draw_seeds(recipe, tables, rng), 0
        anchors[fresh, :, 0], directions[fresh, :, 0] = (part[used : used + len(fresh)] for part in seeds)
        used += len(fresh)
        pivots[fresh] = anchors[fresh, :, 0] + tables.seed_pivot[directions[fresh, :, 0]]
        done[fresh] = 0
        turn, last = done % 2, done // 2
        ok, pivot, direction, head = field.extend(
            everyone, pivots[everyone, turn], directions[everyone, turn, last], rng
        )
        turn, last = turn[ok], last[ok]
        field.place(ok, anchors[ok, turn, last], directions[ok, turn, last])
        pivots[ok, turn] = pivot
        anchors[ok, turn, last + 1] = head
        directions[ok, turn, last + 1] = direction
        done[ok] += 1
        whole = ok[done[ok] == 2 * (length - 1)]
        if len(whole):
            yield anchors[whole], directions[whole]
        stuck = np.ones(slots, dtype=np.bool_)
        stuck[ok] = False
        stuck[whole] = True
        fresh = np.flatnonzero(stuck)


def _keep_clear(tables: Tables, anchors: Ints, directions: Ints) -> Flags:
    """Say which pairs (pairs, 2, segments) have no collision between their curves."""
    everyone = np.arange(len(anchors))
    field = Field(tables, len(everyone))
    for segment in range(anchors.shape[2]):
        field.place(everyone, anchors[:, 0, segment], directions[:, 0, segment])
    collisions = [
        field.collides(everyone, anchors[:, 1, segment], directions[:, 1, segment])
        for segment in range(anchors.shape[2])
    ]
    return ~np.any(collisions, axis=0)


def _draw_seeds(recipe: Recipe, tables: Tables, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw the two seeds of a stock of pairs: anchors and directions, (SEED_STOCK, 2)."""
    count = SEED_STOCK
    first = tables.seed_usable[rng.integers(len(tables.seed_usable), size=count)]
    directions = np.stack([first, rng.integers(SEED_DIRECTIONS, size=count)], axis=1)
    low, room = tables.seed_low[directions[:, 0]], tables.seed_room[directions[:, 0]]
    y, x = (low + rng.random((count, 2)) * room).astype(np.int64).T
    first = y * tables.side + x
    bearing = rng.integers(360, size=count) * np.pi / 180
    away = np.floor(np.round(recipe.seed_distance * np.stack([np.sin(bearing), np.cos(bearing)]), 9) + 0.5)
    second = first + away[0].astype(np.int64) * tables.side + away[1].astype(np.int64)
    return np.stack([first, second], axis=1), directions


def num_slots(tables: Tables) -> int:
    """Return how many images are best grown at once.

    Index arrays below 128 KiB stay in the allocator's hands; larger ones are mapped anew by every operation, which was
    measured to be five to ten times slower per element.
    """
    pixels, turns, _ = tables.turn_near.shape
    return (127 << 10) // (pixels * turns * 8)
