# SPDX-License-Identifier: Apache-2.0
"""Differential attention (Ye et al. 2024, arXiv:2410.05258): the difference of two softmax maps.

Queries and keys of a head are cut in halves, and each pair of halves makes a map of its own. What both maps have in
common, which the paper takes for noise, cancels (section 2.1):

    head = (1 - λ_init) norm((softmax(q1 k1ᵀ / sqrt(d)) - λ softmax(q2 k2ᵀ / sqrt(d))) v),
    λ = exp(a1·b1) - exp(a2·b2) + λ_init,    λ_init = 0.8 - 0.6 exp(-0.3 layer),

with d half of the head's width, learned vectors a and b that all heads share, a root mean square norm of each head, and
layers that count from 0.

Departures:

- The model says how many heads there are. The paper takes half as many as its baseline has, so that a half is as wide
  as a head of the baseline.
- Dropout of the weights acts on each map alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits
from attention_zoo.kernels.softmax import attend, resolve_backend
from attention_zoo.position_bias import BiasAndBackendConfig, make_bias
from attention_zoo.projections import HeadProjections, Rotary
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferentialConfig(BiasAndBackendConfig):
    """Options of differential attention."""


@register_variant(
    "differential",
    title="Differential attention",
    family="attention",
    traits=Traits(memory="linear", complexity="O(n²)", causal=True, permutation_equivariant=True),
    paper="Ye et al. 2024, arXiv:2410.05258",
)
class DifferentialAttention(SequenceMixer):
    """Attention whose weights are a difference, and so may be negative.

    Raises:
        ValueError: `head_dim` is odd.
    """

    config: DifferentialConfig

    def __init__(self, config: DifferentialConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        if dims.head_dim % 2:
            raise ValueError(f"differential attention needs an even head_dim, got {dims.head_dim}")
        self.projections = HeadProjections(dims)
        self.rotary = Rotary(dims.head_dim // 2, dims.max_length) if config.rotary else None
        self.bias = make_bias(config, dims)  # the same for both maps
        # a1, b1 and a2, b2, (2, 2, head_dim / 2)
        self.contrast = nn.Parameter(0.1 * torch.randn(2, 2, dims.head_dim // 2))
        self.first_share = 0.8 - 0.6 * math.exp(-0.3 * dims.layer)
        self.norm = nn.RMSNorm(dims.head_dim, eps=1e-5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend twice, and subtract; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        # The halves become heads of their own: first all first halves, (batch, 2 num_heads, length, head_dim / 2).
        q, k = (torch.cat(each.chunk(2, dim=-1), dim=1) for each in (q, k))
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        first, second = attend(
            q,
            k,
            torch.cat((v, v), dim=1),
            mask,
            causal=self.dims.causal,
            dropout=self.dims.dropout,
            training=self.training,
            backend=self.config.backend,
            bias=None if self.bias is None else self.bias(x.shape[1], x.shape[1]).repeat(2, 1),
        ).chunk(2, dim=1)
        heads = self.norm((first - self.share().to(first.dtype) * second).to(self.norm.weight.dtype)).to(v.dtype)
        return self.projections.merge((1.0 - self.first_share) * heads, mask)

    def state_size(self, length: int) -> int:
        """Keys and values of all tokens."""
        return self.projections.cache_size(length)

    def share(self) -> Tensor:
        """Compute λ, in float32 at least."""
        contrast = self.contrast.to(torch.promote_types(self.contrast.dtype, torch.float32))
        first, second = contrast.prod(dim=1).sum(dim=-1).exp().unbind()
        return first - second + self.first_share

    def statistics(self) -> dict[str, Tensor]:
        """Return λ."""
        return {"lambda": self.share().detach()}

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend(self.config.backend, device, dropout=self.dims.dropout, biased=self.bias is not None)
