"""The generator of Pathfinder images: geometry, what is drawn, and the densities of the released sets."""

import collections
import dataclasses
import hashlib
import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from lra.seeding import numpy_generator
from lra.tasks.pathfinder.curves import Field, grow_pairs
from lra.tasks.pathfinder.distractors import find_room
from lra.tasks.pathfinder.generator import (
    CHUNK,
    CONTOUR_LENGTHS,
    SIZES,
    SMALL_SIZES,
    generate_chunk,
    generate_scenes,
    make_recipe,
)
from lra.tasks.pathfinder.lookup_tables import CROWDED, SEED_DIRECTIONS, make_tables
from lra.tasks.pathfinder.sprites import dilate, marker_sprite, segment_sprites, shrink


def scenes_of(size, difficulty, count, purpose="tests"):
    return generate_scenes(make_recipe(size, difficulty), count, numpy_generator(0, purpose))


# densities


@pytest.mark.parametrize(
    ("difficulty", "zero_share", "mean", "deviation"),
    [("easy", 0.77, 0.051, 0.169), ("medium", 0.73, 0.060, 0.179), ("hard", 0.66, 0.080, 0.200)],
)
def test_the_densities_at_32_pixels_are_those_of_a_run_of_the_original(difficulty, zero_share, mean, deviation):
    images, _ = scenes_of(32, difficulty, 400)
    levels = images / 255
    assert abs((images == 0).mean() - zero_share) < 0.02
    assert abs(levels.mean() - mean) < 0.004
    assert abs(levels.std() - deviation) < 0.007


@pytest.mark.parametrize(
    ("size", "count", "zero_share", "mean", "deviation"), [(64, 12, 0.74, 0.053, 0.163), (256, 24, 0.96, 0.011, 0.094)]
)
def test_the_densities_of_larger_images_are_near_those_of_the_original(size, count, zero_share, mean, deviation):
    images, _ = scenes_of(size, "hard", count)
    levels = images / 255
    assert abs((images == 0).mean() - zero_share) < 0.03
    assert abs(levels.mean() - mean) < 0.1 * mean
    assert abs(levels.std() - deviation) < 0.1 * deviation


def test_every_image_has_the_full_range():
    images, _ = scenes_of(32, "hard", 200)
    assert (images.min(axis=(1, 2)) == 0).all()
    assert (images.max(axis=(1, 2)) == 255).all()


def test_labels_are_balanced_and_chosen_before_the_geometry():
    labels = np.concatenate([generate_chunk(make_recipe(32, "easy"), 0, number)[1] for number in range(16)])
    assert len(labels) == 16 * CHUNK
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(labels))


def test_distractors_are_brighter_than_targets_at_32_pixels():
    images, scenes = scenes_of(32, "hard", 400)
    rows, columns = np.moveaxis(scenes.targets[:, :, 3:-3], -1, 0)
    targets = images[np.arange(400)[:, None, None], rows, columns]
    image, distractor = np.nonzero(scenes.present)
    rows, columns = np.moveaxis(scenes.distractors[image, distractor], -1, 0)
    distractors = images[image[:, None], rows, columns]
    assert distractors.mean() / targets.mean() == pytest.approx(2.0 / 1.5, rel=0.08)


# geometry


