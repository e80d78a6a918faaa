"""Tiles: tokens sorted by a key and cut into groups of 16 that read the same nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.backends.pyramid.stencils import BLOCK


@dataclass(frozen=True)
class Groups:
    """Tokens sorted by a key and cut into tiles of 16, some with empty slots, so that a tile has one key."""

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


def sort_into_tiles(key: Tensor, valid: Tensor, dtype: torch.dtype) -> Groups:
    """Group tokens (batch, length) by an integer key, leaving out those that are not valid."""
    token = valid.flatten().nonzero()[:, 0]
    sorted_key, order = key.flatten()[token].sort(stable=True)
    token = token[order]
    group_key, count = sorted_key.unique_consecutive(return_counts=True)
    tiles_of = (count + BLOCK - 1) // BLOCK
    # Slots left empty by the groups before, since each group starts a tile of its own.
    gap = (tiles_of.cumsum(0) - tiles_of) * BLOCK - (count.cumsum(0) - count)
    sorted_slot = torch.arange(token.shape[0], device=key.device) + gap.repeat_interleave(count)
    tile_key = group_key.repeat_interleave(tiles_of)
    slots = tile_key.shape[0] * BLOCK
    return Groups(
        key=tile_key,
        token=token.new_zeros(slots).index_copy_(0, sorted_slot, token).view(-1, BLOCK),
        filled=torch.zeros(slots, dtype=dtype, device=key.device).index_fill_(0, sorted_slot, 1.0).view(-1, BLOCK),
        slot=torch.full((key.numel(),), slots, device=key.device).index_copy_(0, token, sorted_slot),
    )
