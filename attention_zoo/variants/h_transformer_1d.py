# SPDX-License-Identifier: Apache-2.0
"""H-Transformer-1D: near tokens one by one, far ones as averages (Zhu and Soricut 2021, arXiv:2107.11906).

The matrix of scores is treated as a hierarchical matrix, as in numerical analysis: exact near the diagonal, and the
coarser the farther from it. At level 0, blocks of `block_size` tokens attend to themselves and to the blocks beside
them. At each further level two tokens become one position, queries and keys as averages and values as sums, and blocks
attend to the blocks beside them, except for pairs of tokens that met at a finer level. One softmax normalises all
levels.

Departures from the paper:

- There is no causal form.
- Every length is allowed; a block that is filled in part is masked.
- Averages are over real tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.block_sparse import HIDDEN, Pattern, block_sparse_attention, merge
from attention_zoo.kernels.blocks import neighbours, num_blocks, pad_to_blocks
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class HTransformer1dConfig(QkvConfig):
    """Options of H-Transformer-1D."""

    block_size: int = option(
        16, "tokens in a block at every level, even (the paper's numerical rank)", least=2, parity="even"
    )


@register_variant(
    "h_transformer_1d",
    title="H-Transformer-1D",
    family="low rank",
    traits=Traits(memory="linear", complexity="O(n b)", exact_limit=lambda length: {"block_size": length + length % 2}),
    paper="Zhu and Soricut 2021, arXiv:2107.11906",
)
class HTransformer1d(SequenceMixer):
    """Tokens attend to near tokens one by one, and to far ones in averages that get coarser with the distance."""

    config: HTransformer1dConfig

    def __init__(self, config: HTransformer1dConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        length, size = x.shape[1], self.config.block_size
        # Level 0 has one token at each position: the mask is the number of tokens, 1 or 0.
        real = torch.ones(1, length, dtype=torch.bool, device=x.device) if mask is None else mask
        heads = torch.cat(self.projections.split(x), dim=1)
        finest = _Level(heads, real.to(torch.promote_types(x.dtype, torch.float32)), size)
        dropout = self.dims.dropout if self.training else 0.0
        parts = [_attend([finest], neighbours(finest.blocks, 1, 1, x.device), None, dropout)]
        # With two blocks all have met; until then each level halves their number.
        levels = [finest]
        while levels[-1].blocks > 2:
            levels.append(levels[-1].coarser())
        if coarse := levels[1:]:
            # All coarser levels are attended to in one call, as if they were one sequence of blocks.
            out, log_sum = _attend(coarse, *_far(coarse, x.device), dropout)
            sizes = [level.blocks * size for level in coarse]
            parts += zip(out.split(sizes, dim=2), log_sum.split(sizes, dim=2), strict=True)
        # From the coarsest level down: the result of a coarse query belongs to both finer queries, and is merged with
        # the results of these.
        out, log_sum = parts.pop()
        while parts:
            finer = parts.pop()
            coarse_out, coarse_sum = (
                each.repeat_interleave(2, dim=2)[:, :, : finer[1].shape[2]] for each in (out, log_sum)
            )
            out, log_sum = merge([finer, (coarse_out, coarse_sum)])
        return self.projections.merge(out[:, :, :length], mask)

    def state_size(self, length: int) -> int:
        """At each level, keys and values of a block and of those beside it."""
        size, kept, positions = self.config.block_size, 0, length
        while True:
            kept += min(positions, 3 * size)
            if positions <= 2 * size:
                return self.projections.cache_size(kept)
            positions = num_blocks(positions, size) * size // 2


class _Level:
    """Queries, keys and values at one level: a position stands for 2^level tokens, as the average of the real ones."""

    def __init__(self, heads: Tensor, count: Tensor, size: int) -> None:
        """Pad to whole blocks.

        Args:
            heads: Queries, keys and values, one after the other: (batch, 3 * num_heads, positions, head_dim).
            count: (batch or 1, positions): number of real tokens at a position.
            size: Positions in a block.
        """
        self.heads = pad_to_blocks(heads, size)
        self.count = pad_to_blocks(count[:, None, :, None], size)[:, 0, :, 0]
        self.size = size
        self.blocks = self.heads.shape[2] // size

    def coarser(self) -> _Level:
        """Put two positions together."""
        pairs = self.count.unflatten(1, (-1, 2))  # (batch or 1, positions / 2, 2)
        count = pairs.sum(dim=2)
        # The average over the tokens of both, so each counts with its share of them; no tokens at all give zeros.
        shares = (pairs / count.clamp_min(1).unsqueeze(2))[:, None, :, None].to(self.heads.dtype)
        # (batch or 1, 1, positions / 2, 1, 2) @ (batch, 3 * num_heads, positions / 2, 2, head_dim)
        return _Level((shares @ self.heads.unflatten(2, (-1, 2))).squeeze(3), count, self.size)


def _attend(
    levels: list[_Level], where: tuple[Tensor, Tensor], relative: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attend to the positions of other blocks, each of which counts as often as it has tokens.

    Args:
        levels: The levels, whose blocks are numbered one after the other.
        where: Block numbers (blocks, slots), and which of them exist.
        relative: A pattern within blocks, or None.
        dropout: Probability of dropping a weight.

    Returns:
        Outputs and log-sum-exp, see `block_sparse_attention`.
    """
    # The paper's values are sums: n exp(s) times the average value. Averages with log n added to the score s give
    # the same numerator, and a normaliser that counts tokens.
    index, exists = where
    q, k, v = torch.cat([level.heads for level in levels], dim=2).chunk(3, dim=1)
    count, size = torch.cat([level.count for level in levels], dim=1), levels[0].size
    weight = count.log().clamp_min(HIDDEN).unflatten(1, (-1, size))[:, index]  # (batch or 1, blocks, slots, size)
    bias = weight.masked_fill(~exists[..., None], HIDDEN).flatten(2)
    pattern = Pattern(index=index[None], key_size=size, bias=bias, relative=relative)
    return block_sparse_attention(q, k, v, pattern, dropout=dropout)


def _far(levels: list[_Level], device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the pattern of the coarser levels: the blocks beside, except for the pairs that met at the finer level.

    A block of a level is two of the finer one, its early and its late half. Across a border the two halves that touch
    were neighbours at the finer level; the other three pairs of halves were not.
    """
    index, exists = neighbours(sum(level.blocks for level in levels), 1, 1, device)
    for border in itertools.accumulate(level.blocks for level in levels[:-1]):
        for block, side in ((border - 1, 2), (border, 0)):
            exists[block, side].fill_(False)  # noqa: FBT003 - the block on this side is of another level
    size = levels[0].size
    late_query = torch.arange(size, device=device)[:, None] >= size // 2
    late_key = torch.arange(size, device=device) >= size // 2
    # Columns: the block before, where early queries touch late keys, then the block behind, where late touch early.
    touching = torch.cat((~late_query & late_key, late_query & ~late_key), dim=1)
    return (index[:, ::2], exists[:, ::2]), ~touching