@pytest.mark.parametrize(
    ("size", "difficulty"), [(32, "easy"), (32, "medium"), (32, "hard"), (64, "medium"), (128, "easy")]
)
def test_curves_have_the_length_that_is_asked_for_and_no_jumps(size, difficulty):
    recipe = make_recipe(size, difficulty)
    _, scenes = scenes_of(size, difficulty, 40)
    assert scenes.targets.shape == (40, 2, CONTOUR_LENGTHS[difficulty], 2)
    assert scenes.distractors.shape[1:] == (recipe.num_distractors, CONTOUR_LENGTHS[difficulty] // 3, 2)
    assert 0 <= scenes.targets.min() <= scenes.targets.max() < size
    period = recipe.segment_length + 2 * max(recipe.margins)
    steps = np.linalg.norm(np.diff(scenes.targets, axis=2), axis=-1)
    assert steps.min() > 1
    assert steps.max() <= 2 * period + 2


@pytest.mark.parametrize(("size", "difficulty"), [(32, "hard"), (64, "easy"), (128, "medium")])
def test_segments_keep_clear_of_all_but_their_neighbours(size, difficulty):
    recipe = make_recipe(size, difficulty)
    tables = make_tables(recipe, recipe.margins[-1])
    origins, directions = grow_pairs(recipe, tables, 8, numpy_generator(0, "clear"))
    for pair in range(8):
        first, second = (
            [
                occupied_area(recipe, tables.side, *segment)
                for segment in zip(origins[pair, c], directions[pair, c], strict=True)
            ]
            for c in (0, 1)
        )
        totals = [a + b for a, b in itertools.product(first, second)]
        for curve in (first, second):
            totals += [curve[i] + curve[j] for i, j in itertools.combinations(range(len(curve)), 2) if j > i + 1]
        assert max(int(total.max()) for total in totals) < CROWDED
        neighbours = [a + b for curve in (first, second) for a, b in itertools.pairwise(curve)]
        assert max(int(total.max()) for total in neighbours) > 0


def occupied_area(recipe, side, origin, direction):
    """Draw what one segment occupies, from what its direction means and not from the generator's tables."""
    margin = recipe.margins[-1]
    if direction < SEED_DIRECTIONS:
        angle = (direction - 180) * math.pi / 180
    else:
        step = recipe.segment_length + margin
        arc = np.arange(0, 2 * math.pi, 1 / step)
        ends = np.unique(np.floor(np.round(step * np.stack([np.sin(arc), np.cos(arc)], axis=1), 9)), axis=0)
        row, column = ends[direction - SEED_DIRECTIONS]
        angle = math.atan2(-row, -column)
    area = segment_sprites(angle, recipe.segment_length, recipe.thickness, margin)[1].astype(int)
    occupancy = np.zeros((side, side), dtype=int)
    row, column, reach = origin // side, origin % side, len(area) // 2
    occupancy[row - reach : row + reach + 1, column - reach : column + reach + 1] = area
    return occupancy


def test_the_last_room_for_a_seed_is_found_and_no_room_is_told():
    recipe = make_recipe(32, "easy")
    tables = make_tables(recipe, 1)
    field = Field(tables, 3)
    field.occupancy[:] = 255
    direction = tables.seed_usable[0]
    places = [(frame_row * tables.side + 20) for frame_row in (12, 30)]
    for slot, place in enumerate(places):
        field.occupancy[slot, place + tables.seed_core[:, direction]] = 0
    found, origins = find_room(recipe, field, np.arange(3), np.full(3, direction), numpy_generator(0, "room"))
    assert found.tolist() == [True, True, False]
    assert origins[:2].tolist() == places
    unusable = np.setdiff1d(np.arange(SEED_DIRECTIONS), tables.seed_usable)[:3]
    assert not find_room(recipe, Field(tables, 3), np.arange(3), unusable, numpy_generator(0, "room"))[0].any()


@pytest.mark.parametrize("size", SIZES)
def test_both_discs_are_on_one_curve_exactly_when_the_label_says_so(size):
    images, scenes = scenes_of(size, "easy", 30)
    assert set(scenes.labels) == {0, 1}
    assert ((scenes.marked[:, 0] == scenes.marked[:, 1]) == (scenes.labels == 1)).all()
    for image, targets, marked in zip(images, scenes.targets, scenes.marked, strict=True):
        for row, column in (targets[marked[0], 0], targets[marked[1], -1]):
            assert image[row - 1 : row + 2, column - 1 : column + 2].mean() > 100


def test_the_label_can_be_read_off_the_pixels_alone():
    """Only discs survive erosion; bridging the gaps of the dashes joins two discs on one curve, and seldom others."""
    images, scenes = scenes_of(256, "easy", 60)
    gap = make_recipe(256, "easy").margins[0] + 1
    joined = []
    for image in images:
        lit = image >= 128
        discs, count = ndimage.label(ndimage.binary_erosion(lit, iterations=3))
        assert count == 2
        curves, _ = ndimage.label(dilate(lit.astype(np.uint8), gap), np.ones((3, 3)))
        places = [tuple(np.round(place).astype(int)) for place in ndimage.center_of_mass(discs > 0, discs, (1, 2))]
        joined.append(curves[places[0]] == curves[places[1]])
    joined = np.array(joined)
    assert joined[scenes.labels == 1].mean() > 0.95
    assert joined[scenes.labels == 0].mean() < 0.5


# drawing


def test_shrinking_keeps_flat_areas_and_mirror_images():
    flat = np.full((19, 19), 200, dtype=np.uint8)
    assert (shrink(flat, 9) == 200).all()
    stroke = segment_sprites(0.3, 5, 1.0, 1)[0]
    assert (shrink(stroke[::-1], 7) == shrink(stroke, 7)[::-1]).all()


def test_a_stroke_starts_in_the_centre_and_runs_its_length():
    for angle in np.arange(0, 2 * math.pi, 0.4):
        stroke, area = segment_sprites(angle, 5, 1.5, 2)
        row, column = np.nonzero(stroke > 100)
        along = (row - len(stroke) // 2) * math.sin(angle) + (column - len(stroke) // 2) * math.cos(angle)
        assert -1.0 <= along.min() <= 0.5
        assert 4.0 <= along.max() <= 6.2
        assert (area[stroke > 100] >= 200).all()


def test_a_disc_has_its_area():
    for radius in (1.5, 2.5, 3.0, 5.0):
        assert marker_sprite(radius).sum() / 255 == pytest.approx(math.pi * radius**2, rel=0.15)


def test_growing_an_image_is_the_maximum_within_the_radius():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 11), dtype=np.uint8)
    y, x = np.indices((5, 5)) - 2
    assert (dilate(image, 2) == ndimage.grey_dilation(image, footprint=x**2 + y**2 <= 4, mode="constant", cval=0)).all()


