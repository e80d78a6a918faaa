# SPDX-License-Identifier: Apache-2.0
"""MRA-2: attention at two resolutions, exact where it matters (Zeng et al. 2022, arXiv:2207.10284, sections 3 and 4).

The matrix of scores is cut into blocks of b by b. A coarse score of each block is that of its mean query and its mean
key. The r n / b blocks with the highest coarse scores are computed exactly, and in all others every entry takes the
coarse score of its block. With J the exact blocks, x and y the blocks of the tokens i and j, and means over blocks,

    out_i = Σ_j a_ij v_j / Σ_j a_ij,    a_ij = exp(q_i·k_j / √d) if (x, y) in J, else exp(mean(q)_x·mean(k)_y / √d).

`coarse=False` is MRA-2-s of the paper: a_ij = 0 outside of J. J is chosen over the whole matrix, in each head, so that
some rows get more blocks than others. As in the authors' code, the maximum of each row is subtracted from the coarse
scores before they are compared, so the best block of every row comes first. Among blocks that tie, the first one wins.

Departures:

- The number of exact blocks is r times the number of blocks with a real token. In the authors' code it is fixed by the
  longest length, so that padding changes what is exact.
- In the authors' code, blocks whose score ties with the lowest one in J are neither exact nor coarse.
- Attention weights have dropout; those of a coarse block are dropped together.
- On Image and Pathfinder the authors' code first reorders the pixels, so that each block is a patch of 4 by 8 of them.
  Here a block is a stretch of the sequence, as the benchmark's rules have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention
from attention_zoo.kernels.blocks import block_means, pad_mask, pad_to_blocks, seen_keys
from attention_zoo.kernels.dropout import dropout as drop
from attention_zoo.kernels.linear_attention import float_features
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class MraConfig(QkvConfig):
    """Options of MRA-2.

    Raises:
        ValueError: A number is out of range, or more blocks are always exact than may be exact.
    """

    block_size: int = option(32, "tokens in a block", least=1)
    blocks_per_row: int = option(8, "blocks that are exact, on average over the rows of blocks", least=1)
    coarse: bool = option(True, "read all other blocks at coarse resolution (MRA-2); without it, not at all (MRA-2-s)")
    first_blocks: int = option(
        0, "first rows and columns of blocks, which are always exact (authors: 1 on LRA)", least=0
    )
    diagonal_blocks: int = option(
        0, "blocks around the diagonal that are always exact, odd or 0; 1 is the diagonal", least=0, parity="odd"
    )

    def __post_init__(self) -> None:
        """Check the options together."""
        QkvConfig.__post_init__(self)
        if 2 * self.first_blocks + self.diagonal_blocks > self.blocks_per_row:
            raise ValueError(
                f"2 * first_blocks + diagonal_blocks must be at most blocks_per_row ({self.blocks_per_row}), "
                f"got {self.first_blocks} and {self.diagonal_blocks}"
            )


@register_variant(
    "mra",
    title="MRA-2",
    family="sparse",
    traits=Traits(
        memory="subquadratic",
        complexity="O(n b r + (n/b)²)",
        exact_limit=lambda length: {"blocks_per_row": length},
    ),
    paper="Zeng et al. 2022, arXiv:2207.10284",
)
class Mra(SequenceMixer):
    """Tokens attend exactly within the most promising pairs of blocks, and to the means of all other blocks.

    Coarse scores and all sums are computed in float32 (float64 for float64 inputs), under autocast too. The coarse
    scores, (n/b)² in each head, are the only tensor that is not linear in the length.
    """

    config: MraConfig

    def __init__(self, config: MraConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        (batch, length, _), size, num_heads = x.shape, self.config.block_size, self.dims.num_heads
        dropout = self.dims.dropout if self.training else 0.0
        q, k, v = (pad_to_blocks(heads, size) for heads in self.projections.split(x))
        blocks = q.shape[2] // size
        # Each head chooses blocks of its own: heads become sequences, (batch * num_heads, blocks * size, ...).
        q, k, v = (heads.flatten(0, 1) for heads in (q, k, v))
        real = pad_mask(mask, length, size, x.device)
        if real is None:
            count = torch.full((1, blocks), size, device=x.device)
        else:
            real = real.expand(batch, -1).repeat_interleave(num_heads, dim=0)
            count = real.unflatten(1, (blocks, size)).sum(dim=2)  # (batch * num_heads or 1, blocks)
        with torch.autocast(x.device.type, enabled=False):
            q_means, k_means, v_means = (block_means(float_features(heads), real, size) for heads in (q, k, v))
            scores = (q_means * q.shape[2] ** -0.5) @ k_means.transpose(-2, -1)  # (batch * num_heads, blocks, blocks)
        pair, exact = self.choose(scores.detach(), count > 0)  # (batch * num_heads, pairs)
        row, column = pair // blocks, pair % blocks
        # Each exact block of scores is a block of queries of its own, which meets one block of keys.
        first = torch.arange(batch * num_heads, device=x.device)[:, None] * blocks
        target = (first + row).flatten()  # block of queries in the list of all sequences and heads
        queries = q.reshape(-1, size, q.shape[2]).index_select(0, target).view(batch * num_heads, 1, -1, q.shape[2])
        pattern = Pattern(
            index=column.unsqueeze(2),
            key_size=size,
            seen=None if real is None else seen_keys(column.unsqueeze(2), exact.unsqueeze(2), real, size),
        )
        fine, log_sum = block_sparse_attention(queries, k.unsqueeze(1), v.unsqueeze(1), pattern, dropout=dropout)
        parts = fine.view(-1, size, q.shape[2]), log_sum.view(-1, size)  # first axis: the pairs of all heads
        with torch.autocast(x.device.type, enabled=False):
            rest = None
            if self.config.coarse:
                # A block with n real keys has n times the weight of its mean key, and none if it is exact.
                weight = count.clamp_min(1).to(scores.dtype).log().unsqueeze(1)
                met = torch.zeros_like(scores, dtype=torch.bool).flatten(1).scatter(1, pair, exact).view_as(scores)
                hidden = met | (count == 0).unsqueeze(1)
                scores = (scores + weight).masked_fill(hidden, torch.finfo(scores.dtype).min / 4)
                far = (
                    drop(scores.softmax(dim=-1), dropout, training=True) @ v_means
                )  # (batch * num_heads, blocks, head_dim)
                rest = far.flatten(0, 1), scores.logsumexp(dim=-1).flatten()
            heads = _merge_by_row(parts, target, rest, batch * num_heads * blocks)
        heads = heads.view(batch, num_heads, -1, q.shape[2])[:, :, :length].to(v.dtype)
        return self.projections.merge(heads, mask)

    def state_size(self, length: int) -> int:
        """Keys and values of all tokens: any block may become an exact one."""
        return self.projections.cache_size(length)

    @torch.no_grad()
    def choose(self, scores: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the blocks of scores that are exact.

        Args:
            scores: (rows, blocks, blocks), coarse scores; a row is a sequence and a head.
            held: (rows or 1, blocks), bool: blocks that hold a real token.

        Returns:
            (rows, pairs), int64: numbers query block * blocks + key block, best first; and bool of the same shape, True
            where the pair is exact. The rest of the list is there because its length does not depend on the mask.
        """
        config, blocks = self.config, scores.shape[2]
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~held.unsqueeze(1), lowest / 4)
        scores = scores - scores.amax(dim=-1, keepdim=True)  # from lowest / 4 up: the difference is finite
        if config.first_blocks or config.diagonal_blocks:
            position = torch.arange(blocks, device=scores.device)
            always = torch.minimum(position[:, None], position) < config.first_blocks
            if config.diagonal_blocks:
                always = always | ((position[:, None] - position).abs() <= config.diagonal_blocks // 2)
            scores = scores.masked_fill(always, torch.finfo(scores.dtype).max)
        scores = scores.masked_fill(~(held.unsqueeze(1) & held.unsqueeze(2)), lowest)
        # The best blocks of all rows tie at zero, so that the order decides among them; `topk` would take any of them.
        pair = scores.flatten(1).sort(descending=True, stable=True).indices[:, : config.blocks_per_row * blocks]
        budget = config.blocks_per_row * held.sum(dim=1, keepdim=True)
        return pair, (torch.arange(pair.shape[1], device=scores.device) < budget).expand_as(pair)


def _merge_by_row(
    parts: tuple[Tensor, Tensor], target: Tensor, rest: tuple[Tensor, Tensor] | None, rows: int
) -> Tensor:
    """Merge attentions over disjoint sets of keys, of which each block of queries has a number of its own.

    Args:
        parts: Outputs (pairs, size, head_dim) and log-sum-exp (pairs, size) of each pair of blocks.
        target: (pairs,), int64: the block of queries.
        rest: Outputs (rows, head_dim) and log-sum-exp (rows,), the same for all queries of a block; None = none.
        rows: Number of blocks of queries.

    Returns:
        (rows, size, head_dim), in the dtype of the log-sum-exp.
    """
    out, log_sum = parts
    # Shares exp(L - highest L) of the common softmax; the highest of each query, (rows, size), is only a shift.
    start = log_sum.new_full((rows, log_sum.shape[1]), torch.finfo(log_sum.dtype).min)
    highest = start.scatter_reduce(0, target.unsqueeze(1).expand_as(log_sum), log_sum.detach(), "amax")
    if rest is not None:
        highest = torch.maximum(highest, rest[1].detach().unsqueeze(1))
    share = (log_sum - highest.index_select(0, target)).exp()
    total = torch.zeros_like(highest).index_add(0, target, share)
    merged = torch.zeros(rows, *out.shape[1:], dtype=total.dtype, device=out.device)
    merged = merged.index_add(0, target, out.to(total.dtype) * share.unsqueeze(2))
    if rest is not None:
        share = (rest[1].unsqueeze(1) - highest).exp()
        total = total + share
        merged = torch.addcmul(merged, rest[0].unsqueeze(1), share.unsqueeze(2))
    return merged / total.clamp_min(0.5).unsqueeze(2)  # at least 1, but for a block that meets none
