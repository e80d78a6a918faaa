# SPDX-License-Identifier: Apache-2.0
"""Where each token reads the pyramid: its level, and tiles of 16 tokens that read the same three blocks of nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.backends.pyramid.levels import LEFT, RIGHT, Levels
from contextpool.backends.pyramid.stencils import BETA, BLOCK
from contextpool.backends.tiling import TiledTokens, lanes, readable, size_on_host, sort_into_tiles

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
    """Rows of `Nodes.buffer` that belong to masked tokens, which no tile holds, or to none."""
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
    levels = Levels.of(batch, length, size_on_host(level.max(), cap), lanes(batch, device))
    spacing = (1 << level).to(sigma.dtype)  # h
    blur = torch.where(level > 0, (spacing / BETA).square(), 0.0)
    residual = sigma.square() - blur

    position = torch.arange(length, device=device)
    block = (position >> level) // BLOCK  # of the node under the token, (batch, length)
    # Blocks stored for each level, and `Levels.offset`, computed there: a table would be copied for every length.
    stored = ((length - 1) >> torch.arange(len(levels.blocks), device=device)) // BLOCK + 1 + LEFT + RIGHT
    offset = (stored.cumsum(0) - stored) * levels.lanes
    # Where the tokens of a sequence begin in each level, in blocks of the buffer, then sequences of a lane.
    sequence, width = torch.arange(batch, device=device)[:, None], levels.width
    begin = (offset + sequence // width * stored + LEFT) * width + sequence % width  # (batch, levels)
    # Of the three blocks block - 1 ... block + 1, the first.
    key = (begin - width).gather(1, level).add_(block, alpha=width)
    tokens = sort_into_tiles(key, valid, (levels.total - 2) * width)
    # The rows of tokens as nodes, (batch, length). Row 0 is a zero before them.
    rows = _first_row(begin[:, :1], width) + position * width
    # The token's distance from the first node of its own block, in nodes, plus one block: 16 <= place < 32.
    place = (position - (block << level) * BLOCK) / spacing + BLOCK
    slope = -0.5 * spacing.square() / residual
    return Tiles(
        levels=levels,
        tokens=tokens,
        first=_first_row(tokens.key, width),
        masked=rows[~valid] if readable(device) else torch.where(valid, 0, rows).flatten(),
        place=tokens.tiled(place),
        slope=tokens.tiled(slope),
        spacing=spacing,
        blur=blur,
        residual=residual,
    )


def _first_row(block: Tensor, width: int) -> Tensor:
    """Turn blocks of the buffer, times the sequences of a lane, plus the sequence, into rows of `Nodes.buffer`."""
    return block // width * (BLOCK * width) + block % width
