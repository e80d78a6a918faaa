"""A second evaluator of ListOps, on token sequences: it shares neither code nor method with the generator.

Innermost brackets are replaced by their values until none is left, in many sequences at once. Minimum, maximum and
median are order statistics, read off a table that counts each digit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lra.tasks.listops.vocabulary import CLOSE, DIGIT_0, MAX, MED, PAD, SM

MALFORMED = -1


def tree_values(tokens: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the value of each sequence, or `MALFORMED` where it is not exactly one tree.

    Args:
        tokens: (total tokens,).
        offsets: (sequences + 1,); no sequence is empty.
    """
    sound = ~_malformed(tokens, offsets)
    if not sound.all():
        tokens = tokens[np.repeat(sound, np.diff(offsets))]
    values = np.full(len(sound), MALFORMED, dtype=np.int64)
    values[sound] = _reduce(tokens.copy()).astype(np.int64) - DIGIT_0
    return values


def _malformed(tokens: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Flag sequences whose brackets do not enclose exactly one tree, or that have an operator without arguments."""
    first, last = offsets[:-1], offsets[1:] - 1
    is_close = tokens == CLOSE
    is_operator = tokens < CLOSE
    nesting = np.cumsum(is_operator.view(np.int8) - is_close.view(np.int8), dtype=np.int32)
    before = np.concatenate([[0], nesting[last]])[:-1].astype(np.int32)
    faults = nesting <= np.repeat(before, np.diff(offsets))
    faults[last] = nesting[last] != before
    faults[1:] |= is_close[1:] & is_operator[:-1]
    faults |= tokens == PAD
    return np.logical_or.reduceat(faults, first)


def _reduce(tokens: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Replace innermost brackets by digits until only digits are left, one a sequence."""
    while True:
        brackets = np.flatnonzero(tokens <= CLOSE)
        if not len(brackets):
            return tokens
        closes = tokens[brackets] == CLOSE
        innermost = np.flatnonzero(~closes[:-1] & closes[1:])
        start, stop = brackets[innermost], brackets[innermost + 1]
        num_args = stop - start - 1
        group = np.repeat(np.arange(len(start)), num_args)
        places = np.arange(len(group)) + np.repeat(start + 1 - (np.cumsum(num_args) - num_args), num_args)
        digits = tokens[places] - DIGIT_0
        counts = np.bincount(group * 10 + digits, minlength=len(start) * 10).reshape(-1, 10)
        tokens[start] = DIGIT_0 + _apply(tokens[start], counts, num_args)
        keep = np.ones(len(tokens), dtype=np.bool_)
        keep[places] = False
        keep[stop] = False
        tokens = tokens[keep]


def _apply(
    kinds: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64], num_args: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the value of each operator from the counts of its digits: (operators, 10) to (operators,)."""
    low = np.select([kinds == MAX, kinds == MED], [num_args - 1, (num_args - 1) // 2], 0)
    high = np.select([kinds == MAX, kinds == MED], [num_args - 1, num_args // 2], 0)
    up_to = np.cumsum(counts, axis=1)
    statistic = ((up_to <= low[:, None]).sum(axis=1) + (up_to <= high[:, None]).sum(axis=1)) // 2
    return np.where(kinds == SM, counts @ np.arange(10) % 10, statistic)
