# SPDX-License-Identifier: Apache-2.0
"""Sparse Transformer: two factorised patterns, merged (Child et al. 2019, arXiv:1904.10509).

There are two pairs of patterns (section 4 of the paper):

- `fixed`: a token sees its own block of `stride` tokens, and the last `num_summary` tokens of every block.
- `strided`: a token sees the tokens less than `stride` away, and every token at a multiple of `stride` from itself.

Both patterns of a pair go into one softmax, as in Long Range Arena, whose setting (fixed, 50, 10) has the default
sizes.

- `lra`: what the code of Long Range Arena runs, from which its published row comes. It is `fixed` for causal models: a
  token sees itself and the earlier tokens of its block, and the first token and the last `num_summary` tokens of every
  earlier block. Only a CLS token sees all, and is seen by all; blocks are counted behind it.

Departures from the paper:

- `fixed` and `strided` extend to both sides; there is no causal form of them.
- All heads have the same pattern.

Long Range Arena's code writes out a matrix of length by length; no such tensor is made here. With a fixed stride, time
still grows with the square of the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention, merge
from attention_zoo.kernels.blocks import neighbours, num_blocks, pad_mask, pad_to_blocks, seen_keys
from attention_zoo.kernels.softmax import attend
from attention_zoo.position_bias import PositionBiasConfig, make_bias
from attention_zoo.projections import HeadProjections
from attention_zoo.registry import register_variant

_ROWS = 64
"""Number of queries of a column that are taken together. It affects only the speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig(PositionBiasConfig):
    """Options of the Sparse Transformer.

    Raises:
        ValueError: The stride is not positive, `num_summary` is not between 1 and the stride, or the pattern `lra` is
            to have a bias.
    """

    pattern: Literal["fixed", "strided", "lra"] = option(
        "fixed", "which pair of patterns; lra: fixed to the left only, with a CLS token that sees all"
    )
    stride: int = option(50, "tokens in a block (fixed), or distance between the tokens seen (strided); l in the paper")
    num_summary: int = option(
        10, "tokens at the end of each block that all tokens see (not strided); c in the paper", least=1
    )

    def __post_init__(self) -> None:
        """Check the options together."""
        PositionBiasConfig.__post_init__(self)
        if self.num_summary > self.stride:
            raise ValueError(f"num_summary must be at most stride, got {self}")
        if self.pattern == "lra" and self.bias != "none":
            raise ValueError("bias: pattern lra takes none; set pattern=fixed or strided")


