# SPDX-License-Identifier: Apache-2.0
"""Baselines that come without a model of sequences, worked out on the very data: what a reviewer would ask for first.

All of them are a linear map of a few features, fitted to the training split by least squares and scored on the test
split. Nothing in them is drawn at random from one call to the next, and they take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from lra.data.split import Split, SplitName

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

Features = Callable[[Split, Ints], Floats]
"""(split, numbers of examples) -> (examples, features)."""

TRAINING_TOKENS, TEST_TOKENS = 200_000_000, 50_000_000
"""Tokens that are read of either split; of a larger split every k-th example is taken."""
CHUNK_TOKENS = 4_000_000
"""Tokens whose features are computed together."""
VALUES = 256
"""Stored tokens are bytes."""
PENALTY = 1e-2
"""Of the squared weights, for features of variance 1, relative to the number of examples."""


class LinearClassifier:
    """Least squares from features to labels as 0 and 1, with a small penalty; batches are added one by one."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._gram: npt.NDArray[np.float64] | None = None
        self._answers: npt.NDArray[np.float64] | None = None

    def add(self, x: Floats, labels: npt.NDArray[np.integer]) -> None:
        """Add examples: (examples, features) and (examples,)."""
        columns = _with_one(x)
        target: npt.NDArray[np.float64] = np.eye(self.num_classes)[labels]  # (examples, classes)
        gram, answers = columns.T @ columns, columns.T @ target
        self._gram = gram if self._gram is None else self._gram + gram
        self._answers = answers if self._answers is None else self._answers + answers

    def weights(self) -> npt.NDArray[np.float64]:
        """Return the map of all that was added, (features + 1, classes); the last row is the constant."""
        assert self._gram is not None
        assert self._answers is not None
        count = self._gram[-1, -1]
        mean = self._gram[-1] / count
        # At mean 0 and variance 1 the penalty treats all features alike; one that never changes counts as 0.
        covariance = self._gram / count - np.outer(mean, mean)
        spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        scale = np.where(spread > 1e-6 * (1.0 + np.abs(mean)), 1.0 / np.maximum(spread, 1e-30), 0.0)
        target = self._answers[-1] / count  # (classes,), share of each
        right = (self._answers / count - np.outer(mean, target)) * scale[:, None]
        left = covariance * np.outer(scale, scale) + PENALTY * np.eye(len(mean))
        weights = np.linalg.solve(left, right) * scale[:, None]
        weights[-1] = target - mean @ weights
        return weights

    @staticmethod
    def right(weights: npt.NDArray[np.float64], x: Floats, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Return for each example whether its label has the largest value, (examples,)."""
        answers: npt.NDArray[np.int64] = (_with_one(x) @ weights).argmax(axis=1)
        return answers == labels


def _with_one(x: Floats) -> npt.NDArray[np.float64]:
    return np.concatenate((x.astype(np.float64), np.ones((len(x), 1))), axis=1)


def majority(splits: Mapping[SplitName, Split], num_classes: int) -> dict[str, float]:
    """Return accuracies in % on the test split: of chance, and of the training split's most frequent label."""
    answer = np.bincount(splits["train"].labels, minlength=num_classes).argmax()
    return {
        "chance": 100.0 / num_classes,
        "majority": 100.0 * float((splits["test"].labels == answer).mean()),
    }


def linear(features: Features, splits: Mapping[SplitName, Split], num_classes: int) -> float:
    """Return the accuracy in % on the test split of a linear map of features, fitted to the training split."""
    model = LinearClassifier(num_classes)
    for rows in _chunks(splits["train"], TRAINING_TOKENS):
        model.add(features(splits["train"], rows), splits["train"].labels[rows])
    weights, test = model.weights(), splits["test"]
    chunks = list(_chunks(test, TEST_TOKENS))
    correct = sum(int(model.right(weights, features(test, rows), test.labels[rows]).sum()) for rows in chunks)
    return 100.0 * correct / sum(map(len, chunks))


def _chunks(split: Split, tokens: int) -> Iterator[Ints]:
    """Yield numbers of examples: of all, or of every k-th so that they hold about `tokens` tokens at most."""
    rows = np.arange(0, len(split), -(-len(split.tokens) // tokens))
    size = max(1, CHUNK_TOKENS * len(split) // len(split.tokens))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def token_counts(split: Split, rows: Ints) -> Floats:
    """Return the logarithm of 1 + how often each token comes, (examples, VALUES); for pairs see `_compare`."""
    counts = [
        np.stack([np.bincount(split.tokens_of(int(row), document), minlength=VALUES) for row in rows])
        for document in range(split.documents)
    ]
    logs = [np.log1p(each).astype(np.float32) for each in counts]
    return logs[0] if len(logs) == 1 else _compare(*logs)


def _compare(first: Floats, second: Floats) -> Floats:
    """Return what two documents have in common and what sets them apart, (examples, 2 * VALUES)."""
    return np.concatenate((first * second, np.abs(first - second)), axis=1)


def pixels(split: Split, rows: Ints) -> Floats:
    """Return the levels of images of one size, (examples, pixels), 0 to 1."""
    side = int(split.lengths[0])
    return split.tokens.reshape(-1, side)[rows].astype(np.float32) / 255.0
