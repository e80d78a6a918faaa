"""Measure the Pathfinder generator: `python benchmarks/pathfinder.py --seconds 10`.

One process, CPU time. Prints, for each size and difficulty, images per second and core, what the images look like in
numbers, and the same of the original generator where it was measured: seconds per image on one core of another machine,
share of pixels that are exactly zero, mean and standard deviation of intensities from 0 to 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate

from lra.seeding import numpy_generator
from lra.tasks.pathfinder.generator import CONTOUR_LENGTHS, SIZES, Difficulty, generate_scenes, make_recipe
from lra.tasks.pathfinder.lookup_tables import make_tables

ORIGINAL: dict[tuple[int, Difficulty], tuple[float, float, float, float]] = {
    (32, "easy"): (0.07, 0.77, 0.051, 0.169),
    (32, "medium"): (0.17, 0.73, 0.060, 0.179),
    (32, "hard"): (0.55, 0.66, 0.080, 0.200),
    (64, "hard"): (9.2, 0.74, 0.053, 0.163),
    (128, "hard"): (1.8, 0.86, 0.031, 0.140),
    (256, "hard"): (0.34, 0.96, 0.011, 0.094),
}
"""Seconds per image, zero share, mean, standard deviation of a run of the 2019 code."""
GOAL = 50
"""Images per second and core, over the original's."""


def measure(size: int, difficulty: Difficulty, seconds: float, batch: int) -> list[object]:
    """Generate for some CPU seconds; return one row of the table."""
    recipe = make_recipe(size, difficulty)
    for margin in recipe.margins:
        make_tables(recipe, margin)
    images, distractors, number, start = [], [], 0, time.process_time()
    while time.process_time() - start < seconds:
        pictures, scenes = generate_scenes(recipe, batch, numpy_generator(0, "benchmark", size, difficulty, number))
        images.append(pictures)
        distractors.append(scenes.present.sum(axis=1))
        number += 1
    rate = batch * number / (time.process_time() - start)
    levels = np.concatenate(images) / np.float32(255)
    own = [float((levels == 0).mean()), float(levels.mean()), float(levels.std())]
    original = ORIGINAL.get((size, difficulty))
    there = [None, None, None, None] if original is None else [rate * original[0], *original[1:]]
    drawn = float(np.concatenate(distractors).mean())
    pairs = zip(own, there[1:], strict=True)
    compared = [f"{mine:.3f}" if other is None else f"{mine:.3f} ({other:.3f})" for mine, other in pairs]
    return [size, difficulty, batch * number, rate, there[0], *compared, f"{drawn:.1f} of {recipe.num_distractors}"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what a measurement may be told."""
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU seconds for each dataset variant")
    parser.add_argument("--batch", type=int, default=100, help="images generated together")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=SIZES)


def run(arguments: argparse.Namespace) -> None:
    """Print one row for each dataset variant."""
    rows = [
        measure(size, difficulty, arguments.seconds, arguments.batch)
        for size in arguments.sizes
        for difficulty in CONTOUR_LENGTHS
    ]
    headers = ["size", "difficulty", "images", "images/s/core", "x original", "zeros", "mean", "std", "distractors"]
    print(tabulate(rows, headers=headers, floatfmt=".0f"))
    print(f"In parentheses: the original generator, where it was measured. The goal is {GOAL} times its speed.")


def main() -> None:
    """Measure by itself; `python -m benchmarks.data pathfinder` does the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
