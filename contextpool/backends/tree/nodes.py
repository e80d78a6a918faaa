# SPDX-License-Identifier: Apache-2.0
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
    """Where the nodes of all sequences lie in a buffer (rows, columns): the tree, breadth first from the leaves up.

    First the tokens, each sequence padded to whole blocks of the top level, then levels 0 ... top with 8 nodes per
    block. Before each come 64 rows of zeros, so that a window that begins before the first sequence stays inside.
    """

    batch: int
    length: int
    padded: int
    """Length, rounded up to whole blocks of the top level."""
    blocks: list[int]
    """Per level, from 0: blocks of all sequences."""
    offset: list[int]
    """First row of the tokens, then of each level."""
    total: int
    """Rows of the buffer."""

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

    def first_row(self, level: Tensor) -> Tensor:
        """Return the first row of levels, as `offset` has it, -1 for the tokens: a tensor like `level`."""
        tokens = self.batch * self.padded
        # Above each level's rows come half as many, and before each the zeros.
        return (level + 2) * WINDOW + 2 * tokens - (2 * tokens >> (level + 1))

    def tokens(self, buffer: Tensor) -> Tensor:
        """View the tokens as (batch, padded, columns)."""
        return buffer[WINDOW : WINDOW + self.batch * self.padded].view(self.batch, self.padded, -1)

    def groups(self, buffer: Tensor, level: int) -> Tensor:
        """View the nodes of a level as (groups, 16, columns): leaves of tokens for -1, pairs of blocks from 0."""
        rows = self.batch * self.padded if level < 0 else NODES * self.blocks[level]
        return buffer[self.offset[level + 1] :][:rows].view(-1, LEAF, buffer.shape[1])

    def level(self, buffer: Tensor, level: int) -> Tensor:
        """View the nodes of a level as (blocks, 8, columns)."""
        return buffer[self.offset[level + 1] :][: NODES * self.blocks[level]].view(-1, NODES, buffer.shape[1])

    def scales(self, log_weight: Tensor) -> Tensor:
        """Return the logarithm of what every node is stored in units of, (rows, 1).

        A token's is its log-weight, (batch, length), and a block's is that of its total weight, so that no node is too
        large or too small to store, whatever the range of the weights. It is -inf where there is nothing.
        """
        scale = log_weight.new_full((self.total, 1), -torch.inf)
        self.tokens(scale)[:, : self.length, 0] = log_weight
        for level in range(len(self.blocks)):
            children = self.groups(scale, level - 1)  # (blocks, 16, 1)
            # Above the leaves all 8 nodes of a child have the same unit, so one of each child is enough.
            total = children.logsumexp(dim=1) if level == 0 else torch.logaddexp(children[:, 0], children[:, NODES])
            self.level(scale, level).copy_(total[:, None, :].expand(-1, NODES, -1))
        return scale

    def merges(self, scale: Tensor) -> list[Tensor]:
        """Return for each level the matrices (blocks, 8, 16) from the groups below to its nodes, units included.

        A child's node counts exp(unit of the child - unit of the parent) times its value; that is at most 1.
        """
        matrices = []
        for level in range(len(self.blocks)):
            unit = self.level(scale, level)[:, :1]  # (blocks, 1, 1)
            ratio = (self.groups(scale, level - 1) - unit.masked_fill(unit == -torch.inf, 0.0)).exp_()
            matrices.append(merge_matrix(level, scale.dtype, scale.device) * ratio.transpose(1, 2))
        return matrices

    def build(self, buffer: Tensor, merges: list[Tensor]) -> None:
        """Fill the levels from the tokens, upwards: the upward pass of an FMM."""
        for level, merge in enumerate(merges):
            torch.bmm(merge, self.groups(buffer, level - 1), out=self.level(buffer, level))

    def collapse(self, buffer: Tensor, merges: list[Tensor]) -> None:
        """Apply the adjoint of `build` to the gradients of all nodes, in place."""
        for level in range(len(merges) - 1, -1, -1):
            # A node's gradient: from the tokens that read it, already there, plus from the nodes of its parent.
            self.groups(buffer, level - 1).baddbmm_(merges[level].transpose(1, 2), self.level(buffer, level))


@lru_cache(maxsize=8)
def chebyshev(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the 8 Chebyshev nodes of (-1, 1), ascending."""
    k = torch.arange(NODES, dtype=torch.float64)
    return -torch.cos(math.pi * (2 * k + 1) / (2 * NODES)).to(device, dtype)


@lru_cache(maxsize=32)
def merge_matrix(level: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (8, 16) from a leaf's tokens (level 0) or two blocks' nodes to the nodes of the whole.

    Entry (k, j) is the k-th Lagrange polynomial of the whole's nodes at place j, where the whole is (-1, 1). A function
    that the 8 nodes interpolate well, f(place_j) = sum_k entry_kj f(node_k), can thus be summed over nodes instead of
    places: sum_j f(place_j) z_j = sum_k f(node_k) Z_k with Z = entries @ z. Levels 1 and up have the same matrix.
    """
    nodes = chebyshev(torch.float64, torch.device("cpu"))
    # Tokens stand in the middle of 16 equal steps; children are halves of the whole, each with its own 8 nodes.
    places = (torch.arange(LEAF) + 0.5) / (LEAF / 2) - 1 if level == 0 else torch.cat((nodes - 1, nodes + 1)) / 2
    # (k, other nodes, places): (place - other) / (node_k - other); the product over the others leaves out k itself.
    factors = (places.double() - nodes[:, None])[None] / (nodes[:, None] - nodes)[:, :, None]
    factors[torch.arange(NODES), torch.arange(NODES)] = 1.0
    return factors.prod(dim=1).to(device, dtype)
