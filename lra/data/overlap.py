# SPDX-License-Identifier: Apache-2.0
"""Which examples of one split are in another: what a model has seen, it is not tested on."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from lra.data.split import Split

DIGEST_BYTES = 16
MOSTLY = 0.5
"""Share of examples from which one split is called the other; few are in both by chance where data is read."""


def found_in(split: Split, other: Split, *, cut: bool = False) -> npt.NDArray[np.bool_]:
    """Say of each example of a split whether the other one has it, a pair in either order: (examples,).

    Args:
        split: The examples.
        other: Where they are looked for.
        cut: Whether documents are compared up to the longest of the shorter split, since both are beginnings of
            documents; else they have to be equal.
    """
    if split.documents != other.documents:
        return np.zeros(len(split), dtype=bool)
    limit = min(int(split.lengths.max()), int(other.lengths.max())) if cut else None
    there = set(_keys(other, limit))
    return np.array([key in there for key in _keys(split, limit)])


def _keys(split: Split, limit: int | None) -> list[bytes]:
    return [
        b"".join(sorted(_digest(split.tokens_of(index, document)[:limit]) for document in range(split.documents)))
        for index in range(len(split))
    ]


def _digest(tokens: npt.NDArray[Any]) -> bytes:
    return hashlib.blake2b(tokens.tobytes(), digest_size=DIGEST_BYTES).digest()
