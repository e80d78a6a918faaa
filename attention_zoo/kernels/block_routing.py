# SPDX-License-Identifier: Apache-2.0
"""Softmax attention in which each query meets key blocks of its own choice.

Pairs of a query and a key block are sorted by block and cut into tiles, each of which meets one block. A block that was
chosen by few queries leaves a part of its last tile empty, so that the number of tiles has a bound that depends on the
shapes alone: nothing waits for the choice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_zoo.kernels.block_sparse import HIDDEN, Pattern, block_sparse_attention
from attention_zoo.kernels.blocks import seen_keys

_TILE = 32
"""Queries in a tile."""


class Tiles(NamedTuple):
    """Pairs of a query and a key block, put into tiles."""

    query: Tensor
    """(rows, tiles * tile size), int64: the query at each place; query 0 at empty places."""
    block: Tensor
    """(rows, tiles), int64: the key block that a tile meets."""
    place: Tensor
    """(rows, queries, choices), int64: where each pair is."""


def make_tiles(chosen: Tensor, blocks: int, size: int = _TILE) -> Tiles:
    """Sort pairs by key block, and start a tile with each block.

    Args:
        chosen: (rows, queries, choices), int64, below `blocks`.
        blocks: Number of key blocks.
        size: Queries in a tile.
    """
    rows, queries, choices = chosen.shape
    device = chosen.device
    block, order = chosen.flatten(1).sort(dim=1, stable=True)  # (rows, pairs)
    pairs = block.shape[1]
    count = torch.zeros(rows, blocks, dtype=torch.int64, device=device).scatter_add(1, block, torch.ones_like(block))
    whole = (count + size - 1) // size * size  # places that a block takes
    # From its rank among all pairs to its place: the blocks before it take `whole` places in place of `count`.
    shift = (whole - count).cumsum(dim=1) - (whole - count)
    place = torch.arange(pairs, device=device) + shift.gather(1, block)
    tiles = pairs // size + blocks  # each block leaves less than one tile empty
    query = torch.zeros(rows, tiles * size, dtype=torch.int64, device=device).scatter(1, place, order // choices)
    start = torch.arange(0, tiles * size, size, device=device).expand(rows, -1).contiguous()
    met = torch.searchsorted(whole.cumsum(dim=1), start, right=True).clamp_max(blocks - 1)
    return Tiles(query, met, torch.empty_like(place).scatter(1, order, place).view(rows, queries, choices))


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    real: Tensor | None,
    chosen: Tensor,
    exists: Tensor,
    *,
    size: int,
    dropout: float = 0.0,
) -> list[tuple[Tensor, Tensor]]:
    """Attend from each query to the key blocks that it has chosen.

    Args:
        q: (rows, queries, head_dim); a row is one head of one sequence.
        k: (rows, blocks * size, head_dim), as is `v`.
        v: Values.
        real: bool, (rows, blocks * size), keys that may be seen; None = all.
        chosen: (rows, queries, choices), int64: the key blocks, different ones for each query.
        exists: bool, like `chosen`: choices that count.
        size: Keys in a block.
        dropout: Probability of dropping a weight.

    Returns:
        For each choice outputs (rows, queries, head_dim) and log-sum-exp (rows, queries), as `block_sparse.merge` takes
        them.
    """
    rows, length, width = q.shape
    tiles = make_tiles(chosen, k.shape[1] // size)
    first = torch.arange(rows, device=q.device)[:, None]
    queries = q.reshape(-1, width).index_select(0, (first * length + tiles.query).flatten())
    index = tiles.block.unsqueeze(2)  # (rows, tiles, 1)
    seen = None if real is None else seen_keys(index, torch.ones_like(index, dtype=torch.bool), real, size)
    out, log_sum = block_sparse_attention(
        queries.view(rows, 1, -1, width),
        k.unsqueeze(1),
        v.unsqueeze(1),
        Pattern(index=index, key_size=size, seen=seen),
        dropout=dropout,
    )
    out, log_sum = out.reshape(-1, width), log_sum.flatten()
    place = (first.unsqueeze(2) * tiles.query.shape[1] + tiles.place).flatten()
    outs = out.index_select(0, place).view(*chosen.shape, width)
    log_sums = log_sum.index_select(0, place).view(chosen.shape).masked_fill(~exists, HIDDEN)
    return list(zip(outs.unbind(dim=2), log_sums.unbind(dim=2), strict=True))
