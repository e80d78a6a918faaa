# SPDX-License-Identifier: Apache-2.0
"""The Pathfinder generator: are the two discs on the same dashed curve?

Algorithm of Linsley et al. (arXiv:1805.08315) with the parameters of the Long Range Arena (arXiv:2011.04006), written
anew for many images at once. Two target curves grow in turn from neighbouring starts, distractors fill the room that is
left, and discs mark the start of one curve and the end of the same (label 1) or the other (label 0).

Two deliberate departures: the two targets keep clear of each other all along, so no label is ambiguous, unless the
recipe says otherwise (see `grow_pairs`); and above 32 pixels, where the published parameters leave it open, the number
of distractors is rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lra.seeding import numpy_generator
from lra.tasks.pathfinder.curves import Field, Flags, grow_balanced_pairs, grow_pairs, images_at_once
from lra.tasks.pathfinder.distractors import add_distractors
from lra.tasks.pathfinder.lookup_tables import Ints, Recipe, Tables, make_tables
from lra.tasks.pathfinder.rendering import Canvas
from lra.tasks.pathfinder.sprites import Bytes

VERSION = 1
"""Raised when the same recipe and seed give other images."""
CHUNK = 250
"""Images of a chunk, the unit of work and of random numbers."""

Difficulty = Literal["easy", "medium", "hard"]
CONTOUR_LENGTHS: dict[Difficulty, int] = {"easy": 6, "medium": 9, "hard": 14}
SMALL_SIZES = (16, 24)
"""Not in the benchmark: the parameters of 32 pixels, with places and numbers scaled to the image."""
SIZES = (32, 64, 128, 256)


def make_recipe(
    size: int,
    difficulty: Difficulty,
    *,
    keep_apart: bool = True,
    contour_length: int | None = None,
    distractors: int | None = None,
    balanced_discs: bool = False,
) -> Recipe:
    """Return the parameters of a dataset variant.

    Args:
        size: One of `SIZES` or `SMALL_SIZES`.
        difficulty: Decides how many segments a curve has.
        keep_apart: See `Recipe.keep_apart`.
        contour_length: Segments of a curve in place of those of the difficulty.
        distractors: Distractors that are tried, in place of as many as the benchmark has.
        balanced_discs: See `Recipe.balanced_discs`.
    """
    contour = contour_length or CONTOUR_LENGTHS[difficulty]
    distractor = max(1, contour // 3)
    if size <= 32:
        return Recipe(
            size=size, contour_length=contour, segment_length=2, thickness=0.5, margins=(1,), continuity=1.0,
            seed_distance=7 * size // 32, padding=1, marker_radius=1.5, distractor_length=distractor,
            num_distractors=20 * size**2 // 32**2 // distractor if distractors is None else distractors,
            target_contrast=1.5, distractor_contrast=2.0, keep_apart=keep_apart,
            balanced_discs=balanced_discs,
        )  # fmt: skip
    thickness, margins, distance, padding, radius, segments, contrast = {
        64: (1.0, (1,), 12, 1, 2.5, 22, 0.8),
        128: (1.5, (2, 3), 20, 1, 3.0, 35, 0.9),
        256: (2.0, (3,), 27, 22, 5.0, 30, 1.0),
    }[size]
    return Recipe(
        size=size, contour_length=contour, segment_length=5, thickness=thickness, margins=margins, continuity=1.8,
        seed_distance=distance, padding=padding, marker_radius=radius, distractor_length=distractor,
        num_distractors=segments * 3 // contour if distractors is None else distractors,
        target_contrast=contrast, distractor_contrast=contrast, keep_apart=keep_apart,
        balanced_discs=balanced_discs,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What is on some images; positions are (row, column) pairs of pixels."""

    targets: Ints
    """(images, 2, contour_length, 2): the start of each curve, then the far end of each further segment."""
    distractors: Ints
    """(images, distractors, distractor_length, 2)."""
    present: Flags
    """(images, distractors), False for a distractor that found no room."""
    marked: Ints
    """(images, 2), the curves whose start and whose end carry a disc."""
    labels: Ints
    """(images,), 1 where both discs are on one curve."""


