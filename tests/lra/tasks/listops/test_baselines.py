"""The accuracies that ListOps gives away, and the guard that holds them against the known figures."""

import math

import numpy as np
import pytest

from lra.data.split import Split
from lra.errors import DataError
from lra.tasks.listops import baselines
from lra.tasks.listops.generator import Grammar, generate_chunk
from lra.tasks.listops.vocabulary import CLOSE, DIGIT_0


@pytest.fixture(scope="module")
def benchmark_splits():
    """About 12,000 examples of the benchmark's distribution, as splits."""
    chunks = [generate_chunk(0, number, Grammar()) for number in range(9)]
    splits = [Split(tokens=c.tokens, offsets=c.offsets, labels=c.labels) for c in chunks]
    lengths = np.concatenate([split.lengths for split in splits[:8]])
    train = Split(
        tokens=np.concatenate([split.tokens for split in splits[:8]]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.concatenate([split.labels for split in splits[:8]]),
    )
    return {"train": train, "validation": splits[8], "test": splits[8]}


def test_baselines_of_the_benchmark_distribution(benchmark_splits):
    baselines.check(benchmark_splits)
    measured = baselines.measure(benchmark_splits)
    assert measured["majority"] == pytest.approx(17.0, abs=4 * 1.04)  # 1,300 trees: 1.04 % standard error
    assert measured["root-only"] == pytest.approx(36.2, abs=4 * 1.34)
    assert measured["root's own digits"] > measured["root-only"] + 4 * 1.34


def test_the_root_applied_to_its_own_digits():
    """[MAX 3 [MIN 9 9 ] 5 ], [SM [MAX 1 2 ] ] and [MED 4 2 [SM 1 1 ] 9 ]."""
    max_, min_, med, sm, close = 2, 1, 3, 4, CLOSE
    texts = [
        [max_, 3, min_, 9, 9, close, 5, close], [sm, max_, 1, 2, close, close], [med, 4, 2, sm, 1, 1, close, 9, close]
    ]  # fmt: skip
    kinds = [[0, 1, 0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1, 0, 1, 0]]  # 1: a digit
    tokens = [t + DIGIT_0 * k for text, kind in zip(texts, kinds, strict=True) for t, k in zip(text, kind, strict=True)]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    split = Split(tokens=np.array(tokens, np.uint8), offsets=offsets, labels=np.array([9, 2, 4], np.uint8))
    assert baselines.values_without_nested(split).tolist() == [5, baselines.MALFORMED, 4]
    score = baselines._score(split, split)
    assert score["root's own digits"] == pytest.approx(200 / 3)  # where the root has no digit, its best answer counts


def test_baselines_catch_labels_that_do_not_follow_the_root(benchmark_splits):
    shuffled = {
        name: Split(tokens=s.tokens, offsets=s.offsets, labels=np.random.default_rng(0).permutation(s.labels))
        for name, s in benchmark_splits.items()
    }
    with pytest.raises(DataError, match="root-only accuracy"):
        baselines.check(shuffled)


def test_baselines_catch_another_share_of_labels(benchmark_splits):
    tilted = {
        name: Split(tokens=s.tokens, offsets=s.offsets, labels=np.where(s.labels == 4, 5, s.labels))
        for name, s in benchmark_splits.items()
    }
    with pytest.raises(DataError, match=r"share of label 4 is 0\.0 %, not 8\.9 %"):
        baselines.check(tilted)


@pytest.mark.parametrize("measured", [math.nan, 30.0, 43.0])
def test_a_figure_that_is_off_or_is_no_number_is_refused(measured):
    baselines._compare("root-only accuracy", 36.2, 36.2, 2000)
    with pytest.raises(DataError, match="root-only accuracy"):
        baselines._compare("root-only accuracy", measured, 36.2, 2000)
