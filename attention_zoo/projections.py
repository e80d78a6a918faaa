# SPDX-License-Identifier: Apache-2.0
"""Query, key, value and output projections of the variants that have queries, keys and values.

All these variants share one module, so they have the same sizes and the same initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, VariantConfig, option
from attention_zoo.masking import zero_masked


@dataclass(frozen=True, kw_only=True, slots=True)
class QkvConfig(VariantConfig):
    """Options that every variant with queries, keys and values has."""

    rotary: bool = option(False, "rotate queries and keys by their position (RoPE, arXiv:2104.09864)")


class HeadProjections(nn.Module):
    """Linear maps from the stream into heads and back, with Xavier uniform weights and zero biases."""

    def __init__(self, dims: LayerDims, *, rotary: bool = False) -> None:
        super().__init__()
        width = dims.num_heads * dims.head_dim
        self.num_heads, self.head_dim = dims.num_heads, dims.head_dim
        self.query = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
        self.key = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
        self.value = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
        self.out = nn.Linear(width, dims.dim, bias=dims.qkv_bias)
        initialise(self.query, self.key, self.value, self.out)
        self.rotary = Rotary(dims.head_dim, dims.max_length) if rotary else None

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project (batch, length, dim) to q, k, v, each (batch, num_heads, length, head_dim)."""
        q, k, v = (self.to_heads(linear(x)) for linear in (self.query, self.key, self.value))
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        return q, k, v

    def to_heads(self, x: Tensor) -> Tensor:
        """Reshape (batch, length, num_heads * head_dim) to (batch, num_heads, length, head_dim)."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def merge(self, heads: Tensor, mask: Tensor | None) -> Tensor:
        """Project (batch, num_heads, length, head_dim) back to (batch, length, dim), zero where masked."""
        return zero_masked(self.out(heads.transpose(1, 2).flatten(2)), mask)

    def cache_size(self, tokens: int) -> int:
        """Count the numbers in the keys and values of so many tokens."""
        return 2 * tokens * self.num_heads * self.head_dim


def initialise(*linears: nn.Linear) -> None:
    """Draw Xavier uniform weights for each linear map, and set its bias, if it has one, to zero."""
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


class Rotary(nn.Module):
    """Rotary position embedding (RoPE; Su et al. 2021, arXiv:2104.09864).

    Features i and i + head_dim / 2 form a pair, which is rotated by the angle position / 10000^(2 i / head_dim). The
    dot product of a rotated query and a rotated key depends on their positions only through the distance.

    Raises:
        ValueError: `head_dim` is odd.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_length: int) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
        # One frequency for each pair, (head_dim / 2,), and one angle for each position and pair. Tables are computed in
        # float64: at position 10,000 a float32 angle would be wrong in the fourth digit.
        frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = torch.arange(max_length, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (batch, num_heads, length, head_dim), the first token being position 0."""
        cos, sin = (table[: x.shape[2]].to(x.dtype) for table in (self.cos, self.sin))  # (length, head_dim / 2)
        # The paper pairs neighbouring features (2 i, 2 i + 1); pairing the two halves is the same up to the order of
        # the features, and needs no interleaved reads.
        first, second = x.chunk(2, dim=-1)  # (batch, num_heads, length, head_dim / 2)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
