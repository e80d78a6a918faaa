"""Baselines without a model of sequences: what they find, and what they cannot."""

import numpy as np
import pytest

from lra.data.split import SPLITS, Split
from lra.tasks import PROBES, TASKS, get_task
from lra.tasks.baselines import LinearClassifier, linear, majority, pixels, token_counts


def split_of(documents, labels, documents_each=1):
    lengths = [len(document) for document in documents]
    assert len(documents) == documents_each * len(labels)
    return Split(
        tokens=np.concatenate(documents).astype(np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.asarray(labels, dtype=np.uint8),
    )


def splits_of(make, sizes=(600, 20, 400)):
    rng = np.random.default_rng(0)
    return {name: make(rng, size) for name, size in zip(("train", "validation", "test"), sizes, strict=True)}


def texts(rng, size, *, ordered=False):
    """Texts of two letters: the label is the more frequent letter, or, if ordered, the first one."""
    documents, labels = [], []
    for _ in range(size):
        label = rng.integers(2)
        text = rng.permutation(np.repeat([label, 1 - label], [6, 6] if ordered else [8, 4]))
        if ordered:
            text = np.concatenate([[label], rng.permutation(np.repeat([label, 1 - label], [5, 6]))])
        documents.append(text + 97)
        labels.append(label)
    return split_of(documents, labels)


def test_least_squares_are_those_of_numpy():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((200, 5)) * [1, 10, 0.1, 3, 0] + [0, 5, 100, 0, 7]).astype(np.float32)
    labels = (x[:, 0] + x[:, 1] / 10 + 0.3 * rng.standard_normal(200) > 0.5).astype(np.int64)
    model = LinearClassifier(2)
    for part in np.split(np.arange(200), [30, 90]):
        model.add(x[part], labels[part])
    deviation = x.std(axis=0)
    deviation[4] = np.inf  # never changes
    z = (x - x.mean(axis=0)) / deviation
    target = np.eye(2)[labels]
    slope = np.linalg.solve(z.T @ z / 200 + 0.01 * np.eye(5), z.T @ (target - target.mean(axis=0)) / 200)
    expected = z @ slope + target.mean(axis=0)
    actual = np.c_[x, np.ones(200)] @ model.weights()
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert model.right(model.weights(), x, labels).sum() == (expected.argmax(axis=1) == labels).sum()


def test_a_bag_of_tokens_sees_counts_and_no_order():
    assert linear(token_counts, splits_of(texts), 2) == 100.0
    blind = linear(token_counts, splits_of(lambda rng, size: texts(rng, size, ordered=True)), 2)
    assert abs(blind - 50.0) < 4 * 2.5


def test_labels_that_were_shuffled_score_at_chance():
    splits = splits_of(texts)
    test = splits["test"]
    shuffled = np.random.default_rng(1).permutation(test.labels)
    splits["test"] = Split(tokens=test.tokens, offsets=test.offsets, labels=shuffled)
    assert abs(linear(token_counts, splits, 2) - 50.0) < 4 * 2.5


def test_pairs_are_compared_by_what_they_share():
    def pairs(rng, size):
        documents, labels = [], []
        for _ in range(size):
            label, (first, other) = rng.integers(2), rng.choice(20, 2, replace=False)
            documents += [np.repeat(97 + first, 5), np.repeat(97 + (first if label else other), 5)]
            labels.append(label)
        return split_of(documents, labels, documents_each=2)

    assert linear(token_counts, splits_of(pairs), 2) > 99.0


def test_pixels_know_where_and_histograms_do_not():
    def images(rng, size):
        labels = rng.integers(2, size=size)
        pictures = rng.permuted(np.tile([200] * 8 + [10] * 8, (size, 1)), axis=1)
        bright = pictures[np.arange(size), 3] > 100
        return split_of(pictures, np.where(rng.random(size) < 0.95, bright, labels))

    splits = splits_of(images)
    assert linear(pixels, splits, 2) > 95.0
    assert linear(token_counts, splits, 2) < 65.0


def test_large_splits_are_read_in_part(monkeypatch):
    whole = linear(token_counts, splits_of(texts), 2)
    monkeypatch.setattr("lra.tasks.baselines.TRAINING_TOKENS", 1200)
    monkeypatch.setattr("lra.tasks.baselines.TEST_TOKENS", 1200)
    monkeypatch.setattr("lra.tasks.baselines.CHUNK_TOKENS", 100)
    assert linear(token_counts, splits_of(texts), 2) == whole


def test_the_majority_is_learnt_on_train_and_scored_on_test():
    splits = {
        "train": split_of([[1]] * 3, [0, 1, 1]),
        "validation": split_of([[1]], [0]),
        "test": split_of([[1]] * 4, [0, 0, 0, 1]),
    }
    assert majority(splits, 2) == {"chance": 50.0, "majority": 25.0}


def test_a_task_may_measure_the_majority_too_and_differ_in_the_last_bit(tmp_path):
    """A count of a total and a mean of bits round differently."""
    task = PROBES["needle"]
    options = task.options(train=50, validation=5, test=20)
    splits = {name: task.draw(options, name) for name in SPLITS}
    value = np.nextafter(majority(splits, 8)["majority"], 100.0)
    data = task.write(options, tmp_path / "needle", splits, generated_by="a test", baselines={"majority": float(value)})
    assert data.manifest.baselines["majority"] == value


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_has_a_baseline_of_its_own(name):
    expected = {"image": ["pixel histogram", "linear on pixels"], "path": ["discs only"]}
    found = [names for start, names in expected.items() if name.startswith(start)]
    assert list(get_task(name).baseline_features()) == (found[0] if found else ["bag of tokens"])
