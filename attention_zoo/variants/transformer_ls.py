# SPDX-License-Identifier: Apache-2.0
"""Long-short Transformer: a window, and the whole sequence in a few learned summaries (Zhu et al. 2021).

arXiv:2107.02192. Tokens attend to their segment and half a segment on either side (short range), and to `rank`
summaries of the sequence (long range), in one softmax over both. A summary is an average of all keys, and the same
average of all values, with weights P = softmax(K W) over the tokens that the keys themselves decide (dynamic
projection).

Two layer norms, one for the window and one for the summaries, bring both to the same scale (DualLN).

`summaries="input"` is the authors' code for Long Range Arena: the weights come from the input of the layer, with a
bias, P = softmax(x W + b), and keys and values are normalised before they are averaged, and again after it. In 500
steps of quick ListOps (seed 0, noise of the test set 2.2 points) it reached 42.6 %, and the paper's form 39.7 %.

Departures from the paper:

- Masked tokens have no weight in a summary.
- With rotary positions, the summaries are of rotated keys.
- A CLS token is a token like any other. In the authors' code it is one more summary, and reads the results of the
  others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention
from attention_zoo.kernels.blocks import neighbours, pad_mask, pad_to_blocks, seen_keys
from attention_zoo.masking import masked_softmax
from attention_zoo.projections import HeadProjections, QkvConfig, initialise
from attention_zoo.registry import register_variant

_QUERIES = 64
"""Smallest number of queries that are taken together, in whole segments. It affects only the speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerLsConfig(QkvConfig):
    """Options of the Long-short Transformer."""

    window: int = option(
        8, "tokens in a segment, even; half a segment on either side is seen too", least=2, parity="even"
    )
    rank: int = option(32, "number of summaries of the sequence in each head (r in the paper)", least=1)
    summaries: Literal["keys", "input"] = option(
        "keys", "keys: weights from the keys, as in the paper; input: from the layer's input, as in the authors' code"
    )


@register_variant(
    "transformer_ls",
    title="Transformer-LS",
    family="low rank",
    traits=Traits(memory="linear", complexity="O(n (w + r))"),
    paper="Zhu et al. 2021, arXiv:2107.02192",
)
class TransformerLs(SequenceMixer):
    """Tokens attend to near tokens one by one, and to summaries of the whole sequence."""

    config: TransformerLsConfig

    def __init__(self, config: TransformerLsConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        width = dims.num_heads * dims.head_dim
        self.projections = HeadProjections(dims, rotary=config.rotary)
        from_input = config.summaries == "input"
        self.summary = nn.Linear(dims.dim if from_input else width, dims.num_heads * config.rank, bias=from_input)
        initialise(self.summary)
        self.norm_local = nn.LayerNorm(width)
        self.norm_global = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        length, window = x.shape[1], self.config.window
        q, k, v = self.projections.split(x)
        from_input = self.config.summaries == "input"
        weights = self._summary_weights(x if from_input else _together(k), mask)
        near_k, near_v = self._normalise(k, self.norm_local), self._normalise(v, self.norm_local)
        # Summaries of the keys and of the values, each (batch, num_heads, rank, head_dim)
        averaged = (near_k, near_v) if from_input else (k, v)
        summaries = [self._normalise(weights @ heads, self.norm_global) for heads in averaged]
        # A block of queries is several segments, so the blocks beside it hold all of its windows.
        size = window * -(-_QUERIES // window)
        q, *near = (pad_to_blocks(heads, size) for heads in (q, near_k, near_v))
        index, exists = neighbours(q.shape[2] // size, 1, 1, x.device)
        # Key position minus the start of the query's segment, (size, 3 * size)
        segment = torch.arange(size, device=x.device)[:, None] // window * window
        offset = torch.arange(-size, 2 * size, device=x.device) - segment
        pattern = Pattern(
            index=index[None],
            key_size=size,
            seen=seen_keys(index[None], exists[None], pad_mask(mask, length, size, x.device), size),
            relative=(offset >= -(window // 2)) & (offset < window + window // 2),
            shared=torch.arange(q.shape[2], q.shape[2] + self.config.rank, device=x.device)[None],
        )
        # The kernel takes one tensor of keys: the summaries stand behind the sequence, and `shared` names their places.
        k, v = (pad_to_blocks(torch.cat(pair, dim=2), size) for pair in zip(near, summaries, strict=True))
        dropout = self.dims.dropout if self.training else 0.0
        heads, _ = block_sparse_attention(q, k, v, pattern, dropout=dropout)
        return self.projections.merge(heads[:, :, :length], mask)

    def state_size(self, length: int) -> int:
        """Keys and values of a segment and half a segment on either side, and the sums behind the summaries."""
        # A summary is a running softmax: a key, a value and a normaliser in each head
        summaries = self.config.rank * self.dims.num_heads * (2 * self.dims.head_dim + 1)
        return self.projections.cache_size(min(length, 2 * self.config.window)) + summaries

    def _summary_weights(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weights of the tokens in each summary, (batch, num_heads, rank, length); rows sum to 1."""
        scores = self.summary(tokens).unflatten(2, (self.dims.num_heads, self.config.rank)).permute(0, 2, 3, 1)
        return masked_softmax(scores, None if mask is None else mask[:, None, None])

    def _normalise(self, heads: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Normalise (batch, num_heads, length, head_dim) over all heads of a token."""
        return self.projections.to_heads(norm(_together(heads)))


def _together(heads: Tensor) -> Tensor:
    """Put heads side by side: (batch, length, num_heads * head_dim)."""
    return heads.transpose(1, 2).flatten(2)
