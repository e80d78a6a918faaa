# SPDX-License-Identifier: Apache-2.0
"""Local attention: blocks of tokens that attend within themselves.

This is the row "Local Attention" of Long Range Arena (Tay et al. 2021, arXiv:2011.04006). As there, no token sees
beyond its block, and a CLS token is one more token of the first block. With `look_around` a block also sees the blocks
beside it, as most libraries have it.

Departures:

- The benchmark's own code interleaves the blocks: of m blocks, token i attends to the tokens that equal i modulo m. The
  published numbers come from that, and `layout="strided"` does it; then the padded length decides who meets whom.
- The last block may be shorter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.blocks import (
    fold_blocks,
    neighbours,
    num_blocks,
    pad_mask,
    pad_to_blocks,
    seen_keys,
    unfold_blocks,
)
from attention_zoo.kernels.softmax import attend, resolve_backend
from attention_zoo.position_bias import BiasAndBackendConfig, make_bias
from attention_zoo.projections import HeadProjections
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalConfig(BiasAndBackendConfig):
    """Options of local attention.

    Raises:
        ValueError: A number is out of range, or strided blocks are to look around.
    """

    window: int = option(50, "tokens in a block", least=1)
    look_around: int = option(0, "blocks before and after its own that a block sees, too", least=0)
    layout: Literal["blocks", "strided"] = option(
        "blocks", "blocks of neighbours, or interleaved ones as in the benchmark's own code"
    )

    def __post_init__(self) -> None:
        """Check the options together."""
        BiasAndBackendConfig.__post_init__(self)
        if self.look_around and self.layout == "strided":
            raise ValueError("look_around: strided blocks have no neighbours; set layout=blocks")


@register_variant(
    "local",
    title="Local attention",
    family="sparse",
    traits=Traits(memory="linear", complexity="O(n w)", exact_limit=lambda length: {"window": length}),
    paper="Tay et al. 2021, arXiv:2011.04006",
)
class LocalAttention(SequenceMixer):
    """Every token attends to the tokens of its own block of `window` tokens."""

    config: LocalConfig

    def __init__(self, config: LocalConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.bias = make_bias(config, dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        batch, length, _ = x.shape
        size = min(self.config.window, length)
        blocks = num_blocks(length, size)
        q, k, v = (pad_to_blocks(heads, size) for heads in self.projections.split(x))
        real = pad_mask(mask, length, size, x.device)
        if self.config.layout == "strided":
            # The order 0, m, 2 m, .., 1, m + 1, .. of m blocks puts the tokens of each one side by side.
            q, k, v = (_transposed(heads, 2, size, blocks) for heads in (q, k, v))
            real = None if real is None else _transposed(real, 1, size, blocks)
        # Blocks become sequences of their own: (batch * blocks, num_heads, size, head_dim)
        q, k, v = (fold_blocks(heads, size) for heads in (q, k, v))
        before, stride = 0, blocks if self.config.layout == "strided" else 1
        if self.config.look_around:
            before = min(self.config.look_around, blocks - 1)
            index, exists = neighbours(blocks, before, before, x.device)
            k, v = (_beside(heads, index, batch) for heads in (k, v))
            # (batch * blocks, keys)
            real = seen_keys(index[None], exists[None], real, size).expand(batch, -1, -1).flatten(0, 1)
        elif real is not None:
            real = real.expand(batch, -1).reshape(batch * blocks, size)
        heads = attend(
            q,
            k,
            v,
            real,
            dropout=self.dims.dropout,
            training=self.training,
            backend=self.config.backend,
            bias=None if self.bias is None else self.bias(size, k.shape[2], shift=-before * size, stride=stride),
        )
        if self.config.layout == "strided":
            heads = _transposed(unfold_blocks(heads, batch, blocks * size), 2, blocks, size)[:, :, :length]
        else:
            heads = unfold_blocks(heads, batch, length)
        return self.projections.merge(heads, mask)

    def state_size(self, length: int) -> int:
        """Keys and values of one block and those it looks at; strided blocks hold tokens from everywhere."""
        seen = length if self.config.layout == "strided" else (2 * self.config.look_around + 1) * self.config.window
        return self.projections.cache_size(min(length, seen))

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend(self.config.backend, device, dropout=self.dims.dropout, biased=self.bias is not None)


def _transposed(x: Tensor, axis: int, rows: int, columns: int) -> Tensor:
    """Read an axis of rows * columns entries as a matrix, and transpose it."""
    return x.unflatten(axis, (rows, columns)).transpose(axis, axis + 1).flatten(axis, axis + 1)


def _beside(x: Tensor, index: Tensor, batch: int) -> Tensor:
    """Put the tokens of other blocks beside each other: (batch * blocks, num_heads, slots * size, head_dim).

    Args:
        x: (batch * blocks, num_heads, size, head_dim).
        index: (blocks, slots), int64.
        batch: Number of sequences.
    """
    # Indexing would add up the gradients of a block in an order that threads decide.
    x = x.unflatten(0, (batch, -1)).index_select(1, index.flatten())
    x = x.unflatten(1, index.shape)  # (batch, blocks, slots, num_heads, size, head_dim)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 1)
