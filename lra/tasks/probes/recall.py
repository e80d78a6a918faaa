# SPDX-License-Identifier: Apache-2.0
"""Recall: the value that a queried key was paired with.

It is multi-query associative recall, of Arora et al., 2023 (arXiv:2312.04927), as classification.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from lra.tasks.base import TaskInfo, TaskOptions
from lra.tasks.generated import Tokens
from lra.tasks.probes.base import DistanceOptions, Probe

Count = Annotated[int, Field(ge=1, le=100)]


class RecallOptions(DistanceOptions):
    """Which recall."""

    vocabulary: Count = 16
    """Different keys."""
    classes: Annotated[int, Field(ge=2, le=50)] = 4
    """Different values. Each stands in equally many pairs, so that counting them says nothing."""
    pairs: Count = 8
    """Pairs of a key and a value in an example: a multiple of `classes`, with different keys."""
    queries: Count = 2
    """Keys that are asked for, in front. All were paired with the same value: the label."""
    noise: Count = 4
    """Different tokens that fill the rest."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pairs % self.classes or self.pairs > self.vocabulary:
            raise ValueError(f"pairs {self.pairs} must be a multiple of classes {self.classes}, at most vocabulary")
        if self.queries > self.pairs // self.classes:
            raise ValueError(f"queries {self.queries}: each value has {self.pairs // self.classes} keys")
        for length in self.extremes:
            if self.nearest(length) < self.queries or length - self.nearest(length) < 2 * self.pairs:
                raise ValueError(f"length {length}, distance {self.nearest(length)}: {self.pairs} pairs do not fit")
        return self


class Recall(Probe[RecallOptions]):
    """Queried keys, then pairs of key and value, scattered at `distance` or farther; other tokens are fillers."""

    info: ClassVar[TaskInfo] = TaskInfo(name="recall", title="Recall", version=1, vocab_size=25, num_classes=4)
    options: ClassVar[type[TaskOptions]] = RecallOptions

    def info_for(self, options: RecallOptions) -> TaskInfo:
        """Return fillers, keys and values as vocabulary, and the values as classes."""
        size = 1 + options.noise + options.vocabulary + options.classes
        return replace(self.info, vocab_size=size, num_classes=options.classes)

    def certified_distance(self, options: RecallOptions, length: int) -> int:
        """Return the nearest place of a pair."""
        return options.nearest(length)

    def example(self, options: RecallOptions, length: int, generator: np.random.Generator) -> tuple[Tokens, int]:
        """Draw keys, their values, and the places of the pairs."""
        first_key, first_value = 1 + options.noise, 1 + options.noise + options.vocabulary
        keys = generator.permutation(options.vocabulary)[: options.pairs]
        values = generator.permutation(np.arange(options.pairs) % options.classes)
        label = int(generator.integers(options.classes))
        tokens = generator.integers(1, 1 + options.noise, length).astype(np.uint8)
        tokens[: options.queries] = first_key + generator.permutation(keys[values == label])[: options.queries]
        # Pairs stand apart by gaps that add up to the room that is left.
        start = options.nearest(length)
        room = length - start - 2 * options.pairs
        places = start + 2 * np.arange(options.pairs) + np.sort(generator.integers(0, room + 1, options.pairs))
        tokens[places], tokens[places + 1] = first_key + keys, first_value + values
        return tokens, label

    def answer(self, options: RecallOptions, tokens: Tokens) -> int:
        """Return the value behind the first key's second occurrence."""
        place = tokens.tolist().index(tokens[0], options.queries)
        return int(tokens[place + 1]) - 1 - options.noise - options.vocabulary

    def other_answer(
        self,
        options: RecallOptions,
        tokens: Tokens,
        answer: int,
        generator: np.random.Generator,  # noqa: ARG002
    ) -> Tokens:
        """Turn all values round by as much as the label has to change."""
        first_value = 1 + options.noise + options.vocabulary
        is_value = tokens >= first_value
        turn = answer - self.answer(options, tokens)
        tokens[is_value] = first_value + (tokens[is_value].astype(int) - first_value + turn) % options.classes
        return tokens

    def same_answer(self, options: RecallOptions, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Draw the fillers anew."""
        is_filler = tokens <= options.noise
        tokens[is_filler] = generator.integers(1, 1 + options.noise, int(is_filler.sum()))
        return tokens
