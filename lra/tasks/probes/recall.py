# SPDX-License-Identifier: Apache-2.0
"""Recall: the value that a queried key was paired with.

It is multi-query associative recall, of Arora et al., 2023 (arXiv:2312.04927), as classification. A pair is one token,
so that finding it is all there is to learn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from lra.tasks.base import TaskInfo, TaskOptions
from lra.tasks.generated import Tokens
from lra.tasks.probes.base import DistanceOptions, Probe

Count = Annotated[int, Field(ge=1, le=40)]


class RecallOptions(DistanceOptions):
    """Which recall."""

    vocabulary: Count = 16
    """Different keys."""
    classes: Annotated[int, Field(ge=2, le=5)] = 4
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
            if self.nearest(length) < self.queries or length - self.nearest(length) < self.pairs:
                raise ValueError(f"length {length}, distance {self.nearest(length)}: {self.pairs} pairs do not fit")
        return self


class Recall(Probe[RecallOptions]):
    """Queried keys, then pairs of key and value, one token each, scattered at `distance` or farther among fillers."""

    info: ClassVar[TaskInfo] = TaskInfo(name="recall", title="Recall", version=1, vocab_size=85, num_classes=4)
    options: ClassVar[type[TaskOptions]] = RecallOptions

    def info_for(self, options: RecallOptions) -> TaskInfo:
        """Return fillers, keys and pairs as vocabulary, and the values as classes."""
        size = 1 + options.noise + options.vocabulary * (1 + options.classes)
        return replace(self.info, vocab_size=size, num_classes=options.classes)

    def certified_distance(self, options: RecallOptions, length: int) -> int:
        """Return the nearest place of a pair."""
        return options.nearest(length)

    def example(self, options: RecallOptions, length: int, generator: np.random.Generator) -> tuple[Tokens, int]:
        """Draw keys, their values, and the places of the pairs."""
        keys = generator.permutation(options.vocabulary)[: options.pairs]
        values = generator.permutation(np.arange(options.pairs) % options.classes)
        label = int(generator.integers(options.classes))
        first_key = 1 + options.noise
        first_pair = first_key + options.vocabulary
        tokens = generator.integers(1, first_key, length).astype(np.uint8)
        tokens[: options.queries] = first_key + generator.permutation(keys[values == label])[: options.queries]
        start = options.nearest(length)
        places = start + generator.permutation(length - start)[: options.pairs]
        tokens[places] = first_pair + keys * options.classes + values
        return tokens, label

    def answer(self, options: RecallOptions, tokens: Tokens) -> int:
        """Return the value in the pair of the first key."""
        key = int(tokens[0]) - 1 - options.noise
        pairs = tokens.astype(int) - 1 - options.noise - options.vocabulary
        (value,) = pairs[(pairs >= 0) & (pairs // options.classes == key)] % options.classes
        return int(value)

    def other_answer(
        self,
        options: RecallOptions,
        tokens: Tokens,
        answer: int,
        generator: np.random.Generator,  # noqa: ARG002
    ) -> Tokens:
        """Turn all values round by as much as the label has to change."""
        pairs = tokens.astype(int) - 1 - options.noise - options.vocabulary
        values = pairs % options.classes
        turned = pairs - values + (values + answer - self.answer(options, tokens)) % options.classes
        return np.where(pairs >= 0, turned + 1 + options.noise + options.vocabulary, tokens).astype(np.uint8)

    def same_answer(self, options: RecallOptions, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Draw the fillers anew."""
        is_filler = tokens <= options.noise
        tokens[is_filler] = generator.integers(1, 1 + options.noise, int(is_filler.sum()))
        return tokens
