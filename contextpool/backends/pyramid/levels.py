# SPDX-License-Identifier: Apache-2.0
"""The levels of the Gaussian pyramid in a flat buffer: built up for values, collapsed for gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contextpool.backends.pyramid.stencils import BLOCK, coarsen_adjoint_stencil, coarsen_stencil

LEFT, RIGHT = 3, 4
"""Zero blocks kept before and after the blocks of each sequence and level, so that every window stays inside."""


@dataclass(frozen=True)
class Levels:
    """Where the nodes of all sequences lie in a buffer (blocks, 16, columns), level by level, sequence by sequence.

    One buffer for all, so that a tile finds its three blocks by one index, whatever its level and sequence. In it, a
    sequence at level l is LEFT blocks of zeros, `blocks[l]` blocks that hold tokens, and RIGHT blocks of zeros.

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
    """Blocks in the buffer."""

    @classmethod
    def of(cls, batch: int, length: int, top: int) -> Levels:
        """Lay out levels 0 ... top."""
        # The last token stands over node (length - 1) >> level, rounded down.
        blocks = [((length - 1) >> level) // BLOCK + 1 for level in range(top + 1)]
        sizes = [batch * (LEFT + count + RIGHT) for count in blocks]
        return cls(batch, length, blocks, [sum(sizes[:level]) for level in range(top + 1)], sum(sizes))

    def tokens(self, buffer: Tensor) -> Tensor:
        """View level 0 as (batch, length, columns)."""
        stored = LEFT + self.blocks[0] + RIGHT
        # (batch, nodes stored per sequence, columns); level 0 comes first in the buffer, and a node there is a token.
        rows = buffer[: self.batch * stored].view(self.batch, stored * BLOCK, -1)
        return rows[:, LEFT * BLOCK : LEFT * BLOCK + self.length]

    def nodes(self, level: int, sequence: int) -> int:
        """Return where the nodes of a level and sequence begin in the buffer, those kept before them included."""
        return (self.offset[level] + sequence * (LEFT + self.blocks[level] + RIGHT)) * BLOCK


class Nodes:
    """The nodes of all levels, and the views of them that are needed for every slab of features.

    Making a view costs as much as a small product, so each is made once.
    """

    def __init__(self, levels: Levels, columns: int, like: Tensor) -> None:
        """Make room for nodes of some columns, all zero, in the dtype and on the device of `like`."""
        self._levels, self.columns = levels, columns
        self.buffer = like.new_zeros(levels.total, BLOCK, columns)
        """(blocks, 16, columns)."""
        self.tokens = levels.tokens(self.buffer)
        """Level 0, (batch, length, columns)."""
        self.windows = self._view(0, levels.total - 2, step=BLOCK, size=3 * BLOCK)
        """Each three blocks that follow each other, (blocks - 2, 48, columns)."""

    def build(self) -> None:
        """Fill levels 1 ... top from level 0: block q above comes from the nodes 32 q - 16 ... 32 q + 47 below."""
        for stencil, sources, above in self._ups:
            torch.bmm(stencil, sources, out=above)

    def collapse(self) -> None:
        """Apply the adjoint of `build` to the gradients of all nodes, in place; level 0 then holds the tokens'."""
        for stencil, gradients, below, before, after in self._downs:
            below.baddbmm_(stencil, gradients)
            # The nodes that `build` leaves at zero have no gradient.
            before.zero_()
            after.zero_()

    @cached_property
    def _ups(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Stencils, what each block above comes from, and the blocks above, for each level and sequence."""
        levels, views = self._levels, []
        for level, above in enumerate(levels.blocks[1:]):
            count = above + 2  # one block more on either side: tokens read that far
            # One matrix for all blocks, since the stencil is the same everywhere: (count, 16, 64) without a copy.
            stencil = coarsen_stencil(level, self.buffer.dtype, self.buffer.device).expand(count, -1, -1)
            for sequence in range(levels.batch):
                # Block -1 above, the one before those that hold tokens, reads from node -48 below on.
                first = levels.nodes(level, sequence) + (LEFT - 3) * BLOCK
                target = levels.nodes(level + 1, sequence) + (LEFT - 1) * BLOCK
                views.append((
                    stencil,
                    self._view(first, count, step=2 * BLOCK, size=4 * BLOCK),
                    self._view(target, count, step=BLOCK, size=BLOCK),
                ))  # fmt: skip
        return views

    @cached_property
    def _downs(self) -> list[tuple[Tensor, ...]]:
        """Stencils, what pairs of blocks below get their gradient from, the pairs, and the blocks around them."""
        levels = self._levels
        views: list[tuple[Tensor, ...]] = []
        for level in range(len(levels.blocks) - 2, -1, -1):
            below = levels.blocks[level]
            count = (below + 1) // 2 + 2  # pairs of blocks, from the pair before those that hold tokens on
            stencil = coarsen_adjoint_stencil(level, self.buffer.dtype, self.buffer.device).expand(count, -1, -1)
            for sequence in range(levels.batch):
                first = levels.nodes(level, sequence)
                # The pair q = -1 below, nodes -32 ... -1, gathers from node -24 above on.
                source = levels.nodes(level + 1, sequence) + (LEFT - 1) * BLOCK - BLOCK // 2
                # Pairs may reach a block beyond those that `build` computes; `collapse` makes that zero again.
                end = LEFT + below + 1
                views.append((
                    stencil,
                    self._view(source, count, step=BLOCK, size=2 * BLOCK),
                    self._view(first + (LEFT - 2) * BLOCK, count, step=2 * BLOCK, size=2 * BLOCK),
                    self._view(first, LEFT - 1, step=BLOCK, size=BLOCK),
                    self._view(first + end * BLOCK, LEFT + below + RIGHT - end, step=BLOCK, size=BLOCK),
                ))  # fmt: skip
        return views

    def _view(self, start: int, count: int, *, step: int, size: int) -> Tensor:
        """View windows of nodes, which may overlap, as (count, size, columns)."""
        columns = self.columns
        return self.buffer.as_strided((count, size, columns), (step * columns, columns, 1), start * columns)
