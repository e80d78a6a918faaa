# SPDX-License-Identifier: Apache-2.0
"""Helpers that cut sequences into blocks: padding to a multiple, masks of blocks, neighbours of a block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def num_blocks(length: int, size: int) -> int:
    """Count the blocks of `size` tokens that hold `length` tokens; the last one may be filled in part."""
    return -(-length // size)  # rounds up


def pad_to_blocks(x: Tensor, size: int) -> Tensor:
    """Pad (batch, num_heads, length, head_dim) with zero tokens to a multiple of `size`."""
    missing = -x.shape[2] % size  # tokens up to the next multiple
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def pad_mask(mask: Tensor | None, length: int, size: int, device: torch.device) -> Tensor | None:
    """Extend a mask over the padding of the last block.

    Args:
        mask: bool, (batch, length), or None = all real.
        length: Tokens before padding.
        size: Tokens in a block.
        device: Where to make a mask if there is none.

    Returns:
        bool, (batch or 1, padded length); None when every token is real and no padding was needed.
    """
    missing = -length % size
    if not missing:
        return mask
    if mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=device)
    return F.pad(mask, (0, missing), value=False)


def block_means(x: Tensor, real: Tensor | None, size: int) -> Tensor:
    """Average each block over its real tokens.

    Args:
        x: (rows, blocks * size, features).
        real: bool, (rows, blocks * size), or None = all.
        size: Tokens in a block.

    Returns:
        (rows, blocks, features); zeros for a block without a real token.
    """
    if real is None:
        return x.unflatten(1, (-1, size)).mean(dim=2)
    sums = torch.where(real.unsqueeze(2), x, 0.0).unflatten(1, (-1, size)).sum(dim=2)
    return sums / real.unflatten(1, (-1, size)).sum(dim=2).clamp_min(1).to(x.dtype).unsqueeze(2)


def fold_blocks(x: Tensor, size: int) -> Tensor:
    """Move blocks of (batch, num_heads, length, head_dim) to the batch: (batch * blocks, num_heads, size, head_dim)."""
    return x.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def unfold_blocks(x: Tensor, batch: int, length: int) -> Tensor:
    """Undo `fold_blocks`, and drop the padding behind `length`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def neighbours(blocks: int, before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number the neighbours of each block: `before` blocks ahead of it, itself, and `after` blocks behind it.

    Returns:
        Block numbers (blocks, before + 1 + after), int64; and a bool tensor of the same shape, True where there is such
        a block. A neighbour that would lie outside has the number of the nearest block, so that it can be gathered.
    """
    offsets = torch.arange(-before, after + 1, device=device)  # (slots,)
    index = torch.arange(blocks, device=device)[:, None] + offsets  # (blocks, slots)
    return index.clamp(0, blocks - 1), (index >= 0) & (index < blocks)


def seen_keys(index: Tensor, exists: Tensor, mask: Tensor | None, size: int) -> Tensor:
    """Say which gathered keys may be seen: the real tokens of the key blocks that exist.

    Args:
        index: (batch or 1, blocks, slots): the key blocks that each block of queries meets.
        exists: bool, like `index`.
        mask: bool, (batch or 1, blocks * size), or None.
        size: Tokens in a block.

    Returns:
        bool, (batch or 1, blocks, slots * size), as `Pattern.seen` takes it.
    """
    seen = exists.unsqueeze(-1)  # (batch or 1, blocks, slots, 1)
    if mask is None:
        seen = seen.expand(*index.shape, size)
    else:
        batch = max(mask.shape[0], index.shape[0])
        # mask cut into blocks is (batch, blocks, size); indexed by (sequence, key block) it gives
        # (batch, blocks, slots, size): for each slot the mask of the block that stands there.
        rows = torch.arange(batch, device=index.device)[:, None, None]
        seen = seen & mask.unflatten(1, (-1, size)).expand(batch, -1, -1)[rows, index]
    return seen.flatten(2)


def cut(x: Tensor, part: tuple[slice, ...]) -> Tensor:
    """Take a part of a tensor along its first axes; an axis of size 1 stands for all of them and is kept whole."""
    # `part` may be shorter than the shape, whose other axes are kept too.
    return x[tuple(s if size > 1 else slice(None) for s, size in zip(part, x.shape, strict=False))]
