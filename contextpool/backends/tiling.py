# SPDX-License-Identifier: Apache-2.0
"""How the fast backends cut their work: tokens into tiles of 16, tiles into chunks, features into slabs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

TILE = 16
"""Tokens that are handled together, as the rows of one small matrix product."""
SLAB = 64
"""Features that one thread handles at a time. Wider slabs are no faster there, and their buffers cost page faults."""
CHUNK = {"cpu": 64, "cuda": 4096}
"""Tiles handled at a time: their nodes stay in the cache of a CPU; on a GPU (a guess) they are enough to fill it."""


@dataclass(frozen=True)
class TiledTokens:
    """Tokens sorted by an integer key and cut into tiles of 16, so that all tokens of a tile have the same key.

    The key says what a token reads (which level, sequence and block of nodes), so a tile gathers its nodes once and
    multiplies them by a matrix of 16 rows. The last tile of a key may have empty slots.
    """

    key: Tensor
    """(tiles,)."""
    token: Tensor
    """(tiles, 16): index into the flattened (batch * length) tokens; 0 in an empty slot."""
    filled: Tensor
    """(tiles, 16): 1 in a slot with a token, 0 in an empty one; in the dtype of the sums."""
    slot: Tensor
    """(batch * length,): the inverse of `token`; tiles * 16, one past the last slot, for a token left out."""

    def tiled(self, values: Tensor) -> Tensor:
        """Gather (batch, length) into (tiles, 16), zero in empty slots."""
        return values.flatten()[self.token] * self.filled

    def untiled(self, values: Tensor) -> Tensor:
        """Gather (tiles, 16) into (batch * length,), zero for a token left out."""
        return torch.cat((values.flatten(), values.new_zeros(1)))[self.slot]


def sort_into_tiles(key: Tensor, valid: Tensor, dtype: torch.dtype) -> TiledTokens:
    """Group tokens (batch, length) by an integer key, leaving out those that are not valid.

    Args:
        key: (batch, length), integer.
        valid: (batch, length), bool.
        dtype: Of `TiledTokens.filled`.
    """
    token = valid.flatten().nonzero()[:, 0]  # (valid tokens,)
    # Stable, so that a tile holds its tokens in the order of the sequence, and the same ones every time.
    sorted_key, order = key.flatten()[token].sort(stable=True)
    token = token[order]
    distinct_key, count = sorted_key.unique_consecutive(return_counts=True)  # (keys,) each
    tiles_of = (count + TILE - 1) // TILE
    # (keys,): empty slots before a key's first tile, since the tiles of every key before it are rounded up.
    gap = (tiles_of.cumsum(0) - tiles_of) * TILE - (count.cumsum(0) - count)
    sorted_slot = torch.arange(token.shape[0], device=key.device) + gap.repeat_interleave(count)  # (valid tokens,)
    tile_key = distinct_key.repeat_interleave(tiles_of)
    slots = tile_key.shape[0] * TILE
    return TiledTokens(
        key=tile_key,
        token=token.new_zeros(slots).index_copy_(0, sorted_slot, token).view(-1, TILE),
        filled=torch.zeros(slots, dtype=dtype, device=key.device).index_fill_(0, sorted_slot, 1.0).view(-1, TILE),
        slot=torch.full((key.numel(),), slots, device=key.device).index_copy_(0, token, sorted_slot),
    )


def tiles_per_chunk(device: torch.device) -> int:
    """Return how many tiles to handle at a time."""
    return CHUNK.get(device.type, CHUNK["cpu"])


def slabs(dim: int) -> list[tuple[int, int]]:
    """Cut the features into slabs of nearly equal width, as (first, end).

    A slab's nodes are a buffer (nodes, features of the slab) that is built, read and forgotten, so memory does not grow
    with dim. Two threads or more get slabs twice as wide: fewer operators, each with enough work to share.
    """
    count = -(-dim // (SLAB if torch.get_num_threads() == 1 else 2 * SLAB))
    bounds = [dim * i // count for i in range(count + 1)]
    return list(pairwise(bounds))
