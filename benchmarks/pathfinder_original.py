# SPDX-License-Identifier: Apache-2.0
"""Compare our Pathfinder curves with those of the original generator: `python -m benchmarks.pathfinder_original`.

How well do the places of the two discs alone, without a picture, give the label? Below are the rules by which the
original generator (drewlinsley/pathfinder on GitHub, `two_snakes` in snakes2.py) grows its two target curves, written
anew, one pair at a time, with nothing of our generator. Distractors do not move a disc and are left out. Only images of
32 pixels.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tabulate import tabulate

from lra.seeding import numpy_generator
from lra.tasks.baselines import LinearClassifier
from lra.tasks.pathfinder.curves import grow_pairs
from lra.tasks.pathfinder.discs import place_features
from lra.tasks.pathfinder.generator import CONTOUR_LENGTHS, Difficulty, make_recipe
from lra.tasks.pathfinder.lookup_tables import make_tables

Floats = npt.NDArray[np.float64]
Point = tuple[int, int]

SIZE, PADDING, SEED_DISTANCE, LENGTH, MARGIN, SCALE = 32, 1, 7, 2, 1, 2
RETRIES = 2
REACH = LENGTH + 1 + MARGIN  # pixels from the start of a segment to the edge of its sprite; 1 is the width rounded up
CROWDED, FREE = 1.8, 0.3


def moved(point: Point, angle: float, distance: float) -> Point:
    """Go a distance in a direction, rounding up."""
    return math.ceil(point[0] + distance * math.sin(angle)), math.ceil(point[1] + distance * math.cos(angle))


def disc(radius: int) -> list[Point]:
    """List the pixels of a disc around the origin."""
    reach = range(-radius, radius + 1)
    return [(y, x) for y in reach for x in reach if y * y + x * x <= radius * radius]


@functools.cache
def occupied(angle: float) -> Floats:
    """Return what a segment occupies around its start: drawn at twice the size, grown by the margin, shrunk."""
    centre = REACH * SCALE
    fine = Image.new("L", (2 * centre + 1,) * 2)
    end = moved((centre, centre), angle, LENGTH * SCALE)
    ImageDraw.Draw(fine).line([(centre, centre), (end[1], end[0])], fill=255, width=1)
    line = np.pad(np.asarray(fine), MARGIN * SCALE)
    side = 2 * centre + 1
    shifted = [line[y + MARGIN * SCALE :, x + MARGIN * SCALE :][:side, :side] for y, x in disc(MARGIN * SCALE)]
    grown = Image.fromarray(np.max(shifted, axis=0))
    return np.asarray(grown.resize((2 * REACH + 1,) * 2, Image.Resampling.LANCZOS)) / 255.0


class Board:
    """The occupancy of one image, with a border into which sprites may reach."""

    def __init__(self) -> None:
        self.full = np.zeros((SIZE + 2 * REACH,) * 2)
        rim = np.ones((SIZE, SIZE))
        rim[PADDING:-PADDING, PADDING:-PADDING] = 0.0
        self.full[REACH:-REACH, REACH:-REACH] = rim

    def around(self, point: Point) -> Floats:
        """Return the part under the sprite of a segment that starts at a pixel of the image, as a view."""
        return self.full[point[0] : point[0] + 2 * REACH + 1, point[1] : point[1] + 2 * REACH + 1]

    def fullest(self, point: Point) -> float:
        """Return the largest occupancy within the margin of a pixel of the image."""
        y, x = point[0] + REACH, point[1] + REACH
        inside = [(y + dy, x + dx) for dy, dx in disc(MARGIN)]
        return max(float(self.full[at]) for at in inside)

    def crowded(self, point: Point, sprite: Floats) -> bool:
        """Say whether a segment would collide; what it has outside the image does not count."""
        low, high = np.maximum(REACH - np.array(point), 0), np.minimum(SIZE + REACH - np.array(point), 2 * REACH + 1)
        window = slice(low[0], high[0]), slice(low[1], high[1])
        return float((self.around(point)[window] + sprite[window]).max()) >= CROWDED

    def place(self, point: Point, sprite: Floats) -> None:
        """Add a segment."""
        np.maximum(self.around(point), sprite, out=self.around(point))


def inside(point: Point) -> bool:
    """Say whether a pixel is on the image."""
    return min(point) >= 0 and max(point) < SIZE


@functools.cache
def seed_places(degrees: int) -> list[Point]:
    """List the tails that the first seed of a direction may have; none for directions on which the search gives up.

    The search dilates the image, with all that is nearer than twice the seed distance to its edge filled, by the pixels
    that the seed occupies wholly. They are counted from a point one pixel below and to the right of the seed's tail.
    """
    sprite = occupied(degrees * math.pi / 180)
    core = [(int(y) - REACH + 1, int(x) - REACH + 1) for y, x in np.argwhere(sprite >= 1.0)]
    filled = np.full((SIZE, SIZE), 1.0)
    filled[2 * SEED_DISTANCE : -2 * SEED_DISTANCE, 2 * SEED_DISTANCE : -2 * SEED_DISTANCE] = 0.0
    free = []
    for y in range(SIZE):
        for x in range(SIZE):
            seen = [filled[y + dy, x + dx] for dy, dx in core if inside((y + dy, x + dx))]
            if not seen:  # the dilation of nothing is less than any pixel, and the search takes that for a failure
                return []
            if max(seen) <= FREE:
                free.append((y, x))
    return free


def seed_fits(tail: Point, degrees: int) -> Point | None:
    """Return the pivot of a seed; None if its head or pivot is outside the image."""
    angle = degrees * math.pi / 180
    head = moved(tail, angle, LENGTH)
    back = angle + math.pi if angle < 0 else angle - math.pi
    pivot = moved(head, back, LENGTH + MARGIN)
    return pivot if inside(head) and inside(pivot) else None


def draw_pair(length: int, rng: np.random.Generator) -> Floats | None:
    """Try to grow two curves of `length` segments: (start or end, curve, row or column); None if one gets stuck."""
    degrees = int(rng.integers(-180, 180))
    places = seed_places(degrees)
    if not places:
        return None
    first = places[rng.integers(len(places))]
    pivot = seed_fits(first, degrees)
    if pivot is None:
        return None
    for _ in range(RETRIES + 1):
        other, bearing = int(rng.integers(-180, 180)), rng.integers(360) * math.pi / 180
        second = (
            round(first[0] + SEED_DISTANCE * math.sin(bearing)),
            round(first[1] + SEED_DISTANCE * math.cos(bearing)),
        )
        second_pivot = seed_fits(second, other)
        if second_pivot is not None:
            break
    else:
        return None
    board = Board()
    starts = [first, second]
    angles = [degrees * math.pi / 180, other * math.pi / 180]
    pivots, newest = [pivot, second_pivot], [(first, occupied(angles[0])), (second, occupied(angles[1]))]
    for _ in range(length - 1):
        for curve in (0, 1):  # in turn; the newest segments of both are not yet on the board
            found = extend(board, pivots[curve], angles[curve], rng)
            if found is None:
                return None
            board.place(*newest[curve])
            pivots[curve], angles[curve], head, sprite = found
            newest[curve] = (head, sprite)
    return np.array([starts, [head for head, _ in newest]], dtype=np.float64)


@functools.cache
def turns(angle: float) -> list[tuple[Point, float, float]]:
    """List the possible next heads from a pivot: offset, direction and weight, in the order of rows and columns."""
    step = LENGTH + MARGIN
    samples = np.arange(0.0, 360.0, 360.0 / (2 * step * math.pi)) * math.pi / 180
    offsets = sorted({(math.floor(step * math.sin(a)), math.floor(step * math.cos(a))) for a in samples})
    result = []
    for dy, dx in offsets:
        direction = math.atan2(dy, dx)
        change = abs(direction - angle)
        change = min(min(change, 2 * math.pi - change), math.pi / 2)
        result.append(((dy, dx), direction, math.cos(change) ** 2))
    return result


def extend(
    board: Board, pivot: Point, angle: float, rng: np.random.Generator
) -> tuple[Point, float, Point, Floats] | None:
    """Find the next segment of a curve: its pivot, direction, head and sprite; None if there is none."""
    pivot = moved(pivot, angle, LENGTH + 2 * MARGIN)
    options = [
        (head, direction, weight * (1.0 - board.fullest(head)))
        for (dy, dx), direction, weight in turns(angle)
        if inside(head := (pivot[0] + dy, pivot[1] + dx))
    ]
    total = sum(weight for _, _, weight in options)
    if total < 1e-4:
        return None
    cumulated = np.cumsum([weight / total for _, _, weight in options])
    for _ in range(RETRIES + 1):
        head, direction, _ = options[int(np.argmax(cumulated - rng.random() > 0))]
        sprite = occupied(direction + math.pi if direction < 0 else direction - math.pi)
        if not board.crowded(head, sprite):
            return pivot, direction, head, sprite
    return None


def draw_pairs(count: int, length: int, rng: np.random.Generator) -> Floats:
    """Draw pairs of curves by the rules of the original: the tips, (count, start or end, curve, row or column)."""
    pairs: list[Floats] = []
    while len(pairs) < count:
        pair = draw_pair(length, rng)
        if pair is not None:
            pairs.append(pair)
    return np.array(pairs)


def our_pairs(count: int, difficulty: Difficulty, *, keep_apart: bool) -> Floats:
    """Return the tips of pairs of our generator, shaped as those of `draw_pairs`."""
    recipe = make_recipe(SIZE, difficulty, keep_apart=keep_apart)
    tables = make_tables(recipe, MARGIN)
    origins, _ = grow_pairs(recipe, tables, count, numpy_generator(0, "discs", difficulty, keep_apart))
    places = np.stack(np.divmod(origins, tables.side), axis=-1) - tables.border  # (count, curve, segments, 2)
    return np.stack([places[:, :, 0], places[:, :, -1]], axis=1).astype(np.float64)


def examples(tips: Floats) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return what a classifier reads of both choices of discs with either label, and the labels: 4 for each pair."""
    half = (SIZE - 1) / 2
    places, labels = [], []
    for first in (0, 1):
        for second in (0, 1):
            places.append(np.stack([tips[:, 0, first], tips[:, 1, second]], axis=1))
            labels.append(np.full(len(tips), int(first == second)))
    both = (np.concatenate(places) - half) / half
    order = np.argsort(np.square(both).sum(axis=2), axis=1, kind="stable")  # the nearer to the centre first
    both = both[np.arange(len(both))[:, None], order]
    return place_features(both.astype(np.float32)), np.concatenate(labels)