# determinism

GOLDEN = {
    32: "febfa5fbb5841fa3",
    64: "7ef3dba6a2d2a7c0",
    128: "011f28c19d0eee32",
    256: "472a8124a47ddc7f",
}


@pytest.mark.parametrize("size", SIZES)
def test_images_are_those_of_this_version_of_the_generator(size):
    images, scenes = scenes_of(size, "easy", 8, purpose="golden")
    digest = hashlib.sha256(images.tobytes() + scenes.labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest[:16] == GOLDEN[size]


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("towards", [-math.inf, math.inf])
def test_tables_do_not_depend_on_the_last_digit_of_numpys_functions(monkeypatch, size, towards):
    """Those functions differ by one unit in the last place between processors with other vector units."""
    recipe = make_recipe(size, "easy")
    margin = recipe.margins[0]

    def tables():
        make_tables.cache_clear()
        return dataclasses.asdict(make_tables(recipe, margin))

    expected, images = tables(), generate_scenes(recipe, 4, numpy_generator(0, "golden"))[0]
    for name in ("sin", "cos", "tan", "arctan2", "sinc", "hypot", "exp"):
        function = getattr(np, name)
        monkeypatch.setattr(np, name, lambda *x, function=function: np.nextafter(function(*x), towards))
    for name, values in tables().items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    np.testing.assert_array_equal(generate_scenes(recipe, 4, numpy_generator(0, "golden"))[0], images)
    make_tables.cache_clear()


def test_chunks_depend_on_seed_and_number_only():
    recipe = make_recipe(32, "easy")
    images, labels = generate_chunk(recipe, 3, 5)
    again, same = generate_chunk(recipe, 3, 5)
    assert (images == again).all()
    assert (labels == same).all()
    for seed, number in ((4, 5), (3, 6)):
        assert (generate_chunk(recipe, seed, number)[0] != images).any(axis=(1, 2)).all()


# images that are not the benchmark's


def test_small_images_are_those_of_this_version_of_the_generator():
    recipe = make_recipe(16, "easy", contour_length=3, distractors=2, balanced_discs=True)
    images, scenes = generate_scenes(recipe, 20, numpy_generator(0, "golden", 16))
    assert images.shape == (20, 16, 16)
    assert scenes.targets.shape == (20, 2, 3, 2)
    assert scenes.distractors.shape == (20, 2, 1, 2)
    digest = hashlib.sha256(images.tobytes() + scenes.labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest[:16] == "472671bba5274a61"


@pytest.mark.parametrize("size", SMALL_SIZES)
def test_parameters_of_small_images_are_those_of_32_pixels_scaled_to_the_image(size):
    small, whole = make_recipe(size, "easy"), make_recipe(32, "easy")
    scaled = {"size", "seed_distance", "num_distractors"}
    kept = {field.name for field in dataclasses.fields(small)} - scaled
    assert all(getattr(small, name) == getattr(whole, name) for name in kept)
    assert small.seed_distance == int(7 * size / 32)
    assert small.num_distractors == int(20 * (size / 32) ** 2) // 2


def balance_of(scenes):
    """How often each displacement from the first disc to the second occurs with label 1, less with label 0."""
    row = np.arange(len(scenes.labels))
    start, end = scenes.marked.T
    away = scenes.targets[row, end, -1] - scenes.targets[row, start, 0]
    counts = collections.Counter()
    for displacement, label in zip(map(tuple, away.tolist()), scenes.labels.tolist(), strict=True):
        counts[displacement] += 2 * label - 1
    return sum(map(abs, counts.values())), len(row)


def test_balanced_discs_lie_alike_under_either_label():
    recipe = make_recipe(16, "easy", contour_length=4, balanced_discs=True)
    images, scenes = generate_scenes(recipe, 300, numpy_generator(0, "balanced"))
    off, total = balance_of(scenes)
    assert off == 0
    assert (scenes.labels == 1).mean() == 0.5
    assert np.array_equal(scenes.marked, np.stack([np.zeros(total), 1 - scenes.labels], axis=1))
    assert len({image.tobytes() for image in images}) == total  # partners are different images
    # what is not balanced is seen to be so
    off, total = balance_of(generate_scenes(make_recipe(16, "easy", contour_length=4), 300, numpy_generator(0, "b"))[1])
    assert off > 0.3 * total
