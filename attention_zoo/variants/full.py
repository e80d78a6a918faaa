# SPDX-License-Identifier: Apache-2.0
"""Full softmax attention (Vaswani et al. 2017, arXiv:1706.03762): the baseline of the benchmark, in linear memory.

Departures: none. Only the implementation differs, since none but "reference" writes out the matrix of scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits
from attention_zoo.kernels.softmax import attend, resolve_backend
from attention_zoo.position_bias import BiasAndBackendConfig, make_bias
from attention_zoo.projections import HeadProjections
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class FullConfig(BiasAndBackendConfig):
    """Options of full attention."""


@register_variant(
    "full",
    title="Full attention",
    family="attention",
    traits=Traits(memory="linear", complexity="O(n²)", causal=True, permutation_equivariant=True),
    paper="Vaswani et al. 2017, arXiv:1706.03762",
)
class FullAttention(SequenceMixer):
    """Every token attends to every token: softmax(q kᵀ / sqrt(head_dim)) v in each head.

    Time grows with the square of the length; memory does not, because no backend but "reference" keeps the scores.
    """

    config: FullConfig

    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.bias = make_bias(config, dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)  # each (batch, num_heads, length, head_dim)
        heads = attend(
            q,
            k,
            v,
            mask,
            causal=self.dims.causal,
            dropout=self.dims.dropout,
            training=self.training,
            backend=self.config.backend,
            bias=None if self.bias is None else self.bias(x.shape[1], x.shape[1]),
        )
        return self.projections.merge(heads, mask)

    def state_size(self, length: int) -> int:
        """Keys and values of all tokens."""
        return self.projections.cache_size(length)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend(self.config.backend, device, dropout=self.dims.dropout, biased=self.bias is not None)
