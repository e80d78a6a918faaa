# SPDX-License-Identifier: Apache-2.0
"""Where each token reads the pyramid: its level, and tiles of 16 tokens that read the same three blocks of nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from contextpool.backends.pyramid.levels import LEFT, RIGHT, Levels
from contextpool.backends.pyramid.stencils import BETA, BLOCK
from contextpool.backends.tiling import TiledTokens, lanes, readable, sort_into_tiles

KAPPA = 1.38
"""A token reads the highest level whose blur is at most sigma / KAPPA.

The trapezoid rule is best at sqrt(2); a bit less keeps the residual narrow, so that less of its tail is cut off.
"""


@dataclass(frozen=True)
class Tiles:
    """The tokens of a batch grouped by (level, sequence, block).

    In units of the level's node spacing h, the token in a slot stands `place` nodes after the first of the 48 nodes
    that its tile reads, and weighs them by the residual Gaussian exp(slope (place - k)^2), slope = -h^2 / (2 a^2).
    """

    levels: Levels
    tokens: TiledTokens
    """Keyed by the first of the three blocks of nodes that a tile reads, and the sequence."""
    first: Tensor
    """(tiles,): row of the first node that a tile reads, see `Nodes.windows`."""
    masked: Tensor
    """Rows of `Nodes.buffer` that belong to masked tokens, which no tile holds; on a GPU also row 0, a zero anyway."""
    place: Tensor
    """(tiles, 16)."""
    slope: Tensor
    """(tiles, 16)."""
    spacing: Tensor
    """(batch, length): h of the token's level."""
    blur: Tensor
    """(batch, length): b^2 of the token's level."""
    residual: Tensor
    """(batch, length): a^2 = sigma^2 - b^2."""


def make_tiles(sigma: Tensor, weight: Tensor) -> Tiles:
    """Choose levels for widths (batch, length) and sort the tokens; those of weight zero are left out.

    The level is also at most the one where 16 nodes span the sequence, from which a tile sees all of it.
    """
    valid = weight != 0.0
    batch, length = sigma.shape
    device = sigma.device
    cap = math.ceil(math.log2(max(1.0, length / BLOCK)))
    # The highest level with blur 2^l / BETA <= sigma / KAPPA, (batch, length); -1 and less become level 0, the tokens.
    # A width that is not a number gives a result that is not a number; it must not give an index out of range.
    level = torch.log2(sigma * (BETA / KAPPA)).floor().clamp(0, cap).nan_to_num(0.0).long() * valid
    levels = Levels.of(batch, length, int(level.max()) if readable(device) else cap, lanes(batch, device))
    tables, width = _tables(levels, sigma.dtype, device), levels.width
    spacing, blur = tables.spacing[level], tables.blur[level]
    residual = sigma.square() - blur

    block = (tables.position >> level) // BLOCK  # of the node under the token, (batch, length)
    tokens = sort_into_tiles(tables.begin.gather(1, level).add_(block, alpha=width), valid, (levels.total - 2) * width)
    # The token's distance from the first node of its own block, in nodes, plus one block: 16 <= place < 32.
    place = (tables.position / spacing).sub_(block, alpha=BLOCK).add_(BLOCK)
    slope = tables.slope[level] / residual
    return Tiles(
        levels=levels,
        tokens=tokens,
        # From blocks, times the sequences of a lane, plus the sequence, to rows of nodes.
        first=tokens.key.add(tokens.key // width, alpha=(BLOCK - 1) * width),
        masked=tables.row[~valid] if readable(device) else (tables.row * ~valid).flatten(),
        place=tokens.tiled(place),
        slope=tokens.tiled(slope),
        spacing=spacing,
        blur=blur,
        residual=residual,
    )


class _Tables(NamedTuple):
    """What depends on shapes alone."""

    position: Tensor
    """(length,): 0, 1, 2, ..."""
    row: Tensor
    """(batch, length): the rows of tokens in `Nodes.buffer`."""
    begin: Tensor
    """(batch, levels): the key of the first tokens of a sequence in each level."""
    spacing: Tensor
    """(levels,): h."""
    blur: Tensor
    """(levels,): b^2."""
    slope: Tensor
    """(levels,): -h^2 / 2."""


@lru_cache(maxsize=32)
def _tables(levels: Levels, dtype: torch.dtype, device: torch.device) -> _Tables:
    """Make the tables on the device; those of a size that comes again are there already."""
    level, position = (torch.arange(size, device=device) for size in (len(levels.blocks), levels.length))
    sequence, width = torch.arange(levels.batch, device=device)[:, None], levels.width
    # Blocks stored for each level, and `Levels.offset`.
    stored = ((levels.length - 1) >> level) // BLOCK + 1 + LEFT + RIGHT
    offset = (stored.cumsum(0) - stored) * levels.lanes
    # The first of the three blocks that the first tokens read, in blocks of the buffer; then the sequence of the lane.
    block = offset + sequence // width * stored + LEFT - 1
    spacing = (1 << level).to(dtype)
    return _Tables(
        position=position,
        row=((block[:, :1] + 1) * BLOCK + position) * width + sequence % width,
        begin=block * width + sequence % width,
        spacing=spacing,
        blur=torch.where(level > 0, (spacing / BETA).square(), 0.0),
        slope=-0.5 * spacing.square(),
    )
