# SPDX-License-Identifier: Apache-2.0
"""What training may do to an example each time that it is read: `train.augment` and `train.crop`.

An example is changed as a function of the run's seed, the step and its place in the batch, so a run that continues
reads the same. Evaluation never changes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint8]
Change = Callable[[Tokens, np.random.Generator], Tokens]
"""Gives the stored tokens of a document, (length,), in another form of the same length and with the same label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The changes of a run."""

    crop: int | None = None
    """Longest window of a document; a longer document is cut to one at random. None cuts nothing."""
    change: Change | None = None
    """What `train.augment` does."""

    def lengths(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how long documents of these lengths become."""
        return lengths if self.crop is None else np.minimum(lengths, self.crop)

    def __call__(self, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Change the stored tokens of one document: (length,)."""
        if self.crop is not None and len(tokens) > self.crop:
            start = int(generator.integers(len(tokens) - self.crop + 1))
            tokens = tokens[start : start + self.crop]
        return tokens if self.change is None else self.change(tokens, generator)


def flips(grid: tuple[int, int], axes: tuple[int, ...]) -> Change:
    """Return a change that mirrors an image along each of some axes with probability 1/2.

    Args:
        grid: Rows and columns of the image, whose pixels come in row-major order.
        axes: 0 turns it upside down, 1 swaps left and right.
    """

    def flip(tokens: Tokens, generator: np.random.Generator) -> Tokens:
        chosen = tuple(axis for axis in axes if generator.random() < 0.5)
        return np.flip(tokens.reshape(grid), chosen).reshape(-1)

    return flip
