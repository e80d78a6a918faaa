# SPDX-License-Identifier: Apache-2.0
"""How the fast backends cut their work: tokens into tiles of 16, tiles into chunks, features into slabs.

On a CPU the sizes are those that the values ask for, and pieces stay in the cache. A GPU works behind the host, which
would have to wait before it could read a value, so there the sizes are bounds that the shapes give, and pieces are as
large as memory allows, because each costs a launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 16
"""Tokens that are handled together, as the rows of one small matrix product."""
SLAB = {"cpu": 64, "cuda": 256}
"""Features that one thread, or a GPU, handles at a time. Wider slabs are no faster on a CPU, where their buffers cost
page faults."""
CHUNK = {"cpu": 64, "cuda": 4096}
"""Tiles handled at a time: their nodes stay in the cache of a CPU; on a GPU (a guess) they are enough to fill it."""

READABLE = ("cpu",)
"""Types of devices whose values the host reads without a wait."""


@dataclass(frozen=True)
class TiledTokens:
    """Tokens sorted by an integer key and cut into tiles of 16, so that all tokens of a tile have the same key.

    The key says what a token reads (which level, sequence and block of nodes), so a tile gathers its nodes once and
    multiplies them by a matrix of 16 rows. The last tile of a key may have empty slots. On a GPU tiles without any
    token may follow the others.
    """

    key: Tensor
    """(tiles,); the largest possible one for a tile without tokens."""
    token: Tensor
    """(tiles, 16): index into the flattened (batch * length) tokens; an empty slot has that of one that is not left
    out, if there is any."""
    filled: Tensor
    """(tiles, 16), bool: whether a slot holds a token."""
    slot: Tensor
    """(batch * length,): the inverse of `token`; tiles * 16, one past the last slot, for a token left out."""

    def tiled(self, values: Tensor) -> Tensor:
        """Gather (batch, length) into (tiles, 16), zero in empty slots."""
        return values.flatten()[self.token] * self.filled

    def untiled(self, values: Tensor) -> Tensor:
        """Gather (tiles, 16) into (batch * length,), zero for a token left out."""
        return torch.cat((values.flatten(), values.new_zeros(1)))[self.slot]


def sort_into_tiles(key: Tensor, valid: Tensor, keys: int) -> TiledTokens:
    """Group tokens (batch, length) by an integer key, leaving out those that are not valid.

    Args:
        key: (batch, length), integer, 0 ... keys - 1.
        valid: (batch, length), bool.
        keys: How many keys there may be.
    """
    device, tokens = key.device, key.numel()
    # Those left out come last, as one more key. Stable, so that a tile holds its tokens in the order of the sequence.
    sorted_key, order = torch.where(valid, key, keys).flatten().sort(stable=True)
    # At most 15 slots are empty for each key that occurs.
    tiles = (tokens + (TILE - 1) * min(keys, tokens)) // TILE
    count = torch.arange(max(keys + 1, tiles * TILE, tokens), device=device)
    # Where each key begins among the sorted tokens, (keys + 1,), and where its tiles end, (keys,).
    first = torch.searchsorted(sorted_key, count[: keys + 1])
    tiles_end = ((first.diff() + TILE - 1) // TILE).cumsum(0)
    if readable(device):
        tiles = int(tiles_end[-1])
    # A key's first slot less its first token, and past all slots for those left out, (keys + 1,).
    shift = F.pad(tiles_end, (1, 0)) * TILE - first
    shift[-1].fill_(tiles * TILE)

    tile_key = torch.searchsorted(tiles_end, count[:tiles], right=True)  # (tiles,); `keys` for a tile without tokens
    # Which of the sorted tokens stands in each slot, (tiles, 16); beyond the key's last one the slot is empty.
    rank = count[: tiles * TILE].view(tiles, TILE) - shift[tile_key][:, None]
    filled = rank < F.pad(first[1:], (0, 1), value=-tiles * TILE)[tile_key][:, None]
    return TiledTokens(
        key=tile_key.clamp_max_(keys - 1),
        token=order[rank * filled],
        filled=filled,
        slot=torch.empty_like(order).scatter_(0, order, (shift[sorted_key] + count[:tokens]).clamp_max_(tiles * TILE)),
    )


def readable(device: torch.device) -> bool:
    """Say whether the host can read a device's values without waiting for it."""
    return device.type in READABLE


def lanes(batch: int, device: torch.device) -> int:
    """Return in how many parts to handle a batch: sequence by sequence on a CPU, all at once on a GPU."""
    return batch if readable(device) else 1


def tiles_per_chunk(device: torch.device, columns: int = SLAB["cuda"]) -> int:
    """Return how many tiles to handle at a time, each with so many columns."""
    size = CHUNK.get(device.type, CHUNK["cuda"])
    return size if readable(device) else max(1, size * SLAB["cuda"] // columns)


def slabs(dim: int, device: torch.device) -> list[tuple[int, int]]:
    """Cut the features into slabs of nearly equal width, as (first, end).

    A slab's nodes are a buffer (nodes, features of the slab) that is built, read and forgotten, so memory does not grow
    with dim. Two threads or more get slabs twice as wide: fewer operators, each with enough work to share.
    """
    width = SLAB.get(device.type, SLAB["cuda"])
    if device.type == "cpu" and torch.get_num_threads() > 1:
        width *= 2
    count = -(-dim // width)
    bounds = [dim * i // count for i in range(count + 1)]
    return list(pairwise(bounds))
