"""Measure baselines that `lra-data prepare` would take too long for: `python -m benchmarks.baselines FOLDER`.

FOLDER holds prepared data, see `lra-data where`. On Text, a linear map of the n-grams of bytes. On ListOps, boosted
trees on counts of tokens, which need scikit-learn. docs/results.md says what they gave.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import lsmr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lra.data.dataset import PreparedData, open_prepared
from lra.data.split import Split
from lra.tasks.listops.baselines import values_without_nested
from lra.tasks.listops.vocabulary import CLOSE, VOCAB_SIZE

BITS = 18
"""Of the hash of an n-gram, which is its column."""
DAMPING = (0.3, 1.0, 3.0)
"""Penalties of the linear map, of which the validation split chooses."""


def ngrams(split: Split, longest: int) -> sparse.csr_matrix:
    """Return log(1 + count) of the n-grams of 1 to `longest` bytes, (examples, 2**BITS), each row of length 1."""
    tokens, rows, columns = split.tokens.astype(np.uint64), [], []
    example = np.repeat(np.arange(len(split)), np.diff(split.offsets))  # (tokens,)
    for length in range(1, longest + 1):
        size = len(tokens) - length + 1
        codes = np.zeros(size, dtype=np.uint64)
        for place in range(length):
            codes = codes * np.uint64(0x9E3779B97F4A7C15) + tokens[place : place + size] + np.uint64(length)
        codes = (codes ^ (codes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(64 - BITS)
        inside = example[:size] == example[length - 1 :]  # an n-gram does not go over the end of an example
        rows.append(example[:size][inside])
        columns.append(codes[inside].astype(np.int64))
    places = (np.concatenate(rows), np.concatenate(columns))
    counts = sparse.csr_matrix((np.ones(len(places[0]), np.float32), places), shape=(len(split), 1 << BITS))
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    return sparse.diags_array(1 / np.maximum(norms, 1e-12), dtype=np.float32) @ counts


def score_ngrams(data: PreparedData, longest: int) -> float:
    """Return the test accuracy in % of least squares from n-grams to two classes."""
    features = {name: ngrams(data.split(name), longest) for name in ("train", "validation", "test")}
    target = 2.0 * data.split("train").labels - 1.0
    mean = target.mean()

    def accuracy(name: str, weights: npt.NDArray[np.float64]) -> float:
        return 100.0 * float(((features[name] @ weights + mean > 0) == data.split(name).labels).mean())

    fits = [lsmr(features["train"], target - mean, damp=damp, maxiter=60)[0] for damp in DAMPING]
    return accuracy("test", max(fits, key=lambda weights: accuracy("validation", weights)))


def tree_features(split: Split) -> npt.NDArray[np.int64]:
    """Return what counting sees of a tree, (examples, features).

    The root operator applied to its own digits, how often each token comes, how often as an argument of the root, and
    the root itself.
    """
    tokens, first = split.tokens, split.offsets[:-1]
    example = np.repeat(np.arange(len(split)), np.diff(split.offsets))
    depth = np.cumsum((tokens < CLOSE).astype(np.int8) - (tokens == CLOSE).astype(np.int8), dtype=np.int32)
    of_root = (depth == 1) & (tokens > CLOSE) | (depth == 2) & (tokens < CLOSE)
    counts = np.zeros((2, len(split), VOCAB_SIZE), dtype=np.int64)
    np.add.at(counts[0], (example, tokens), 1)
    np.add.at(counts[1], (example[of_root], tokens[of_root]), 1)
    return np.column_stack([values_without_nested(split), *counts, tokens[first]])


def score_trees(data: PreparedData) -> float:
    """Return the test accuracy in % of boosted trees on counts."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    train, test = data.split("train"), data.split("test")
    model = HistGradientBoostingClassifier(max_iter=200, early_stopping=True, random_state=0)
    model.fit(tree_features(train), train.labels)
    return 100.0 * float(model.score(tree_features(test), test.labels))


def main() -> None:
    """Print the baselines of a prepared folder, in %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    data = open_prepared(parser.parse_args().folder, verify=True)
    if data.manifest.task == "text":
        found = {f"byte {longest}-grams": score_ngrams(data, longest) for longest in (3, 5)}
    elif data.manifest.task == "listops":
        found = {"boosted trees on counts": score_trees(data)}
    else:
        parser.error(f"no such baselines for {data.manifest.task}; there are some for text and listops")
    print(data.digest)
    for name, accuracy in found.items():
        print(f"{name}: {accuracy:.2f}")


if __name__ == "__main__":
    main()
