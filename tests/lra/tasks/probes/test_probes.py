"""Probes: their labels, their certified distances, and twins that break their promise and are caught."""

import numpy as np
import pytest

from lra.config.profiles import load_profile
from lra.tasks import PROBES
from lra.tasks.probes import CertificateError, Probe, check_certificate
from lra.tasks.probes.copy import Copy
from lra.tasks.probes.group import GroupA5, GroupS3, Parity, product_table
from lra.tasks.probes.listops_distance import ListOpsDistance, lists_of_value
from lra.tasks.probes.needle import Needle
from lra.tasks.probes.recall import Recall

CERTIFIED = {name: task for name, task in PROBES.items() if isinstance(task, Probe)}


def options_of(task, **values):
    few = {"train": 50, "validation": 5, "test": 5}
    return task.options.model_validate(few | values)


def test_all_but_segments_are_certified():
    assert sorted(set(PROBES) - set(CERTIFIED)) == ["segments"]
    assert len(CERTIFIED) == 7


@pytest.mark.parametrize("name", CERTIFIED)
def test_the_certified_distance_is_kept(name):
    task = CERTIFIED[name]
    check_certificate(task, options_of(task, length=64, test_length=[64, 256]), examples=12)


@pytest.mark.parametrize(
    ("task", "values", "distance"),
    [
        (Needle(), {"length": 64}, 32),
        (Needle(), {"length": 64, "distance": 60, "vocabulary": 3}, 60),
        (Recall(), {"length": 64}, 32),
        (Recall(), {"length": 100, "distance": 6, "classes": 2, "pairs": 12, "queries": 5, "noise": 1}, 6),
        (Copy(), {"length": 80, "distance": 70, "items": 8}, 70),
        (ListOpsDistance(), {"length": 40, "distance": 34}, 34),
        (Parity(), {"length": 30, "noise": 0.5}, 29),
        (GroupS3(), {"length": 12}, 11),
        (GroupA5(), {"length": 12, "noise": 0.3}, 11),
    ],
)
def test_the_distance_is_an_option(task, values, distance):
    options = options_of(task, **values)
    assert task.certified_distance(options, options.length) == distance
    check_certificate(task, options, examples=12)


class Nearer(Needle):
    """Its needle lies nearer than it says."""

    def certified_distance(self, options, length):
        return super().certified_distance(options, length) + 20


class NearPair(Recall):
    """One pair lies too near."""

    def example(self, options, length, generator):
        tokens, label = super().example(options, length, generator)
        pairs = np.flatnonzero(tokens > options.noise + options.vocabulary)
        place = options.nearest(length) - 1
        tokens[[place, pairs[0]]] = tokens[[pairs[0], place]]
        return tokens, label


class WrongLabel(Copy):
    """Its label is that of another item."""

    def example(self, options, length, generator):
        tokens, label = super().example(options, length, generator)
        return tokens, (label + 1) % options.vocabulary


class NotAllClasses(GroupS3):
    """Its last element never changes the sign of the product, so only half of the classes can follow."""

    def other_answer(self, options, tokens, answer, generator):
        changed = super().other_answer(options, tokens.copy(), answer, generator)
        return changed if changed[-1] % 2 else tokens


class NoiseMatters(ListOpsDistance):
    """What it takes for noise is the list that decides."""

    def same_answer(self, options, tokens, generator):
        return self.other_answer(options, tokens, (self.answer(options, tokens) + 1) % 10, generator)


@pytest.mark.parametrize(
    ("twin", "message"),
    [
        (Nearer(), "nearer than"),
        (NearPair(), "nearer than"),
        (WrongLabel(), "the tokens say"),
        (NotAllClasses(), "far tokens do not lead"),
        (NoiseMatters(), "should not matter"),
    ],
)
def test_a_broken_twin_is_caught(twin, message):
    with pytest.raises(CertificateError, match=message):
        check_certificate(twin, options_of(twin, length=64), examples=40)


@pytest.mark.parametrize("name", ["needle", "recall", "copy"])
def test_no_single_filler_matters_near_or_far(name):
    """Each filler is replaced in turn. A twin that counts its fillers does not pass."""
    task = PROBES[name]
    options = options_of(task, length=64)
    fillers = range(2, 10) if name == "needle" else range(1, 5)

    def sensitive(answer):
        generator, found = np.random.default_rng(0), 0
        for _ in range(5):
            tokens, label = task.example(options, 64, generator)
            for place in np.flatnonzero(np.isin(tokens, fillers)):
                changed = tokens.copy()
                changed[place] = fillers[0] + (tokens[place] - fillers[0] + 1) % len(fillers)
                found += answer(changed) != label
        return found

    assert sensitive(lambda tokens: task.answer(options, tokens)) == 0
    assert sensitive(lambda tokens: (task.answer(options, tokens) + int((tokens == fillers[0]).sum())) % 4) > 50


@pytest.mark.parametrize("name", ["recall", "copy", "group_s3"])
def test_labels_are_equally_likely_and_a_bag_of_tokens_is_near_chance(name, tmp_path):
    task = PROBES[name]
    options = options_of(task, train=1500, test=1000)
    data = task.build(options, tmp_path / name, source=None, workers=None, progress=False)
    chance = 100 / task.info.num_classes
    spread = 100 * np.sqrt(chance / 100 * (1 - chance / 100) / 1000)
    assert abs(data.manifest.baselines["majority"] - chance) < 4 * spread
    assert abs(data.manifest.baselines["bag of tokens"] - chance) < 5 * spread


