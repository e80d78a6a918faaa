# SPDX-License-Identifier: Apache-2.0
"""Top-k block attention: every query attends to the few blocks of keys that fit it best (MoBA, Lu et al. 2025).

arXiv:2502.13189, section 2.2. With the tokens cut into blocks, a query q scores each block of keys by q·mean(k). It
attends, in one softmax, to the tokens of its own block and of the `num_blocks` - 1 others with the highest scores. Each
head and each token chooses for itself; the choice has no gradient.

The paper's form is causal: only earlier blocks are chosen, and of the own block only tokens up to the query are seen.
Without `dims.causal` all blocks are candidates.

`compressed=True` adds a branch after native sparse attention (Yuan et al. 2025, arXiv:2502.11089, section 3.3), which
attends to the means of all blocks, and a gated sum of both,

    out = g(x) attention(q, chosen tokens) + h(x) attention(q, means of keys, means of values),

with g and h the sigmoids of a learned linear map, for each head. Causal queries see the means of earlier blocks only.

Departures:

- Blocks hold 32 tokens; the papers, for far longer sequences, take 512 and 64.
- Native sparse attention compresses overlapping blocks by a small network, and has a third branch with a window. Here
  the means are plain, and the own block, always chosen, stands for the window.
- Means are over real tokens; blocks without one are not chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.functional import causal_mask
from attention_zoo.kernels.block_routing import routed_attention
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention, merge
from attention_zoo.kernels.blocks import block_means, pad_mask, pad_to_blocks
from attention_zoo.kernels.linear_attention import float_features
from attention_zoo.kernels.softmax import attend
from attention_zoo.projections import HeadProjections, QkvConfig, initialise
from attention_zoo.registry import register_variant

_QUERIES = 512
"""Queries that score the blocks together. The number is fixed, so that the scores grow linearly with the length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTopkConfig(QkvConfig):
    """Options of top-k block attention."""

    block_size: int = option(32, "tokens in a block", least=1)
    num_blocks: int = option(4, "blocks that a query attends to, its own one included", least=1)
    compressed: bool = option(False, "add attention to the means of all blocks, through learned gates")


