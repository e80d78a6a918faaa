"""A binary tree of blocks of tokens, each summed up at 8 Chebyshev nodes, in one flat buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

LEAF = 16
"""Tokens per leaf."""
NODES = 8
"""Nodes per block."""
WINDOW = 64
"""Nodes that a token reads before its block: 8 blocks, or 4 leaves of tokens."""


@dataclass(frozen=True)
class Tree:
    """Where the nodes of all sequences lie in a buffer (rows, columns).

    First the tokens, each sequence padded to whole blocks of the top level, then levels 0 ... top with 8 nodes per
    block. Before each come 64 rows of zeros, so that a window that begins before the first sequence stays inside.
    """

    batch: int
    length: int
    padded: int
    blocks: list[int]
    """Per level, from 0: blocks of all sequences."""
    offset: list[int]
    """First row of the tokens, then of each level."""
    total: int

    @classmethod
    def of(cls, batch: int, length: int, top: int) -> Tree:
        """Lay out the tokens and levels 0 ... top; top = -1 for the tokens alone."""
        longest = LEAF << max(top, 0)
        padded = -(-length // longest) * longest
        blocks = [batch * padded // (LEAF << level) for level in range(top + 1)]
        ends = [WINDOW + batch * padded]
        for count in blocks:
            ends.append(ends[-1] + WINDOW + NODES * count)
        starts = [WINDOW, *(end + WINDOW for end in ends[:-1])]
        return cls(batch, length, padded, blocks, starts, ends[-1])

    def tokens(self, buffer: Tensor) -> Tensor:
        """View the tokens as (batch, padded, columns)."""
        return buffer[WINDOW : WINDOW + self.batch * self.padded].view(self.batch, self.padded, -1)

    def groups(self, buffer: Tensor, level: int) -> Tensor:
        """View the nodes of a level as (groups, 16, columns): leaves of tokens for -1, pairs of blocks from 0."""
        rows = self.batch * self.padded if level < 0 else NODES * self.blocks[level]
        return buffer[self.offset[level + 1] :][:rows].view(-1, LEAF, buffer.shape[1])

    def build(self, buffer: Tensor) -> None:
        """Fill the levels from the tokens."""
        for level, blocks in enumerate(self.blocks):
            merge = merge_matrix(level, buffer.dtype, buffer.device).expand(blocks, -1, -1)
            out = buffer[self.offset[level + 1] :][: NODES * blocks].view(blocks, NODES, -1)
            torch.bmm(merge, self.groups(buffer, level - 1), out=out)

    def collapse(self, buffer: Tensor) -> None:
        """Apply the adjoint of `build` to the gradients of all nodes, in place."""
        for level in range(len(self.blocks) - 1, -1, -1):
            blocks = self.blocks[level]
            merge = merge_matrix(level, buffer.dtype, buffer.device).T.expand(blocks, -1, -1)
            nodes = buffer[self.offset[level + 1] :][: NODES * blocks].view(blocks, NODES, -1)
            self.groups(buffer, level - 1).baddbmm_(merge, nodes)


def chebyshev(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the 8 Chebyshev nodes of (-1, 1), ascending."""
    k = torch.arange(NODES, dtype=torch.float64)
    return -torch.cos(math.pi * (2 * k + 1) / (2 * NODES)).to(device, dtype)


@lru_cache(maxsize=32)
def merge_matrix(level: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (8, 16) from a leaf's tokens (level 0) or two blocks' nodes to the nodes of the whole.

    Entry (k, j) is the k-th Lagrange polynomial of the whole's nodes at place j.
    """
    nodes = chebyshev(torch.float64, torch.device("cpu"))
    places = (torch.arange(LEAF) + 0.5) / (LEAF / 2) - 1 if level == 0 else torch.cat((nodes - 1, nodes + 1)) / 2
    factors = (places.double() - nodes[:, None])[None] / (nodes[:, None] - nodes)[:, :, None]
    factors[torch.arange(NODES), torch.arange(NODES)] = 1.0
    return factors.prod(dim=1).to(device, dtype)
