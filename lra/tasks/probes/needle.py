# SPDX-License-Identifier: Apache-2.0
"""Needle: the one marked value among values that do not matter. It asks for nothing but transport over a distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from lra.tasks.base import TaskInfo, TaskOptions
from lra.tasks.baselines import Features
from lra.tasks.generated import Tokens
from lra.tasks.probes.base import DistanceOptions, Probe

QUESTION, FIRST_VALUE = 1, 2


class NeedleOptions(DistanceOptions):
    """Which needle."""

    vocabulary: Annotated[int, Field(ge=2, le=100)] = 8
    """Different values, which are the classes."""


class Needle(Probe[NeedleOptions]):
    """A question, then values. One stands as a marked token, at `distance` or farther, and is the label."""

    info: ClassVar[TaskInfo] = TaskInfo(name="needle", title="Needle", version=1, vocab_size=18, num_classes=8)
    options: ClassVar[type[TaskOptions]] = NeedleOptions

    def info_for(self, options: NeedleOptions) -> TaskInfo:
        """Return values and marked values as vocabulary, and the values as classes."""
        size = FIRST_VALUE + 2 * options.vocabulary
        return replace(self.info, vocab_size=size, num_classes=options.vocabulary)

    def baseline_features(self) -> Mapping[str, Features]:
        """Return none: a bag of tokens holds the marked value, which is to be carried to the first token."""
        return {}

    def certified_distance(self, options: NeedleOptions, length: int) -> int:
        """Return the nearest place of the marked value."""
        return options.nearest(length)

    def example(self, options: NeedleOptions, length: int, generator: np.random.Generator) -> tuple[Tokens, int]:
        """Draw values, and which of them is marked."""
        tokens = generator.integers(FIRST_VALUE, FIRST_VALUE + options.vocabulary, length).astype(np.uint8)
        tokens[0] = QUESTION
        tokens[generator.integers(options.nearest(length), length)] += options.vocabulary
        return tokens, self.answer(options, tokens)

    def answer(self, options: NeedleOptions, tokens: Tokens) -> int:
        """Return the marked value."""
        return int(tokens.max()) - options.vocabulary - FIRST_VALUE

    def other_answer(
        self,
        options: NeedleOptions,
        tokens: Tokens,
        answer: int,
        generator: np.random.Generator,  # noqa: ARG002
    ) -> Tokens:
        """Change the marked value."""
        tokens[tokens.argmax()] = FIRST_VALUE + options.vocabulary + answer
        return tokens

    def same_answer(self, options: NeedleOptions, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Draw all other values anew."""
        place, marked = int(tokens.argmax()), tokens.max()
        tokens[1:] = generator.integers(FIRST_VALUE, FIRST_VALUE + options.vocabulary, len(tokens) - 1)
        tokens[place] = marked
        return tokens