def accuracy(model: LinearClassifier, tips: Floats) -> tuple[float, float]:
    """Return the accuracy in % on pairs that the model has not seen, and its standard error over pairs."""
    x, labels = examples(tips)
    right = model.right(model.weights(), x, labels).reshape(4, -1).mean(axis=0)  # (pairs,)
    return 100 * float(right.mean()), 100 * float(right.std() / math.sqrt(len(right)))


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3000, help="pairs drawn by the rules of the original")
    parser.add_argument("--ours", type=int, default=60_000, help="pairs of our generator, of which 5/6 train")
    parser.add_argument("--difficulty", choices=list(CONTOUR_LENGTHS), default="hard")
    chosen = parser.parse_args()
    start = time.process_time()
    original = draw_pairs(chosen.pairs, CONTOUR_LENGTHS[chosen.difficulty], numpy_generator(0, "original"))
    seconds = time.process_time() - start
    ours = {keep: our_pairs(chosen.ours, chosen.difficulty, keep_apart=keep) for keep in (True, False)}
    cut, rows = 5 * chosen.ours // 6, []
    sets = {"ours, touching refused": ours[True][cut:], "ours, touching kept": ours[False][cut:], "original": original}
    for trained_on, keep in (("ours, touching refused", True), ("ours, touching kept", False)):
        model = LinearClassifier(2)
        model.add(*examples(ours[keep][:cut]))
        rows += [(trained_on, name, len(tips), *accuracy(model, tips)) for name, tips in sets.items()]
    print(tabulate(rows, headers=["fitted to", "scored on", "pairs", "accuracy %", "standard error"], floatfmt=".2f"))
    errors = [row[4] for row in rows[-2:]]
    difference = (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * math.hypot(*errors)
    print(f"With power 80 % at 5 %, a difference of {difference:.1f} points between the last two rows would be found.")
    lengths = []
    for name, tips in sets.items():
        starts, ends = tips[:, 0], tips[:, 1]
        spans = (np.linalg.norm(starts - ends, axis=2).mean(axis=1), np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1))
        lengths.append((name, *(f"{span.mean():.2f} ± {span.std() / math.sqrt(len(span)):.2f}" for span in spans)))
    print(tabulate(lengths, headers=["pixels, mean ± standard error", "start to end of a curve", "end to end"]))
    print(f"{seconds / chosen.pairs * 1000:.0f} ms of CPU time for each pair by the rules of the original")


if __name__ == "__main__":
    main()
