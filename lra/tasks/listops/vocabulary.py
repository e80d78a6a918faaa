# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of ListOps, written down: ids never depend on a file, a hash or an order of reading."""

from __future__ import annotations

from collections.abc import Iterable

PAD = 0
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
MIN, MAX, MED, SM = 1, 2, 3, 4
CLOSE = 5
DIGIT_0 = 6
"""Digit `d` has the id `DIGIT_0 + d`."""

WORDS = ("<pad>", *OPERATORS, "]", *"0123456789")
"""Token `i` is written `WORDS[i]`."""
VOCAB_SIZE = len(WORDS)
IDS = {word: index for index, word in enumerate(WORDS) if index != PAD}


def render(tokens: Iterable[int]) -> str:
    """Write tokens as text, separated by spaces."""
    return " ".join(WORDS[token] for token in tokens)
