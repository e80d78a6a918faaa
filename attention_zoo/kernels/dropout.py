# SPDX-License-Identifier: Apache-2.0
"""Dropout that draws 16 random bits a number, which on a CPU takes half the time of torch's.

torch draws one random number at a time there, and that is the most expensive part of dropout. A 64-bit word decides on
four numbers instead. Rates are therefore multiples of 2^-16, and what is kept is scaled for the rate as rounded. What
is dropped depends on the state of the generator and on nothing else: not on the number of threads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16
"""Number of values of the 16 random bits that decide whether one number is dropped."""


def dropout(x: Tensor, rate: float, *, training: bool) -> Tensor:
    """Set numbers to zero at random, and divide those that are kept by 1 - rate.

    On a CPU the decisions come from torch's global generator, 16 bits each. Elsewhere, and in compiled code, this is
    torch's own dropout: a compiler makes one loop of drawing and multiplying, and cannot look into the 16 bits.

    Args:
        x: Any shape.
        rate: Probability of dropping a number, on a CPU rounded to a multiple of 2^-16.
        training: Otherwise nothing is dropped.

    Returns:
        Like `x`.
    """
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    bits = DropoutBits(rate, None, x)
    bits.draw(x.shape)
    return x * bits.keep.mul_(bits.scale)


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers in training."""
        return dropout(x, self.rate, training=self.training)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"rate={self.rate}"


class DropoutBits:
    """Drops weights of block after block; the same seed and the same blocks in the same order drop the same weights.

    `scale` makes up for the rate as rounded.
    """

    def __init__(self, rate: float, seed: int | None, like: Tensor) -> None:
        """Prepare the draws for numbers of the dtype and on the device of `like`; without a seed torch's own follow."""
        self.dropped = round(rate * _LEVELS)  # of 2^16 values, this many mean "drop"
        self.scale = _LEVELS / (_LEVELS - self.dropped)
        self.generator = None if seed is None else torch.Generator(like.device).manual_seed(seed)
        self.keep = torch.empty(0, dtype=like.dtype, device=like.device)
        self.words = torch.empty(0, dtype=torch.int64, device=like.device)

    def draw(self, shape: torch.Size) -> None:
        """Draw the decisions on the weights of the next block into `keep`: 1 or 0."""
        if self.dropped == 0:
            return
        count = math.prod(shape)
        if self.keep.shape != shape:
            self.keep = self.keep.new_empty(shape)
            self.words = self.words.new_empty(-(-count // 4))  # both buffers are used again for blocks of equal size
        self.words.random_(-(2**63), None, generator=self.generator)
        # Read as int16, the bits are uniform over -2^15 .. 2^15 - 1: a share dropped / 2^16 lies below the threshold.
        threshold = self.dropped - _LEVELS // 2
        torch.ge(self.words.view(torch.int16)[:count].view(shape), threshold, out=self.keep)

    def drop_(self, weights: Tensor) -> Tensor:
        """Set the dropped weights of the block last drawn to zero, in place. The caller multiplies by `scale`."""
        return weights.mul_(self.keep) if self.dropped else weights
