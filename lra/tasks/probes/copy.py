# SPDX-License-Identifier: Apache-2.0
"""Copy: one item of a list that is scattered among fillers, by its number; selective copying as classification.

The task after which it is made is in Gu and Dao, 2023 (arXiv:2312.00752), and has the whole list as its answer.
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


class CopyOptions(DistanceOptions):
    """Which list."""

    vocabulary: Annotated[int, Field(ge=2, le=100)] = 4
    """Different items, which are the classes."""
    items: Count = 4
    """Items of the list: a multiple of `vocabulary`, each kind equally often, so that counting them says nothing."""
    noise: Count = 4
    """Different tokens that fill the rest."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.items % self.vocabulary:
            raise ValueError(f"items {self.items} must be a multiple of vocabulary {self.vocabulary}")
        for length in self.extremes:
            if length - self.nearest(length) < self.items:
                raise ValueError(f"length {length}, distance {self.nearest(length)}: {self.items} items do not fit")
        return self


class Copy(Probe[CopyOptions]):
    """The number of an item, then the list, scattered at `distance` or farther; other tokens are fillers."""

    info: ClassVar[TaskInfo] = TaskInfo(name="copy", title="Selective copy", version=1, vocab_size=13, num_classes=4)
    options: ClassVar[type[TaskOptions]] = CopyOptions

    def info_for(self, options: CopyOptions) -> TaskInfo:
        """Return fillers, numbers and items as vocabulary, and the items as classes."""
        size = 1 + options.noise + options.items + options.vocabulary
        return replace(self.info, vocab_size=size, num_classes=options.vocabulary)

    def certified_distance(self, options: CopyOptions, length: int) -> int:
        """Return the nearest place of an item."""
        return options.nearest(length)

    def example(self, options: CopyOptions, length: int, generator: np.random.Generator) -> tuple[Tokens, int]:
        """Draw the list, the places of its items, and the number that is asked for."""
        items = generator.permutation(np.arange(options.items) % options.vocabulary)
        start = options.nearest(length)
        places = start + np.sort(generator.permutation(length - start)[: options.items])
        tokens = generator.integers(1, 1 + options.noise, length).astype(np.uint8)
        asked = int(generator.integers(options.items))
        tokens[0], tokens[places] = 1 + options.noise + asked, 1 + options.noise + options.items + items
        return tokens, int(items[asked])

    def answer(self, options: CopyOptions, tokens: Tokens) -> int:
        """Return the item of the number in front."""
        items = tokens[tokens > options.noise + options.items]
        return int(items[int(tokens[0]) - 1 - options.noise]) - 1 - options.noise - options.items

    def other_answer(
        self,
        options: CopyOptions,
        tokens: Tokens,
        answer: int,
        generator: np.random.Generator,  # noqa: ARG002
    ) -> Tokens:
        """Turn all items round by as much as the label has to change."""
        first = 1 + options.noise + options.items
        is_item = tokens >= first
        turn = answer - self.answer(options, tokens)
        tokens[is_item] = first + (tokens[is_item].astype(int) - first + turn) % options.vocabulary
        return tokens

    def same_answer(self, options: CopyOptions, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Draw the fillers anew."""
        is_filler = tokens <= options.noise
        tokens[is_filler] = generator.integers(1, 1 + options.noise, int(is_filler.sum()))
        return tokens
