# SPDX-License-Identifier: Apache-2.0
"""Where each token reads the pyramid: its level, and tiles of 16 tokens that read the same three blocks of nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.backends.pyramid.levels import LEFT, RIGHT, Levels
from contextpool.backends.pyramid.stencils import BETA, BLOCK
from contextpool.backends.tiling import TiledTokens, sort_into_tiles

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
    """Keyed by the first of the three consecutive blocks that a tile reads."""
    masked: tuple[Tensor, Tensor]
    """Sequences and positions of the masked tokens, which no tile holds."""
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
    level = torch.log2(sigma * (BETA / KAPPA)).floor().clamp(0, cap).nan_to_num(0.0).long()
    levels = Levels.of(batch, length, int((level * valid).max()))
    spacing = (1 << level).to(sigma.dtype)  # h
    blur = torch.where(level > 0, (spacing / BETA).square(), 0.0)
    residual = sigma.square() - blur

    position = torch.arange(length, device=device)
    block = (position >> level) // BLOCK  # of the node under the token, (batch, length)
    # `top` matters for tokens left out only, whose level may be higher than any that is laid out.
    top = level.clamp_max(len(levels.blocks) - 1)
    stored = torch.tensor(levels.blocks, device=device)[top] + LEFT + RIGHT
    sequence = torch.arange(batch, device=device)[:, None]
    # Of the three blocks block - 1 ... block + 1, the first, as an index into the buffer of `Levels`.
    key = torch.tensor(levels.offset, device=device)[top] + sequence * stored + block + LEFT - 1
    tokens = sort_into_tiles(key, valid, sigma.dtype)
    # The token's distance from the first node of its own block, in nodes, plus one block: 16 <= place < 32.
    place = (position - (block << level) * BLOCK) / spacing + BLOCK
    slope = -0.5 * spacing.square() / residual
    masked = (~valid).nonzero(as_tuple=True)
    return Tiles(
        levels=levels,
        tokens=tokens,
        masked=(masked[0], masked[1]),
        place=tokens.tiled(place),
        slope=tokens.tiled(slope),
        spacing=spacing,
        blur=blur,
        residual=residual,
    )
