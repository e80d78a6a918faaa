# SPDX-License-Identifier: Apache-2.0
"""The levels of the Gaussian pyramid in a flat buffer: built up for values, collapsed for gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contextpool.backends.pyramid.stencils import BLOCK, coarsen_adjoint_stencil, coarsen_stencil

LEFT, RIGHT = 3, 4
"""Zero blocks kept before and after the blocks of each level, so that every window stays inside."""
WINDOW = 3 * BLOCK
"""Nodes that a token reads: the block under it, and one on either side."""


@dataclass(frozen=True)
class Levels:
    """Where the nodes of all sequences lie in a buffer (nodes, columns), level by level, lane by lane.

    One buffer for all, so that a tile finds its nodes by one index, whatever its level and sequence. In it, a lane of a
    level is LEFT blocks of zeros, `blocks[level]` blocks that hold tokens, and RIGHT blocks of zeros. A lane is a
    sequence on a CPU, whose nodes are then together in memory. On a GPU it is the whole batch, as so many more columns:
    all sequences have the same stencils, and one product a level serves them all.

    A level computes one block of nodes more on either side than hold tokens: a token reads that far. Nodes beyond stay
    zero; they are at least 13 blurs away from any token.
    """

    batch: int
    length: int
    lanes: int
    blocks: tuple[int, ...]
    """Per level: blocks of one lane that hold tokens; LEFT + blocks + RIGHT are stored."""
    offset: tuple[int, ...]
    """Per level: its first block in the buffer."""
    total: int
    """Blocks in the buffer."""

    @classmethod
    def of(cls, batch: int, length: int, top: int, lanes: int) -> Levels:
        """Lay out levels 0 ... top."""
        # The last token stands over node (length - 1) >> level, rounded down.
        blocks = tuple(((length - 1) >> level) // BLOCK + 1 for level in range(top + 1))
        sizes = [lanes * (LEFT + count + RIGHT) for count in blocks]
        return cls(batch, length, lanes, blocks, tuple(sum(sizes[:level]) for level in range(top + 1)), sum(sizes))

    @property
    def width(self) -> int:
        """Sequences of one lane."""
        return self.batch // self.lanes

    def tokens(self, buffer: Tensor) -> Tensor:
        """View level 0, where a node is a token, as (batch, length, columns)."""
        stored = LEFT + self.blocks[0] + RIGHT
        # (lanes, nodes stored per lane, sequences of a lane, columns); level 0 comes first in the buffer.
        rows = buffer[: self.lanes * stored * BLOCK * self.width].view(self.lanes, stored * BLOCK, self.width, -1)
        return rows[:, LEFT * BLOCK : LEFT * BLOCK + self.length].transpose(1, 2).flatten(0, 1)

    def node(self, level: int, lane: int, block: int) -> int:
        """Return the first node of a block, where block 0 is the first that holds tokens."""
        return (self.offset[level] + lane * (LEFT + self.blocks[level] + RIGHT) + LEFT + block) * BLOCK


class Nodes:
    """The nodes of all levels, and the views of them that are needed for every slab of features.

    Making a view costs as much as a small product, so each is made once.
    """

    def __init__(self, levels: Levels, columns: int, like: Tensor) -> None:
        """Make room for nodes of some columns, all zero, in the dtype and on the device of `like`."""
        self._levels, self.columns = levels, columns
        self.buffer = like.new_zeros(levels.total * BLOCK * levels.width, columns)
        """(nodes * sequences of a lane, columns)."""
        self.tokens = levels.tokens(self.buffer)
        """Level 0, (batch, length, columns)."""
        self.windows = self.buffer.as_strided(
            (len(self.buffer) - (WINDOW - 1) * levels.width, WINDOW, columns), (columns, levels.width * columns, 1)
        )
        """Each 48 nodes of a sequence that follow each other, by the row of the first, (rows, 48, columns)."""

    def add_(self, first: Tensor, values: Tensor) -> None:
        """Add to windows, which may overlap, values (tiles, 48, columns); `first` is what `targets` returned."""
        groups = self.buffer.view(-1, _group(self._levels), self.columns)
        groups.index_add_(0, first, values.view(-1, *groups.shape[1:]))

    def build(self) -> None:
        """Fill levels 1 ... top from level 0: block q above comes from the nodes 32 q - 16 ... 32 q + 47 below."""
        for stencil, sources, above in self._ups:
            torch.bmm(stencil, sources, out=above)

    def collapse(self) -> None:
        """Apply the adjoint of `build` to the gradients of all nodes, in place; level 0 then holds the tokens'.

        Nodes that `build` leaves at zero get something, too. It reaches no other node: stencils end before.
        """
        for stencil, gradients, below in self._downs:
            below.baddbmm_(stencil, gradients)

    @cached_property
    def _ups(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Stencils, what each block above comes from, and the blocks above, for each level and lane."""
        levels, views = self._levels, []
        for level, above in enumerate(levels.blocks[1:]):
            count = above + 2  # one block more on either side: tokens read that far
            # One matrix for all blocks, since the stencil is the same everywhere: (count, 16, 64) without a copy.
            stencil = coarsen_stencil(level, self.buffer.dtype, self.buffer.device).expand(count, -1, -1)
            for lane in range(levels.lanes):
                # Block -1 above, the one before those that hold tokens, reads from node -48 below on.
                sources = self._view(levels.node(level, lane, -3), count, step=2 * BLOCK, size=4 * BLOCK)
                target = self._view(levels.node(level + 1, lane, -1), count, step=BLOCK, size=BLOCK)
                views.append((stencil, sources, target))
        return views

    @cached_property
    def _downs(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Stencils, what pairs of blocks below get their gradient from, and the pairs, for each level and lane."""
        levels, views = self._levels, []
        for level in range(len(levels.blocks) - 2, -1, -1):
            count = (
                levels.blocks[level] + 1
            ) // 2 + 2  # pairs of blocks, from the pair before those that hold tokens on
            stencil = coarsen_adjoint_stencil(level, self.buffer.dtype, self.buffer.device).expand(count, -1, -1)
            for lane in range(levels.lanes):
                # The pair q = -1 below, nodes -32 ... -1, gathers from node -24 above on.
                source = self._view(levels.node(level + 1, lane, -1) - BLOCK // 2, count, step=BLOCK, size=2 * BLOCK)
                target = self._view(levels.node(level, lane, -2), count, step=2 * BLOCK, size=2 * BLOCK)
                views.append((stencil, source, target))
        return views

    def _view(self, start: int, count: int, *, step: int, size: int) -> Tensor:
        """View runs of nodes, which may overlap, as (count, size, columns of all sequences of a lane)."""
        width = self._levels.width * self.columns
        return self.buffer.as_strided((count, size, width), (step * width, width, 1), start * width)


def targets(levels: Levels, first: Tensor) -> Tensor:
    """Return what `Nodes.add_` takes to add to the windows that begin at rows `first`, (tiles,), with a block.

    A block is added at once where its nodes are together in memory, else node by node: (tiles * 3,) or (tiles * 48,).
    """
    group = _group(levels)
    node = torch.arange(0, WINDOW, group, device=first.device)
    return ((first[:, None] + node * levels.width) // group).flatten()


def _group(levels: Levels) -> int:
    """Return how many nodes of a sequence, from the first of a block on, are together in memory."""
    return BLOCK if levels.width == 1 else 1
