"""The places of the discs: found in the image, and evidence of the label without any curve."""

import numpy as np
import pytest

from lra.seeding import numpy_generator
from lra.tasks import get_task
from lra.tasks.pathfinder.curves import grow_pairs
from lra.tasks.pathfinder.discs import find_discs, place_features
from lra.tasks.pathfinder.generator import generate_scenes, make_recipe
from lra.tasks.pathfinder.lookup_tables import make_tables


@pytest.mark.parametrize(("size", "count"), [(32, 300), (64, 8), (128, 8), (256, 12)])
def test_discs_are_found_where_they_were_drawn(size, count):
    recipe = make_recipe(size, "easy")
    images, scenes = generate_scenes(recipe, count, numpy_generator(0, "discs"))
    row = np.arange(count)
    start, end = scenes.marked.T
    drawn = np.stack([scenes.targets[row, start, 0], scenes.targets[row, end, -1]], axis=1)
    half = (size - 1) / 2
    found = find_discs(images, recipe.marker_radius) * half + half
    straight, crossed = (np.abs(found - order).max(axis=(1, 2)) for order in (drawn, drawn[:, ::-1]))
    assert (np.minimum(straight, crossed) < 0.5).mean() > 0.98
    distance = np.square(found - half).sum(axis=2)
    assert (distance[:, 0] <= distance[:, 1]).all()


def test_features_are_the_same_at_every_call():
    places = np.random.default_rng(0).uniform(-1, 1, (5, 2, 2)).astype(np.float32)
    assert np.array_equal(place_features(places), place_features(places.copy()))
    assert len(np.unique(place_features(places), axis=0)) == 5


@pytest.mark.parametrize("touching", ["refused", "kept"])
def test_two_discs_tell_more_than_chance(touching, tmp_path):
    task = get_task("pathfinder")
    options = task.options(difficulty="easy", count=2000, touching=touching)
    data = task.prepare(options, tmp_path, workers=1, progress=False)
    assert list(data.manifest.baselines) == ["chance", "majority", "discs only"]
    assert data.manifest.baselines["discs only"] > 60.0  # 50 + 3 standard errors of 200 images; 75 of many


def test_touching_curves_make_a_variant_of_its_own_and_the_default_keeps_its_name():
    task = get_task("pathfinder")
    default, kept = task.options(), task.options(touching="kept")
    assert task.folder_name(default) == "pathfinder-hard-41dc695304"
    assert task.folder_name(kept) != task.folder_name(default)
    assert "touching curves kept" in task.dataset_name(kept)
    assert "touching" not in task.dataset_name(default)


def test_a_third_of_the_original_pairs_would_be_refused():
    """Kept and refused pairs come from one stream, so what is refused shows in how many draws are the same."""
    tables = make_tables(make_recipe(32, "hard"), 1)
    origins = [
        grow_pairs(make_recipe(32, "hard", keep_apart=keep), tables, 150, numpy_generator(0, "touching"))[0]
        for keep in (True, False)
    ]
    refused = [pair for pair in origins[1] if not any(np.array_equal(pair, other) for other in origins[0])]
    assert 0.2 < len(refused) / 150 < 0.5