def test_products_of_groups_are_those_of_permutations():
    for points, even, size in ((2, False, 2), (3, False, 6), (5, True, 60)):
        table = product_table(points, even=even)
        assert table.shape == (size, size)
        assert (np.sort(table, axis=0) == np.arange(size)[:, None]).all()
        assert (table[0] == np.arange(size)).all()
        rng = np.random.default_rng(0)
        for a, b, c in rng.integers(0, size, (50, 3)):
            assert table[table[a, b], c] == table[a, table[b, c]]
    s3, a5 = product_table(3, even=False), product_table(5, even=True)
    assert (s3 != s3.T).any()
    assert (a5 != a5.T).any()


def test_all_lists_of_three_digits_have_one_value_each():
    assert sum(len(lists_of_value(value)) for value in range(10)) == 3 * 1000


def test_training_lengths_are_drawn_and_test_lengths_are_given():
    task = PROBES["parity"]
    options = options_of(task, length=12, shortest=3, test_length=[12, 48])
    assert set(task.draw(options, "train").lengths.tolist()) == set(range(3, 13))
    assert task.draw(options, "validation").lengths.tolist() == [12] * 5
    assert task.draw(options, "test").lengths.tolist() == [12] * 5 + [48] * 5
    assert task.max_length(options) == 48
    assert task.options.model_validate({"test_length": 32}).test_length == [32]
    assert "tested at 12, 48, certified distance 11" in task.dataset_name(options)


def test_a_probe_whose_test_examples_were_trained_on_says_so(tmp_path):
    task = PROBES["parity"]
    data = task.prepare(options_of(task, length=4, train=200), tmp_path, progress=False)
    assert data.manifest.dataset.endswith("80% of the test examples in train")
    sound = task.prepare(options_of(task, length=64, train=200), tmp_path, progress=False)
    assert "examples in" not in sound.manifest.dataset


def test_lengths_that_say_nothing_new_are_as_if_not_given():
    options = PROBES["recall"].options
    plain = options(length=64)
    assert options(length=64, shortest=64) == plain
    assert options(length=64, distance=32) == plain
    assert options(length=64, test_length=[64, 128], distance=32).distance == 32
    assert options(length=64, test_length=[64, 128]).test_length == [64, 128]
    assert options(length=64, shortest=32).shortest == 32
    assert options(length=64, test_length=[128]).test_length == [128]


def test_examples_are_not_counted_twice_and_no_length_is_above_the_longest():
    options = PROBES["recall"].options
    with pytest.raises(ValueError, match="test_length has a length twice"):
        options(length=64, test_length=[64, 128, 64])
    with pytest.raises(ValueError, match="shortest is 65, above length, which is 64"):
        options(length=64, shortest=65)


def test_the_seed_decides_the_examples():
    task = PROBES["recall"]
    first, again, other = (task.draw(options_of(task, seed=seed), "test") for seed in (0, 0, 1))
    assert (first.tokens == again.tokens).all()
    assert (first.tokens != other.tokens).any()


def test_longest_probes():
    for task in CERTIFIED.values():
        options = options_of(task, length=16_384)
        tokens, label = task.example(options, 16_384, np.random.default_rng(0))
        assert len(tokens) == 16_384
        assert task.answer(options, np.asarray(tokens)) == label


def test_the_profile_has_all_probes():
    assert set(load_profile("probes").tasks) == set(PROBES)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("recall", {"pairs": 6}, "multiple of classes"),
        ("recall", {"length": 14}, "pairs do not fit"),
        ("copy", {"items": 6}, "multiple of vocabulary"),
        ("listops_distance", {"length": 10}, "no room"),
        ("segments", {"length": 64}, "may take"),
        ("segments", {"shown": [0.5]}, "1 probabilities for 3 scales"),
        ("needle", {"length": 32_768}, "less than or equal"),
    ],
)
def test_what_does_not_fit_is_refused(name, values, message):
    with pytest.raises(ValueError, match=message):
        PROBES[name].options.model_validate(values)


def test_needle_has_no_baseline_that_nobody_can_be_above(tmp_path):
    task = PROBES["needle"]
    data = task.build(
        options_of(task, train=500, test=500), tmp_path / "needle", source=None, workers=None, progress=False
    )
    assert max(data.manifest.baselines.values()) < 20


def test_baselines_at_each_length_are_those_of_a_test_of_that_length(tmp_path):
    task = PROBES["listops_distance"]

    def baselines(*lengths):
        options = options_of(task, length=32, test_length=list(lengths), train=2000, test=300)
        folder = tmp_path / str(lengths)
        return task.build(options, folder, source=None, workers=None, progress=False).manifest.baselines

    both = baselines(32, 64)
    assert len(both) == 3 + 2 * 2
    for length in (32, 64):
        alone = baselines(length)
        assert sorted(alone) == ["bag of tokens", "chance", "majority"]
        for name in ("bag of tokens", "majority"):
            assert both[f"{name} at {length}"] == alone[name]
    assert both["bag of tokens at 32"] > both["bag of tokens"] + 1 > both["bag of tokens at 64"] + 2
