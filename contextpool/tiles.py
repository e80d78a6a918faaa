"""Where each token reads the pyramid: its level, and tiles of 16 tokens that read the same three blocks of nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.stencils import BETA, BLOCK

KAPPA = 1.38
LEFT, RIGHT = 3, 4
"""Zero blocks kept before and after the blocks of each sequence and level, so that every window stays inside."""


@dataclass(frozen=True)
class Layout:
    """Where the levels of all sequences lie in one flat buffer of blocks (blocks, 16, columns)."""

    batch: int
    length: int
    blocks: list[int]
    """Per level: blocks that hold tokens of one sequence."""
    offset: list[int]
    """Per level: first block in the buffer; the sequences follow each other, LEFT + blocks + RIGHT blocks each."""
    total: int

    @classmethod
    def of(cls, batch: int, length: int, top: int) -> Layout:
        """Lay out levels 0 ... top."""
        blocks = [((length - 1) >> level) // BLOCK + 1 for level in range(top + 1)]
        sizes = [batch * (LEFT + count + RIGHT) for count in blocks]
        return cls(batch, length, blocks, [sum(sizes[:level]) for level in range(top + 1)], sum(sizes))

    def rows(self, buffer: Tensor, level: int) -> Tensor:
        """View one level of the buffer as (batch, nodes, columns); node 0 is row 16 LEFT."""
        stored = LEFT + self.blocks[level] + RIGHT
        start = self.offset[level]
        return buffer[start : start + self.batch * stored].view(self.batch, stored * BLOCK, -1)


@dataclass(frozen=True)
class Tiles:
    """The tokens of a batch sorted by (level, sequence, block) and cut into tiles of 16, some with empty slots.

    In units of the level's node spacing h, the token in a slot stands `place` nodes after the first of the 48 nodes that
    its tile reads, and weighs them by the residual Gaussian exp(slope (place - k)^2), slope = -h^2 / (2 a^2).
    """

    layout: Layout
    first: Tensor
    """(tiles,): the first of the three consecutive blocks in the buffer."""
    token: Tensor
    """(tiles * 16,): index into the flattened (batch * length) tokens; batch * length for an empty slot."""
    slot: Tensor
    """(batch * length,): the inverse."""
    place: Tensor
    """(tiles, 16, 1)."""
    slope: Tensor
    """(tiles, 16, 1); zero for an empty slot."""
    spacing: Tensor
    """(batch, length): h of the token's level."""
    blur: Tensor
    """(batch, length): b^2 of the token's level."""
    residual: Tensor
    """(batch, length): a^2 = sigma^2 - b^2."""


def make_tiles(sigma: Tensor) -> Tiles:
    """Choose levels for widths (batch, length) and sort the tokens.

    The level is the largest whose blur is at most sigma / sqrt(2), and at most the one where 16 nodes span the sequence,
    from which a tile sees all of it.
    """
    batch, length = sigma.shape
    device = sigma.device
    cap = math.ceil(math.log2(max(1.0, length / BLOCK)))
    # A width that is not a number gives a result that is not a number; it must not give an index out of range.
    level = torch.log2(sigma * (BETA / KAPPA)).floor().clamp(0, cap).nan_to_num(0.0).long()
    layout = Layout.of(batch, length, int(level.max()))
    spacing = (1 << level).to(sigma.dtype)
    blur = torch.where(level > 0, (spacing / BETA).square(), 0.0)
    residual = sigma.square() - blur

    position = torch.arange(length, device=device)
    block = (position >> level) // BLOCK
    stored = torch.tensor(layout.blocks, device=device)[level] + LEFT + RIGHT
    sequence = torch.arange(batch, device=device)[:, None]
    key = torch.tensor(layout.offset, device=device)[level] + sequence * stored + block + LEFT - 1
    sorted_key, order = key.flatten().sort(stable=True)
    first, count = sorted_key.unique_consecutive(return_counts=True)
    tiles_of = (count + BLOCK - 1) // BLOCK
    # Slots skipped by the groups before, since each group starts a tile of its own.
    gap = (tiles_of.cumsum(0) - tiles_of) * BLOCK - (count.cumsum(0) - count)
    sorted_slot = torch.arange(batch * length, device=device) + gap.repeat_interleave(count)
    first = first.repeat_interleave(tiles_of)

    slots = first.shape[0] * BLOCK
    token = torch.full((slots,), batch * length, device=device).index_copy_(0, sorted_slot, order)
    place = (position - (block << level) * BLOCK) / spacing + BLOCK
    slope = -0.5 * spacing.square() / residual
    tiled = torch.stack((place, slope), dim=-1).flatten(0, 1)[order]
    tiled = tiled.new_zeros(slots, 2).index_copy_(0, sorted_slot, tiled).view(-1, BLOCK, 2)
    return Tiles(
        layout=layout,
        first=first,
        token=token,
        slot=torch.empty_like(order).index_copy_(0, order, sorted_slot),
        place=tiled[:, :, :1],
        slope=tiled[:, :, 1:],
        spacing=spacing,
        blur=blur,
        residual=residual,
    )
