# SPDX-License-Identifier: Apache-2.0
"""Longformer: a sliding window, and a few global tokens (Beltagy, Peters and Cohan 2020, arXiv:2004.05150).

A token attends to itself, to `window // 2` tokens on either side, and to the global tokens; global tokens attend to all
tokens (section 3.1 of the paper).

The tokens in front of the sequence (CLS) are global, and with `num_global` the first tokens of the sequence itself.

Departures from the paper:

- Global attention uses the same projections as the window, so that all variants have the same parameters.
- Every layer has the same window, and there is no dilation.

Long Range Arena's Longformer hides scores in a dense matrix and has no global tokens. Here no tensor of length by
length is made, and a CLS token is global.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention
from attention_zoo.kernels.blocks import neighbours, num_blocks, pad_mask, pad_to_blocks, seen_keys
from attention_zoo.kernels.softmax import attend
from attention_zoo.position_bias import PositionBiasConfig, make_bias
from attention_zoo.projections import HeadProjections
from attention_zoo.registry import register_variant

_BLOCK = 64
"""Largest number of queries, and of keys, in a block. It affects only the speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongformerConfig(PositionBiasConfig):
    """Options of Longformer."""

    window: int = option(512, "tokens in the sliding window, half of them on either side", least=2)
    num_global: int = option(0, "number of leading tokens that are global; prefix tokens (CLS) always are", least=0)

    def resolved(self, dims: LayerDims) -> LongformerConfig:
        """Return the options with the prefix tokens among the global ones."""
        return replace(self, num_global=max(self.num_global, dims.num_prefix))


@register_variant(
    "longformer",
    title="Longformer",
    family="sparse",
    traits=Traits(
        memory="linear",
        complexity="O(n w)",
        exact_limit=lambda length: {"window": 2 * length},
    ),
    paper="Beltagy, Peters and Cohan 2020, arXiv:2004.05150",
)
class Longformer(SequenceMixer):
    """Tokens attend to a window around themselves and to global tokens, in one softmax."""

    config: LongformerConfig

    def __init__(self, config: LongformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.bias = make_bias(config, dims)
        self.num_global = config.resolved(dims).num_global

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        length = x.shape[1]
        q, k, v = self.projections.split(x)
        num_global = min(length, self.num_global)
        dropout = self.dims.dropout if self.training else 0.0
        heads = _window_attention(
            q,
            k,
            v,
            mask,
            radius=min(self.config.window // 2, length),
            num_global=num_global,
            dropout=dropout,
            by_distance=None if self.bias is None else self.bias(length, length),
        )
        if num_global:
            # Global tokens attend to everything: (batch, num_heads, num_global, head_dim), and replace the first rows.
            bias = None if self.bias is None else self.bias(num_global, length)
            glob = attend(q[:, :, :num_global], k, v, mask, dropout=dropout, training=self.training, bias=bias)
            heads = torch.cat((glob, heads[:, :, num_global:]), dim=2)
        return self.projections.merge(heads, mask)

    def state_size(self, length: int) -> int:
        """Keys and values of the window and of the global tokens, and what these have read."""
        num_global = min(length, self.num_global)
        kept = min(length, 2 * (self.config.window // 2) + num_global)
        # A running softmax of a global token: a sum of values and its normaliser in each head
        read = num_global * self.dims.num_heads * (self.dims.head_dim + 1)
        return self.projections.cache_size(kept) + read


def _window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    radius: int,
    num_global: int,
    dropout: float,
    by_distance: Tensor | None,
) -> Tensor:
    """Attend from each token to those at most `radius` away and to the first `num_global` ones.

    Args:
        q: (batch, num_heads, length, head_dim), as are `k`, `v` and the result.
        k: Keys.
        v: Values.
        mask: (batch, length) or None.
        radius: Largest distance at which a token is seen.
        num_global: Leading tokens that all tokens see.
        dropout: Probability of dropping a weight.
        by_distance: Biases of the scores, see `Pattern`.
    """
    length, device = q.shape[2], q.device
    size = min(_BLOCK, max(radius, _BLOCK // 4))  # narrow windows get small blocks: fewer scores that are hidden
    reach = num_blocks(radius, size)  # blocks on either side that the window touches
    index, exists = neighbours(num_blocks(length, size), reach, reach, device)
    beside = pad_mask(mask, length, size, device)  # tokens that may be seen through the window, (batch or 1, length)
    shared, shared_seen = None, None
    if num_global:
        position = torch.arange(index.shape[0] * size, device=device)[None]
        shared = position[:, :num_global]
        shared_seen = None if mask is None else mask[:, :num_global]
        # Global tokens are met as shared keys; the window must not count them a second time.
        beside = position >= num_global if beside is None else beside & (position >= num_global)
    # Key position minus query position within the gathered blocks: (size, (2 * reach + 1) * size)
    offset = torch.arange(-reach * size, (reach + 1) * size, device=device) - torch.arange(size, device=device)[:, None]
    pattern = Pattern(
        index=index[None],
        key_size=size,
        seen=seen_keys(index[None], exists[None], beside, size),
        relative=offset.abs() <= radius,
        shared=shared,
        shared_seen=shared_seen,
        by_distance=by_distance,
    )
    q, k, v = (pad_to_blocks(heads, size) for heads in (q, k, v))
    out, _ = block_sparse_attention(q, k, v, pattern, dropout=dropout)
    return out[:, :, :length]
