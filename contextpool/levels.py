"""The levels of the Gaussian pyramid in a flat buffer: built up for values, collapsed for gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.stencils import BLOCK, down_stencil, up_stencil

LEFT, RIGHT = 3, 4
"""Zero blocks kept before and after the blocks of each sequence and level, so that every window stays inside."""


@dataclass(frozen=True)
class Levels:
    """Where the nodes of all sequences lie in a buffer (blocks, 16, columns), level by level, sequence by sequence.

    A level computes one block of nodes more on either side than hold tokens: a token reads that far. Nodes beyond stay
    zero; they are at least 13 blurs away from any token.
    """

    batch: int
    length: int
    blocks: list[int]
    """Per level: blocks of one sequence that hold tokens; LEFT + blocks + RIGHT are stored."""
    offset: list[int]
    """Per level: its first block in the buffer."""
    total: int

    @classmethod
    def of(cls, batch: int, length: int, top: int) -> Levels:
        """Lay out levels 0 ... top."""
        blocks = [((length - 1) >> level) // BLOCK + 1 for level in range(top + 1)]
        sizes = [batch * (LEFT + count + RIGHT) for count in blocks]
        return cls(batch, length, blocks, [sum(sizes[:level]) for level in range(top + 1)], sum(sizes))

    def tokens(self, buffer: Tensor) -> Tensor:
        """View level 0 as (batch, length, columns)."""
        stored = LEFT + self.blocks[0] + RIGHT
        rows = buffer[: self.batch * stored].view(self.batch, stored * BLOCK, -1)
        return rows[:, LEFT * BLOCK : LEFT * BLOCK + self.length]

    def build(self, buffer: Tensor) -> None:
        """Fill levels 1 ... top from level 0: block q above comes from the nodes 32 q - 16 ... 32 q + 47 below."""
        for level in range(len(self.blocks) - 1):
            blocks = self.blocks[level + 1] + 2
            stencil = up_stencil(level, buffer.dtype, buffer.device).expand(blocks, -1, -1)
            for below, above in self._pairs(buffer, level):
                windows = _windows(below, (LEFT - 2) * BLOCK - BLOCK, blocks, step=2 * BLOCK, size=4 * BLOCK)
                torch.bmm(stencil, windows, out=above[(LEFT - 1) * BLOCK :][: blocks * BLOCK].view(blocks, BLOCK, -1))

    def collapse(self, buffer: Tensor) -> None:
        """Apply the adjoint of `build` to the gradients of all nodes, in place; level 0 then holds the tokens'."""
        for level in range(len(self.blocks) - 2, -1, -1):
            blocks = (self.blocks[level] + 1) // 2 + 2
            stencil = down_stencil(level, buffer.dtype, buffer.device).expand(blocks, -1, -1)
            for below, above in self._pairs(buffer, level):
                windows = _windows(above, (LEFT - 1) * BLOCK - BLOCK // 2, blocks, step=BLOCK, size=2 * BLOCK)
                below[(LEFT - 2) * BLOCK :][: 2 * blocks * BLOCK].view(blocks, 2 * BLOCK, -1).baddbmm_(stencil, windows)
                # The nodes that `build` leaves at zero have no gradient.
                below[: (LEFT - 1) * BLOCK] = 0.0
                below[(LEFT + self.blocks[level] + 1) * BLOCK :] = 0.0

    def _pairs(self, buffer: Tensor, level: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the nodes of a level and of the one above, each (nodes, columns), for each sequence."""
        stored = [LEFT + self.blocks[i] + RIGHT for i in (level, level + 1)]
        for sequence in range(self.batch):
            below, above = (
                buffer[self.offset[level + i] + sequence * stored[i] :][: stored[i]].flatten(0, 1) for i in (0, 1)
            )
            yield below, above


def _windows(rows: Tensor, start: int, count: int, *, step: int, size: int) -> Tensor:
    """View overlapping windows of (rows, columns) as (count, size, columns), without a copy."""
    columns = rows.shape[1]
    strides = (step * columns, columns, 1)
    return rows.as_strided((count, size, columns), strides, rows.storage_offset() + start * columns)
