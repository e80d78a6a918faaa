# SPDX-License-Identifier: Apache-2.0
"""Trivial baselines of ListOps: measured at every build, and compared with the known figures.

A model that answers with the most frequent label, or reads only the root operator, gets these accuracies. So does
one that applies the root operator to its own digits and skips what is nested. One that does not beat the last has not
learnt to evaluate anything nested.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lra.data.split import Split, SplitName
from lra.errors import DataError
from lra.tasks.listops.evaluator import MALFORMED, tree_values
from lra.tasks.listops.vocabulary import CLOSE, VOCAB_SIZE

KNOWN_SHARES = (16.9, 9.2, 7.4, 8.1, 8.9, 8.7, 7.9, 7.4, 8.6, 17.0)
"""Label shares in %, of 30,000 trees of the benchmark's own script."""
KNOWN_MAJORITY = 17.0
KNOWN_ROOT_ONLY = 36.2
KNOWN_SAMPLE = 30_000
SIGMAS = 5.0
_SCORED: tuple[SplitName, ...] = ("train", "test")
LEARNABLE = 10_000
"""Fewer training examples do not show each root operator's best answer."""


def measure(splits: Mapping[SplitName, Split]) -> dict[str, float]:
    """Return accuracies in % on the test split of answers learnt on the training split."""
    return _score(splits["train"], splits["test"])


def check(splits: Mapping[SplitName, Split]) -> None:
    """Compare data of the benchmark's distribution with the known figures, within the error of both samples.

    Raises:
        DataError: A figure is off.
    """
    labels = np.concatenate([split.labels for split in splits.values()])
    shares = 100.0 * np.bincount(labels, minlength=10) / len(labels)
    for label, (share, known) in enumerate(zip(shares, KNOWN_SHARES, strict=True)):
        _compare(f"share of label {label}", float(share), known, len(labels))
    if len(splits["train"]) >= LEARNABLE:
        for name in _SCORED:
            baselines, size = _score(splits["train"], splits[name]), len(splits[name])
            _compare(f"majority accuracy on {name}", baselines["majority"], KNOWN_MAJORITY, size)
            _compare(f"root-only accuracy on {name}", baselines["root-only"], KNOWN_ROOT_ONLY, size)


def _score(train: Split, test: Split) -> dict[str, float]:
    majority = np.bincount(train.labels).argmax()
    table = np.zeros((VOCAB_SIZE, 10), dtype=np.int64)  # (root operators, labels), counts
    np.add.at(table, (_roots(train), train.labels), 1)  # `table[...] += 1` would count repeated pairs once
    by_root = table.argmax(axis=1)[_roots(test)]  # (test examples,), best answer by the root
    unnested = values_without_nested(test)
    unnested = np.where(unnested == MALFORMED, by_root, unnested)
    answers = {"majority": majority, "root-only": by_root, "root's own digits": unnested}
    return {name: 100.0 * int((test.labels == answer).sum()) / len(test) for name, answer in answers.items()}


def values_without_nested(split: Split) -> npt.NDArray[np.int64]:
    """Apply each root operator to the digits that are its own arguments: (examples,), `MALFORMED` where it has none."""
    tokens, first, last = split.tokens, split.offsets[:-1], split.offsets[1:] - 1
    steps = (tokens < CLOSE).astype(np.int8) - (tokens == CLOSE).astype(np.int8)
    kept = (np.cumsum(steps, dtype=np.int32) == 1) & (tokens > CLOSE)  # each example closes all of its brackets
    kept[first] = kept[last] = True
    lengths = np.add.reduceat(kept, first, dtype=np.int64)
    return tree_values(tokens[kept], np.concatenate([[0], np.cumsum(lengths)]))


def _compare(what: str, measured: float, known: float, sample: int) -> None:
    # Standard deviation, in %, of the difference of two measured shares: here, and in the known sample.
    spread = np.sqrt(known * (100.0 - known) * (1.0 / sample + 1.0 / KNOWN_SAMPLE))
    if not abs(measured - known) <= SIGMAS * spread:  # NaN is no agreement
        raise DataError(f"listops: {what} is {measured:.1f} %, not {known} %; this is not the benchmark's distribution")


def _roots(split: Split) -> npt.NDArray[np.uint8]:
    return split.tokens[split.offsets[:-1]]  # (examples,), the first token of each
