"""Causal pooling as batches of small matrices between the tokens and the nodes of a tree."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.backends.tree.nodes import LEAF, NODES, WINDOW, Tree


@dataclass
class Part(ABC):
    """A batch of small matrices, (groups, tokens, nodes), that map nodes to tokens."""

    kernel: Tensor
    """What a node is multiplied by; before `weigh`, its logarithm relative to the weight of the token itself."""
    square: Tensor
    """Squared distances, broadcastable to `kernel`."""
    product: Tensor
    """Backward: the products of upstream gradients and nodes, summed over the features."""

    @abstractmethod
    def nodes(self, buffer: Tensor) -> Tensor:
        """Return (groups, nodes, columns) of the tree."""

    @abstractmethod
    def add_nodes(self, buffer: Tensor, values: Tensor) -> None:
        """Add (groups, nodes, columns) to the tree."""

    @abstractmethod
    def rows(self, rows: Tensor) -> Tensor:
        """Return (groups, tokens, columns) of (batch * padded, columns)."""

    @abstractmethod
    def add_rows(self, rows: Tensor, values: Tensor) -> None:
        """Add (groups, tokens, columns) to (batch * padded, columns)."""

    @abstractmethod
    def raise_rows(self, rows: Tensor, values: Tensor) -> None:
        """Raise (batch * padded, 1) to at least (groups, tokens, 1)."""


@dataclass
class Regular(Part):
    """Groups that follow each other: every leaf and itself, or every second block and the one before it."""

    tree: Tree
    level: int
    """-1 for leaves."""

    def nodes(self, buffer: Tensor) -> Tensor:
        """View the leaves, or the first block of each pair."""
        groups = self.tree.groups(buffer, self.level)
        return groups if self.level < 0 else groups[:, :NODES]

    def add_nodes(self, buffer: Tensor, values: Tensor) -> None:
        """Add in place."""
        self.nodes(buffer).add_(values)

    def rows(self, rows: Tensor) -> Tensor:
        """View the leaves, or the tokens of the second block of each pair."""
        if self.level < 0:
            return rows.view(-1, LEAF, rows.shape[1])
        length = LEAF << self.level
        return rows.view(-1, 2 * length, rows.shape[1])[:, length:]

    def add_rows(self, rows: Tensor, values: Tensor) -> None:
        """Add in place."""
        self.rows(rows).add_(values)

    def raise_rows(self, rows: Tensor, values: Tensor) -> None:
        """Take the maximum in place."""
        view = self.rows(rows)
        torch.maximum(view, values, out=view)


@dataclass
class Windows(Part):
    """Tiles of 16 tokens that read the same 64 nodes."""

    first: Tensor
    """(tiles,): the first node, in eights."""
    token: Tensor
    """(tiles * 16,): row of the padded tokens; an empty slot has a zero kernel."""

    def nodes(self, buffer: Tensor) -> Tensor:
        """Copy each tile's window."""
        rows, columns = buffer.shape
        windows = buffer.as_strided(
            ((rows - WINDOW) // NODES + 1, WINDOW, columns), (NODES * columns, columns, 1), buffer.storage_offset()
        )
        return windows.index_select(0, self.first)

    def add_nodes(self, buffer: Tensor, values: Tensor) -> None:
        """Add windows, which overlap."""
        eights = (self.first[:, None] + torch.arange(WINDOW // NODES, device=values.device)).flatten()
        buffer.view(-1, NODES, buffer.shape[1]).index_add_(0, eights, values.view(-1, NODES, buffer.shape[1]))

    def rows(self, rows: Tensor) -> Tensor:
        """Copy each tile's tokens."""
        return rows.index_select(0, self.token).view(-1, LEAF, rows.shape[1])

    def add_rows(self, rows: Tensor, values: Tensor) -> None:
        """Add to each tile's tokens."""
        rows.index_add_(0, self.token, values.flatten(0, 1))

    def raise_rows(self, rows: Tensor, values: Tensor) -> None:
        """Take the maximum at each tile's tokens; empty slots hold -inf."""
        rows.scatter_reduce_(0, self.token[:, None], values.flatten(0, 1), "amax")