@register_variant(
    "sparse",
    title="Sparse Transformer",
    family="sparse",
    traits=Traits(memory="linear", complexity="O(n (l + n c / l))", exact_limit=lambda length: {"stride": length + 10}),
    paper="Child et al. 2019, arXiv:1904.10509",
)
class SparseTransformer(SequenceMixer):
    """Tokens attend to near tokens and to a regular selection of the rest, in one softmax."""

    config: SparseConfig

    def __init__(self, config: SparseConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.bias = make_bias(config, dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        if self.config.pattern == "lra":
            return self.projections.merge(self._left_only(*self.projections.split(x), mask), mask)
        length, stride = x.shape[1], self.config.stride
        real = pad_mask(mask, length, stride, x.device)
        q, k, v = (pad_to_blocks(heads, stride) for heads in self.projections.split(x))
        dropout = self.dims.dropout if self.training else 0.0
        bias = None if self.bias is None else self.bias(length, length)
        if self.config.pattern == "fixed":
            heads = _fixed(
                q, k, v, real, stride=stride, num_summary=self.config.num_summary, dropout=dropout, by_distance=bias
            )
        else:
            near = _near(q, k, v, real, stride=stride, dropout=dropout, by_distance=bias)
            if self.bias is not None:  # neighbours in a column are a stride apart
                rows = num_blocks(length, stride)
                bias = self.bias(rows, rows, stride=stride)
            heads, _ = merge([near, _columns(q, k, v, real, stride=stride, dropout=dropout, by_distance=bias)])
        return self.projections.merge(heads[:, :, :length], mask)

    def state_size(self, length: int) -> int:
        """Keys and values of a block and of all summary tokens (strided: of all tokens)."""
        stride, summary = self.config.stride, self.config.num_summary
        if self.config.pattern == "strided":
            return self.projections.cache_size(length)
        if self.config.pattern == "lra":  # the first token of a block is a summary token, too
            summary = min(stride, summary + 1)
        return self.projections.cache_size(min(length, stride + length // stride * summary))

    def _left_only(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend under the pattern of Long Range Arena; tensors are (batch, num_heads, length, head_dim)."""
        first, dropout = min(self.dims.num_prefix, q.shape[2]), self.dims.dropout if self.training else 0.0
        parts = []
        if first:
            # Prefix tokens see all tokens, and all others see them.
            parts = [attend(q[:, :, :first], k, v, mask, dropout=dropout, training=self.training)]
        if first < q.shape[2]:
            stride, num_summary = self.config.stride, self.config.num_summary
            parts.append(_left(q, k, v, mask, first=first, stride=stride, num_summary=num_summary, dropout=dropout))
        return torch.cat(parts, dim=2)


def _left(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    first: int,
    stride: int,
    num_summary: int,
    dropout: float,
) -> Tensor:
    """Attend from the tokens behind the prefix to the prefix, to what is left of them in their block, and to summaries.

    Args:
        q: (batch, num_heads, length, head_dim), as are `k` and `v`.
        k: Keys.
        v: Values.
        mask: (batch, length) or None.
        first: Prefix tokens.
        stride: Tokens in a block.
        num_summary: Summary tokens at the end of a block, beside its first token.
        dropout: Probability of dropping a weight.

    Returns:
        (batch, num_heads, length - first, head_dim).
    """
    device, length = q.device, q.shape[2] - first
    real = pad_mask(None if mask is None else mask[:, first:], length, stride, device)
    q, own_k, own_v = (pad_to_blocks(x[:, :, first:], stride) for x in (q, k, v))
    blocks = q.shape[2] // stride
    index, exists = neighbours(blocks, 0, 0, device)
    # The prefix stands behind the blocks of keys, in blocks of its own, and is met as shared keys.
    shared = torch.arange(q.shape[2], q.shape[2] + first, device=device)[None] if first else None
    k, v = (pad_to_blocks(torch.cat((own, x[:, :, :first]), dim=2), stride) for own, x in ((own_k, k), (own_v, v)))
    near = Pattern(
        index=index[None],
        key_size=stride,
        seen=None if real is None else seen_keys(index[None], exists[None], real, stride),
        relative=torch.ones(stride, stride, dtype=torch.bool, device=device).tril(),
        shared=shared,
        shared_seen=None if mask is None or not first else mask[:, :first],
    )
    found = [block_sparse_attention(q, k, v, near, dropout=dropout)]
    # The summary tokens of a block are a block of keys: its first token and the last ones, which may overlap.
    place = torch.arange(stride, device=device)
    size = int(min(stride, num_summary + 1))
    summary = torch.cat((place[:1], place[stride - size + 1 :]))
    each_k, each_v = (x.unflatten(2, (blocks, stride))[:, :, :, summary].flatten(2, 3) for x in (own_k, own_v))
    every = torch.arange(blocks, device=device).expand(1, blocks, blocks)
    earlier = every < every.transpose(1, 2)  # (1, query blocks, key blocks)
    seen = None if real is None else real.unflatten(1, (blocks, stride))[:, :, summary].flatten(1)
    far = Pattern(index=every, key_size=size, seen=seen_keys(every, earlier, seen, size))
    found.append(block_sparse_attention(q, each_k, each_v, far, dropout=dropout))
    return merge(found)[0][:, :, :length]


def _fixed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    real: Tensor | None,
    *,
    stride: int,
    num_summary: int,
    dropout: float,
    by_distance: Tensor | None,
) -> Tensor:
    """Attend to the own block and to the summary tokens of all blocks.

    Args:
        q: (batch, num_heads, blocks * stride, head_dim), as are `k`, `v` and the result.
        k: Keys.
        v: Values.
        real: (batch or 1, blocks * stride) or None.
        stride: Tokens in a block.
        num_summary: Summary tokens of a block.
        dropout: Probability of dropping a weight.
        by_distance: Biases of the scores, see `Pattern`.
    """
    length, device = q.shape[2], q.device
    position = torch.arange(length, device=device)
    # Summary tokens are shared keys, (1, blocks * num_summary); within the own block they must not count again.
    ordinary = (position % stride < stride - num_summary)[None]
    shared = position.view(-1, stride)[:, stride - num_summary :].reshape(1, -1)
    index, exists = neighbours(length // stride, 0, 0, device)
    pattern = Pattern(
        index=index[None],
        key_size=stride,
        seen=seen_keys(index[None], exists[None], ordinary if real is None else ordinary & real, stride),
        shared=shared,
        shared_seen=None if real is None else real.gather(1, shared.expand(real.shape[0], -1)),
        by_distance=by_distance,
    )
    return block_sparse_attention(q, k, v, pattern, dropout=dropout)[0]


def _near(
    q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, *, stride: int, dropout: float, by_distance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend to the tokens less than `stride` away, without the token itself, which `_columns` takes.

    Arguments are as for `_fixed`; the log-sum-exp of the scores is returned too.
    """
    device = q.device
    index, exists = neighbours(q.shape[2] // stride, 1, 1, device)
    # Key position minus query position, (stride, 3 * stride): a block of `stride` queries and three blocks of keys
    offset = torch.arange(-stride, 2 * stride, device=device) - torch.arange(stride, device=device)[:, None]
    pattern = Pattern(
        index=index[None],
        key_size=stride,
        seen=seen_keys(index[None], exists[None], real, stride),
        relative=(offset.abs() < stride) & (offset != 0),
        by_distance=by_distance,
    )
    return block_sparse_attention(q, k, v, pattern, dropout=dropout)


def _columns(
    q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, *, stride: int, dropout: float, by_distance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend to the tokens at distances that are multiples of `stride`, with the token itself.

    Written in rows of `stride` tokens, the sequence is a matrix, and these tokens are a column of it. With the columns
    one behind the other, a token attends to its own block. Arguments are as for `_fixed`; the log-sum-exp of the scores
    is returned too.
    """
    rows, device = q.shape[2] // stride, q.device
    # A column is one block of keys, and several blocks of `size` queries, which all meet it.
    size = min(_ROWS, rows)
    padded = num_blocks(rows, size) * size

    def columns(x: Tensor) -> Tensor:
        """Transpose (batch, heads, rows * stride, features) to (batch, heads, stride * padded, features)."""
        return F.pad(x.unflatten(2, (rows, stride)).transpose(2, 3), (0, 0, 0, padded - rows)).flatten(2, 3)

    if real is not None or padded > rows:
        real = torch.ones(1, rows * stride, dtype=torch.bool, device=device) if real is None else real
        real = columns(real[:, None, :, None]).flatten(1)
    # (1, query blocks, 1): the column of each block of queries
    index = torch.arange(stride, device=device).repeat_interleave(padded // size)[None, :, None]
    seen = seen_keys(index, torch.ones_like(index, dtype=torch.bool), real, padded)
    pattern = Pattern(index=index, key_size=padded, seen=None if real is None else seen, by_distance=by_distance)
    out, log_sum = block_sparse_attention(columns(q), columns(k), columns(v), pattern, dropout=dropout)
    # Back to rows, without the padding of the columns
    out = out.unflatten(2, (stride, padded))[:, :, :, :rows].transpose(2, 3).flatten(2, 3)
    return out, log_sum.unflatten(2, (stride, padded))[..., :rows].transpose(2, 3).flatten(2, 3)
