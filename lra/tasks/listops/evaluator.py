# SPDX-License-Identifier: Apache-2.0
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
    first, last = offsets[:-1], offsets[1:] - 1  # (sequences,), positions of the first and the last token
    is_close = tokens == CLOSE
    is_operator = tokens < CLOSE  # an operator opens its bracket
    # (tokens,): brackets open after each token, counted on through all sequences. A sequence starts from `before`, its
    # predecessor's last count, so that a fault of one sequence is not charged to the next.
    nesting = np.cumsum(is_operator.view(np.int8) - is_close.view(np.int8), dtype=np.int32)
    before = np.concatenate([[0], nesting[last]])[:-1].astype(np.int32)
    # One tree: a bracket is open after every token but the last, and none after the last.
    faults = nesting <= np.repeat(before, np.diff(offsets))
    faults[last] = nesting[last] != before
    faults[1:] |= is_close[1:] & is_operator[:-1]  # an operator without arguments
    faults |= tokens == PAD
    return np.logical_or.reduceat(faults, first)


def _reduce(tokens: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Replace innermost brackets by digits until only digits are left, one a sequence."""
    while True:
        brackets = np.flatnonzero(tokens <= CLOSE)
        if not len(brackets):
            return tokens
        # Among brackets alone, an opening one directly before a closing one has only digits in between.
        closes = tokens[brackets] == CLOSE  # (brackets,)
        innermost = np.flatnonzero(~closes[:-1] & closes[1:])
        start, stop = brackets[innermost], brackets[innermost + 1]  # (innermost,), positions of both
        num_args = stop - start - 1
        # For each digit inside, which bracket it belongs to, and its position: (digits,) both. The position is a
        # running number, shifted for each bracket so that its first digit comes right behind the operator.
        group = np.repeat(np.arange(len(start)), num_args)
        places = np.arange(len(group)) + np.repeat(start + 1 - (np.cumsum(num_args) - num_args), num_args)
        digits = tokens[places] - DIGIT_0
        counts = np.bincount(group * 10 + digits, minlength=len(start) * 10).reshape(-1, 10)  # (innermost, 10)
        # The value takes the operator's place; digits and closing bracket go.
        tokens[start] = DIGIT_0 + _apply(tokens[start], counts, num_args)
        keep = np.ones(len(tokens), dtype=np.bool_)
        keep[places] = False
        keep[stop] = False
        tokens = tokens[keep]


def _apply(
    kinds: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64], num_args: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the value of each operator from the counts of its digits: (operators, 10) to (operators,)."""
    # Minimum, maximum and both middle values are the digits at these ranks, from 0. The digit at rank r is the number
    # of digits whose cumulative count is at most r. The median of an even count is the mean of two, rounded down.
    low = np.select([kinds == MAX, kinds == MED], [num_args - 1, (num_args - 1) // 2], 0)
    high = np.select([kinds == MAX, kinds == MED], [num_args - 1, num_args // 2], 0)
    up_to = np.cumsum(counts, axis=1)  # (operators, 10), arguments not above each digit
    statistic = ((up_to <= low[:, None]).sum(axis=1) + (up_to <= high[:, None]).sum(axis=1)) // 2
    return np.where(kinds == SM, counts @ np.arange(10) % 10, statistic)
