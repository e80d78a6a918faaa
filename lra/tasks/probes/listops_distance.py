# SPDX-License-Identifier: Apache-2.0
"""ListOps at a distance: one argument of the outermost operator decides, and stands at a chosen place."""

from __future__ import annotations

import functools
import itertools
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from lra.tasks.base import TaskInfo, TaskOptions
from lra.tasks.generated import Tokens
from lra.tasks.listops.evaluator import tree_values
from lra.tasks.listops.vocabulary import CLOSE, DIGIT_0, MAX, MED, MIN, SM, VOCAB_SIZE
from lra.tasks.probes.base import DistanceOptions, Probe

NEUTRAL = {MAX: 0, MIN: 9, SM: 0}
"""The value of an argument that does not change the result, by outermost operator."""
SIZE = 5
"""Tokens of a list inside: operator, three digits, bracket."""


class ListOpsDistanceOptions(DistanceOptions):
    """Which expressions."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for length in self.extremes:
            if length - self.nearest(length) <= SIZE:
                raise ValueError(f"length {length}, distance {self.nearest(length)}: no room for the argument")
        return self


@functools.cache
def lists_of_value(value: int) -> npt.NDArray[np.uint8]:
    """Return all lists of minimum, maximum or median of three digits that have a value: (lists, SIZE)."""
    found = []
    for digits in itertools.product(range(10), repeat=3):
        for operator, result in zip((MIN, MED, MAX), sorted(digits), strict=True):
            if result == value:
                found.append([operator, *(DIGIT_0 + digit for digit in digits), CLOSE])
    return np.asarray(found, dtype=np.uint8)


class ListOpsDistance(Probe[ListOpsDistanceOptions]):
    """A minimum, maximum or sum of lists whose values do not change it, but for one at `distance` or farther."""

    info: ClassVar[TaskInfo] = TaskInfo(
        name="listops_distance", title="ListOps at a distance", version=1, vocab_size=VOCAB_SIZE, num_classes=10
    )
    options: ClassVar[type[TaskOptions]] = ListOpsDistanceOptions

    def certified_distance(self, options: ListOpsDistanceOptions, length: int) -> int:
        """Return the nearest place of the list that decides."""
        return options.nearest(length)

    def example(
        self, options: ListOpsDistanceOptions, length: int, generator: np.random.Generator
    ) -> tuple[Tokens, int]:
        """Draw the outermost operator, the label, the place of the list that decides, and neutral arguments."""
        operator = int(generator.choice(list(NEUTRAL)))
        label = int(generator.integers(10))
        place = int(generator.integers(options.nearest(length), length - SIZE))
        before = _neutral(NEUTRAL[operator], place - 1, generator)
        after = _neutral(NEUTRAL[operator], length - place - SIZE - 1, generator)
        return np.concatenate([[operator], before, _draw(label, generator), after, [CLOSE]]).astype(np.uint8), label

    def answer(self, options: ListOpsDistanceOptions, tokens: Tokens) -> int:  # noqa: ARG002
        """Return the value of the expression."""
        return int(tree_values(tokens, np.asarray([0, len(tokens)]))[0])

    def other_answer(
        self, options: ListOpsDistanceOptions, tokens: Tokens, answer: int, generator: np.random.Generator
    ) -> Tokens:
        """Change the list that decides; where all are neutral, one at the distance or farther."""
        place = self._deciding(options, tokens)
        tokens[place : place + SIZE] = _draw(answer, generator)
        return tokens

    def same_answer(self, options: ListOpsDistanceOptions, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Draw all neutral arguments anew."""
        place, neutral = self._deciding(options, tokens), NEUTRAL[int(tokens[0])]
        before, after = place - 1, len(tokens) - place - SIZE - 1
        tokens[1:place] = _neutral(neutral, before, generator)
        tokens[place + SIZE : -1] = _neutral(neutral, after, generator)
        return tokens

    def _deciding(self, options: ListOpsDistanceOptions, tokens: Tokens) -> int:
        """Return the place of the list that is not neutral, else of the last one that is far enough."""
        neutral, nearest = NEUTRAL[int(tokens[0])], options.nearest(len(tokens))
        places = [place for place in range(nearest, len(tokens) - SIZE) if tokens[place] < CLOSE]
        return next((place for place in places if _value(tokens[place : place + SIZE]) != neutral), places[-1])


def _value(tokens: Tokens) -> int:
    """Return the value of a list inside."""
    return int(np.sort(tokens[1:-1])[(MIN, MED, MAX).index(int(tokens[0]))]) - DIGIT_0


def _draw(value: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    lists = lists_of_value(value)
    return lists[generator.integers(len(lists))]


def _neutral(value: int, length: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return arguments of one value: lists, and single digits for the tokens that are left, in random order."""
    lists = lists_of_value(value)
    count, digits = divmod(length, SIZE)
    pieces = [lists[index] for index in generator.integers(len(lists), size=count)]
    pieces += [np.full(1, DIGIT_0 + value, dtype=np.uint8)] * digits
    order = generator.permutation(len(pieces))
    return np.concatenate([np.zeros(0, dtype=np.uint8), *(pieces[index] for index in order)])