def generate_chunk(recipe: Recipe, seed: int, number: int) -> tuple[Bytes, Bytes]:
    """Generate chunk `number` of the endless stream of a seed.

    Returns:
        Images (CHUNK, size, size) and labels (CHUNK,), uint8.
    """
    images, scenes = generate_scenes(
        recipe, CHUNK, numpy_generator(seed, "pathfinder", recipe.size, recipe.contour_length, number)
    )
    return images, scenes.labels.astype(np.uint8)


def generate_scenes(recipe: Recipe, count: int, rng: np.random.Generator) -> tuple[Bytes, Scenes]:
    """Generate images (count, size, size) together with what is on them."""
    labels = rng.integers(2, size=count)
    start = rng.integers(2, size=count)  # (count,), the curve whose start carries a disc
    margins = rng.integers(len(recipe.margins), size=count)  # (count,), index of the margin of each image
    images = np.zeros((count, recipe.size, recipe.size), dtype=np.uint8)
    scenes = Scenes(
        targets=np.zeros((count, 2, recipe.contour_length, 2), dtype=np.int64),
        distractors=np.zeros((count, recipe.num_distractors, recipe.distractor_length, 2), dtype=np.int64),
        present=np.zeros((count, recipe.num_distractors), dtype=np.bool_),
        marked=np.stack([start, np.where(labels == 1, start, 1 - start)], axis=1),
        labels=labels,
    )
    for index, margin in enumerate(recipe.margins):
        rows = np.flatnonzero(margins == index)  # images of this margin; each margin has tables of its own
        tables = make_tables(recipe, margin)
        if recipe.balanced_discs:
            origins, directions, scenes.labels[rows] = grow_balanced_pairs(recipe, tables, len(rows), rng)
            scenes.marked[rows] = np.stack([np.zeros(len(rows)), 1 - scenes.labels[rows]], axis=1)
        else:
            origins, directions = grow_pairs(recipe, tables, len(rows), rng)
        for first in range(0, len(rows), images_at_once(tables)):
            part = slice(first, first + images_at_once(tables))
            _complete(recipe, tables, origins[part], directions[part], rows[part], images, scenes, rng)
    return images, scenes


def _complete(
    recipe: Recipe,
    tables: Tables,
    origins: Ints,
    directions: Ints,
    rows: Ints,
    images: Bytes,
    scenes: Scenes,
    rng: np.random.Generator,
) -> None:
    """Add distractors to pairs of targets, draw them, and fill in these rows of the images and scenes."""
    count = len(rows)
    # The segments of both target curves in one list: (count, 2 x contour_length).
    both_origins, both_directions = origins.reshape(count, -1), directions.reshape(count, -1)
    field = Field(tables, count)
    for segment in range(both_origins.shape[1]):
        field.place(np.arange(count), both_origins[:, segment], both_directions[:, segment])
    short_origins, short_directions, present = add_distractors(recipe, field, rng)

    canvas = Canvas(tables, count)
    canvas.segments(both_origins, both_directions, np.ones_like(both_origins, dtype=np.bool_), recipe.target_contrast)
    canvas.segments(
        short_origins.reshape(count, -1),
        short_directions.reshape(count, -1),
        np.repeat(present, recipe.distractor_length, axis=1),
        recipe.distractor_contrast,
    )
    start, end = scenes.marked[rows].T
    canvas.discs(origins[np.arange(count), start, 0], recipe.marker_radius)
    canvas.discs(origins[np.arange(count), end, -1], recipe.marker_radius)

    images[rows] = canvas.finish(recipe.size)
    scenes.targets[rows] = _coordinates(tables, origins)
    scenes.distractors[rows] = _coordinates(tables, short_origins)
    scenes.present[rows] = present


def _coordinates(tables: Tables, origins: Ints) -> Ints:
    """Turn flat indices (...) into pixels of the image: (..., 2)."""
    return np.stack(np.divmod(origins, tables.side), axis=-1) - tables.border
