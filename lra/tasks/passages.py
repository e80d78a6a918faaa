# SPDX-License-Identifier: Apache-2.0
"""Pairs of passages cut out of papers, whose label can be read off their bytes: do they share half of their text?

Label 1: two windows of one paper, of which the second begins half a window later or earlier. All 7-grams of the shared
half are in both. Label 0: a window, and one of another paper: of several drawn at random, the one whose counts of bytes
are nearest. So how often each byte occurs says less than which bytes follow which.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lra.data.split import SPLITS, Split, SplitName
from lra.errors import DataError
from lra.seeding import numpy_generator
from lra.tasks.splits import byte_split

COUNTS: dict[SplitName, int] = {"train": 40_000, "validation": 2_000, "test": 2_000}
"""Pairs of each split, before samples."""
CANDIDATES = 16
"""Windows of other papers, of which the one that looks most alike is taken."""
SHARES: dict[SplitName, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Of the papers: no paper is in two splits."""


def passage_splits(
    papers: Sequence[bytes], length: int, seed: int, counts: dict[SplitName, int]
) -> dict[SplitName, Split]:
    """Cut pairs of passages out of papers.

    Args:
        papers: Different texts, in an order that does not depend on how they were stored.
        length: Bytes of a passage.
        seed: Which papers go to which split, and which passages are cut out.
        counts: Pairs of each split, half of them with label 1 on average.

    Raises:
        DataError: Too few papers are long enough for two passages that share a half.
    """
    long_enough = [paper for paper in papers if len(paper) >= length + length // 2]
    order = numpy_generator(seed, "papers").permutation(len(long_enough))
    ends = np.round(np.cumsum(list(SHARES.values())) * len(order)).astype(int)
    splits: dict[SplitName, Split] = {}
    for name, chosen in zip(SPLITS, np.split(order, ends[:-1]), strict=True):
        if len(chosen) < 2:
            raise DataError(
                f"retrieval: {len(long_enough)} papers have {length + length // 2} bytes or more, too few for passages "
                f"of {length} bytes"
            )
        mine = [long_enough[index] for index in chosen]
        splits[name] = _pairs(mine, length, counts[name], numpy_generator(seed, "passages", name))
    return splits


def _pairs(papers: list[bytes], length: int, count: int, rng: np.random.Generator) -> Split:
    documents: list[bytes] = []
    labels = rng.integers(2, size=count)
    for label in labels:
        paper = int(rng.integers(len(papers)))
        if label:
            step = length // 2
            start = int(rng.integers(len(papers[paper]) - length - step + 1))
            pair = [_cut(papers[paper], start, length), _cut(papers[paper], start + step, length)]
        else:
            first = _window(papers[paper], length, rng)
            others = rng.integers(len(papers) - 1, size=CANDIDATES)
            others += others >= paper  # every paper but this one
            candidates = [_window(papers[other], length, rng) for other in others]
            differences = [np.abs(_histogram(other) - _histogram(first)).sum() for other in candidates]
            pair = [first, candidates[int(np.argmin(differences))]]
        documents += pair if rng.integers(2) else pair[::-1]
    return byte_split(documents, labels.tolist(), per_example=2)


def _window(paper: bytes, length: int, rng: np.random.Generator) -> bytes:
    return _cut(paper, int(rng.integers(len(paper) - length + 1)), length)


def _cut(paper: bytes, start: int, length: int) -> bytes:
    return paper[start : start + length]


def _histogram(text: bytes) -> npt.NDArray[np.int64]:
    return np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)
