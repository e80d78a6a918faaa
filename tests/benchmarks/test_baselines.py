"""Baselines that take a minute: what they count, on examples small enough to count by hand."""

from collections import Counter

import numpy as np

from benchmarks.baselines import BITS, ngrams, tree_features
from lra.data.split import Split
from lra.tasks.listops.vocabulary import IDS, VOCAB_SIZE


def split_of(*documents):
    tokens = [np.asarray(list(document), dtype=np.uint8) for document in documents]
    offsets = np.cumsum([0, *map(len, tokens)])
    return Split(tokens=np.concatenate(tokens), offsets=offsets, labels=np.zeros(len(tokens), dtype=np.int64))


def counted(text, longest):
    return Counter(text[start : start + n] for n in range(1, longest + 1) for start in range(len(text) - n + 1))


def test_ngrams_are_those_of_each_example_alone():
    texts = [b"abab", b"xyz", b"abx"]
    found = ngrams(split_of(*texts), 2)
    assert found.shape == (3, 1 << BITS)
    for row, text in enumerate(texts):
        logs = np.log1p(sorted(counted(text, 2).values()))
        np.testing.assert_allclose(np.sort(found[[row]].data), logs / np.linalg.norm(logs), rtol=1e-5)
    shared = [len(np.intersect1d(found[[0]].indices, found[[row]].indices)) for row in (1, 2)]
    assert shared == [0, len(counted(texts[0], 2).keys() & counted(texts[2], 2).keys())]


def test_tree_features_tell_arguments_of_the_root_from_nested_ones():
    tree = "[MAX 2 [MIN 7 9 ] 4 ]"
    (found,) = tree_features(split_of([IDS[word] for word in tree.split()]))
    value, bag, of_root, root = found[0], found[1 : 1 + VOCAB_SIZE], found[1 + VOCAB_SIZE : -1], found[-1]
    assert (value, root) == (4, IDS["[MAX"])  # the larger of its own digits, 2 and 4
    assert {word: int(bag[IDS[word]]) for word in ("7", "2", "]", "5")} == {"7": 1, "2": 1, "]": 2, "5": 0}
    assert np.flatnonzero(of_root).tolist() == sorted(IDS[word] for word in ("2", "4", "[MIN"))