@register_variant(
    "block_topk",
    title="Top-k blocks",
    family="sparse",
    traits=Traits(
        memory="linear",
        complexity="O(n b k + n²/b)",
        causal=True,
        exact_limit=lambda length: {"num_blocks": length},
    ),
    paper="Lu et al. 2025, arXiv:2502.13189; compressed branch of Yuan et al. 2025, arXiv:2502.11089",
)
class BlockTopk(SequenceMixer):
    """Every query attends to its own block, and to the blocks whose mean keys it likes best."""

    config: BlockTopkConfig

    def __init__(self, config: BlockTopkConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        if config.compressed:
            self.gates = nn.Linear(dims.dim, 2 * dims.num_heads)
            initialise(self.gates)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        (batch, length, _), size, causal = x.shape, self.config.block_size, self.dims.causal
        dropout = self.dims.dropout if self.training else 0.0
        # Each head chooses blocks of its own: heads become rows, (batch * num_heads, blocks * size, head_dim).
        q, k, v = (pad_to_blocks(heads, size).flatten(0, 1) for heads in self.projections.split(x))
        blocks = q.shape[1] // size
        real = pad_mask(mask, length, size, x.device)
        if real is None:
            held = torch.ones(1, blocks, dtype=torch.bool, device=x.device)
        else:
            real = real.expand(batch, -1).repeat_interleave(self.dims.num_heads, dim=0)
            held = real.unflatten(1, (blocks, size)).any(dim=2)
        own = Pattern(
            index=torch.arange(blocks, device=x.device).view(1, blocks, 1),
            key_size=size,
            seen=None if real is None else real.unflatten(1, (blocks, size)),
            relative=causal_mask(size, size, x.device) if causal else None,
        )
        out, log_sum = block_sparse_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), own, dropout=dropout)
        parts = [(out.squeeze(1), log_sum.squeeze(1))]
        k_means = block_means(float_features(k), real, size)  # (batch * num_heads, blocks, head_dim)
        others = min(self.config.num_blocks, blocks) - 1
        if others:
            chosen, exists = self.choose(q.detach(), k_means.detach(), held, others)
            parts += routed_attention(q, k, v, real, chosen, exists, size=size, dropout=dropout)
        heads = merge(parts)[0].unflatten(0, (batch, -1))[:, :, :length]
        if self.config.compressed:
            far = self.attend_to_means(q, k_means.to(v.dtype), block_means(v, real, size), held)
            gates = self.gates(x).sigmoid().unflatten(2, (2, -1)).permute(2, 0, 3, 1).unsqueeze(4)
            heads = gates[0] * heads + gates[1] * far.unflatten(0, (batch, -1))[:, :, :length]
        return self.projections.merge(heads, mask)

    def state_size(self, length: int) -> int:
        """Keys and values of all tokens: a later query may choose any block."""
        return self.projections.cache_size(length)

    @torch.no_grad()
    def choose(self, q: Tensor, k_means: Tensor, held: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Choose the other blocks of each query, those with the highest q·mean(k).

        Args:
            q: (rows, blocks * size, head_dim).
            k_means: (rows, blocks, head_dim).
            held: (rows or 1, blocks), bool: blocks that hold a real token.
            number: Blocks to choose.

        Returns:
            (rows, blocks * size, number), int64; and bool of the same shape, True where there was a block to choose.
        """
        blocks = k_means.shape[1]
        position = torch.arange(q.shape[1], device=q.device)
        block = torch.arange(blocks, device=q.device)
        lowest = torch.finfo(k_means.dtype).min
        chosen, exists = [], []
        with torch.autocast(q.device.type, enabled=False):
            for queries, own in zip(q.split(_QUERIES, dim=1), position.split(_QUERIES), strict=True):
                own = (own // self.config.block_size)[:, None]  # (queries, 1)
                candidate = block < own if self.dims.causal else block != own
                # (rows, queries, blocks); no finite score is as low as that of a block that is no candidate.
                scores = (queries.to(k_means.dtype) @ k_means.transpose(-2, -1)).masked_fill(
                    ~(candidate & held.unsqueeze(1)), lowest
                )
                best = [_take_highest(scores, lowest) for _ in range(number)]
                chosen.append(torch.cat([index for _, index in best], dim=-1))
                exists.append(torch.cat([score for score, _ in best], dim=-1) > lowest)
        return torch.cat(chosen, dim=1), torch.cat(exists, dim=1)

    def attend_to_means(self, q: Tensor, k_means: Tensor, v_means: Tensor, held: Tensor) -> Tensor:
        """Attend to the means of all blocks, or if causal of all earlier blocks.

        Args:
            q: (rows, blocks * size, head_dim).
            k_means: (rows, blocks, head_dim), as are `v_means`.
            v_means: Means of the values.
            held: (rows or 1, blocks), bool: blocks that hold a real token.

        Returns:
            (rows, blocks * size, head_dim); zeros for a query that may see no block.
        """
        blocks, held = k_means.shape[1], held.expand(k_means.shape[0], -1)
        dropout, training = self.dims.dropout, self.training
        if not self.dims.causal:
            means = k_means.unsqueeze(1), v_means.unsqueeze(1)
            return attend(q.unsqueeze(1), *means, held, dropout=dropout, training=training).squeeze(1)
        # The t-th tokens of all blocks form a sequence as long as there are blocks, whose token x sees the means before
        # x: with all means moved on by one place, that is ordinary causal attention.
        queries = q.unflatten(1, (blocks, -1)).transpose(1, 2)  # (rows, size, blocks, head_dim)
        k_means, v_means = (
            F.pad(means, (0, 0, 1, -1)).unsqueeze(1).expand(-1, queries.shape[1], -1, -1)
            for means in (k_means, v_means)
        )
        before = F.pad(held, (1, -1), value=False)
        far = attend(queries, k_means, v_means, before, causal=True, dropout=dropout, training=training)
        return far.transpose(1, 2).flatten(1, 2)


def _take_highest(scores: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
    """Return the highest score of each row and its index, (..., 1), and lower it, so that the next call skips it.

    For a few of them this takes half the time of `topk`.
    """
    score, index = scores.max(dim=-1, keepdim=True)
    scores.scatter_(-1, index, lowest)
    return score, index
