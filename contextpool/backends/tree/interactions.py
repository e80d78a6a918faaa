# SPDX-License-Identifier: Apache-2.0
"""The interaction lists of the tree: which nodes each token sums, as batches of small matrices.

Two buffers are meant throughout: the nodes of the tree, (rows of the tree, columns), laid out by `Tree`; and padded
rows, one for each token, (batch * padded, columns). Columns are features, or 1 for weights and widths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from contextpool.backends.tree.nodes import LEAF, NODES, WINDOW, Tree


@dataclass
class Interaction(ABC):
    """A batch of small matrices, (groups, tokens, nodes), that map nodes to tokens.

    Names that end in an underscore change a buffer in place.
    """

    square: Tensor
    """Squared distances from tokens to nodes, broadcastable to `kernel`."""
    kernel: Tensor = field(init=False)
    """(groups, tokens, nodes): what a node is multiplied by; until `exp_shifted_`, its logarithm relative to the weight
    of the token itself."""
    product: Tensor = field(init=False)
    """Backward, (groups, tokens, nodes): the products of upstream gradients and nodes, summed over the features."""

    @abstractmethod
    def nodes(self, buffer: Tensor) -> Tensor:
        """Return the nodes that each group reads, (groups, nodes, columns)."""

    @abstractmethod
    def add_nodes_(self, buffer: Tensor, values: Tensor) -> None:
        """Add (groups, nodes, columns) to the nodes: the transpose of `nodes`."""

    @abstractmethod
    def rows(self, rows: Tensor) -> Tensor:
        """Return the rows of each group's tokens, (groups, tokens, columns)."""

    @abstractmethod
    def add_rows_(self, rows: Tensor, values: Tensor) -> None:
        """Add (groups, tokens, columns) to the rows: the transpose of `rows`."""

    @abstractmethod
    def maximum_rows_(self, rows: Tensor, values: Tensor) -> None:
        """Raise rows of one column to at least (groups, tokens, 1)."""


class _Adjacent(Interaction):
    """Groups that stand side by side in both buffers, so that `nodes` and `rows` are views: nothing is copied."""

    def add_nodes_(self, buffer: Tensor, values: Tensor) -> None:
        """Add in place."""
        self.nodes(buffer).add_(values)

    def add_rows_(self, rows: Tensor, values: Tensor) -> None:
        """Add in place."""
        self.rows(rows).add_(values)

    def maximum_rows_(self, rows: Tensor, values: Tensor) -> None:
        """Take the maximum in place."""
        view = self.rows(rows)
        torch.maximum(view, values, out=view)


@dataclass
class NearField(_Adjacent):
    """Every leaf with itself: 16 tokens and the same 16 tokens as nodes."""

    tree: Tree

    def nodes(self, buffer: Tensor) -> Tensor:
        """View the leaves, (leaves, 16, columns)."""
        return self.tree.groups(buffer, -1)

    def rows(self, rows: Tensor) -> Tensor:
        """View the leaves, (leaves, 16, columns)."""
        return rows.view(-1, LEAF, rows.shape[1])


@dataclass
class Sibling(_Adjacent):
    """Every second block of a level with the block before it, its sibling below the same parent."""

    tree: Tree
    level: int

    def nodes(self, buffer: Tensor) -> Tensor:
        """View the first block of each pair, (pairs, 8, columns)."""
        return self.tree.groups(buffer, self.level)[:, :NODES]

    def rows(self, rows: Tensor) -> Tensor:
        """View the tokens of the second block of each pair, (pairs, tokens per block, columns)."""
        length = LEAF << self.level
        return rows.view(-1, 2 * length, rows.shape[1])[:, length:]


@dataclass
class FarField(Interaction):
    """Tiles of 16 tokens that read the same 64 nodes, those before the block of the tokens' own level."""

    first: Tensor
    """(tiles,): the first node, in eights."""
    token: Tensor
    """(tiles * 16,): row of the padded tokens; an empty slot has a zero kernel."""

    def nodes(self, buffer: Tensor) -> Tensor:
        """Copy each tile's window, (tiles, 64, columns)."""
        rows, columns = buffer.shape
        # Every window that begins at a multiple of 8 nodes, overlapping, as a view; then those that are read.
        windows = buffer.as_strided(
            ((rows - WINDOW) // NODES + 1, WINDOW, columns), (NODES * columns, columns, 1), buffer.storage_offset()
        )
        return windows.index_select(0, self.first)

    def add_nodes_(self, buffer: Tensor, values: Tensor) -> None:
        """Add windows, which overlap, eight nodes at a time."""
        eights = (self.first[:, None] + torch.arange(WINDOW // NODES, device=values.device)).flatten()
        buffer.view(-1, NODES, buffer.shape[1]).index_add_(0, eights, values.view(-1, NODES, buffer.shape[1]))

    def rows(self, rows: Tensor) -> Tensor:
        """Copy each tile's tokens, (tiles, 16, columns)."""
        return rows.index_select(0, self.token).view(-1, LEAF, rows.shape[1])

    def add_rows_(self, rows: Tensor, values: Tensor) -> None:
        """Add to each tile's tokens."""
        rows.index_add_(0, self.token, values.flatten(0, 1))

    def maximum_rows_(self, rows: Tensor, values: Tensor) -> None:
        """Take the maximum at each tile's tokens; empty slots hold -inf."""
        rows.scatter_reduce_(0, self.token[:, None], values.flatten(0, 1), "amax")
