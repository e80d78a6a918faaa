# SPDX-License-Identifier: Apache-2.0
"""Luna: attention packed into a short learned sequence and unpacked again (Ma et al. 2021, arXiv:2106.01540).

Two steps of attention replace one (the paper's pack and unpack attention):

    packed = attention(p, x, x): the `num_memory` learned vectors p attend to the tokens;
    output = attention(x, packed, packed): the tokens attend to what the vectors found.

Either step is between all tokens and a fixed number of vectors, so the cost is linear in the length.

Departures from the paper:

- The packed sequence is not handed on from layer to layer, because a mixer has no output for it. Every layer learns its
  own p, without a norm and a residual.
- p is learned head by head as the queries of the first step. In the paper a projection makes them from p.
- Both steps use softmax, and there is no causal form.

The second step needs keys and values of its own, so Luna has two square matrices more than full attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.softmax import attend, resolve_backend
from attention_zoo.projections import HeadProjections, QkvConfig, initialise
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class LunaConfig(QkvConfig):
    """Options of Luna."""

    num_memory: int = option(
        256, "vectors that the tokens are packed into; the paper has results for 16, 128 and 256", least=1
    )


@register_variant(
    "luna",
    title="Luna",
    family="low rank",
    traits=Traits(memory="linear", complexity="O(n l), l the vectors", permutation_equivariant=True),
    paper="Ma et al. 2021, arXiv:2106.01540",
)
class Luna(SequenceMixer):
    """Two steps of softmax attention, each between the tokens and a fixed number of learned vectors."""

    config: LunaConfig

    def __init__(self, config: LunaConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        # p, as queries: (num_heads, num_memory, head_dim)
        self.memory = nn.Parameter(torch.randn(dims.num_heads, config.num_memory, dims.head_dim))
        width = dims.num_heads * dims.head_dim
        self.unpack_key = nn.Linear(width, width, bias=dims.qkv_bias)
        self.unpack_value = nn.Linear(width, width, bias=dims.qkv_bias)
        initialise(self.unpack_key, self.unpack_value)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        dropout, training = self.dims.dropout, self.training
        memory = self.memory.to(k.dtype).expand(len(x), -1, -1, -1)
        # Pack: heads side by side again, (batch, num_memory, num_heads * head_dim)
        packed = attend(memory, k, v, mask, dropout=dropout, training=training).transpose(1, 2).flatten(2)
        keys, values = (self.projections.to_heads(linear(packed)) for linear in (self.unpack_key, self.unpack_value))
        # Unpack: keys and values of the packed vectors, (batch, num_heads, num_memory, head_dim); none is masked.
        return self.projections.merge(attend(q, keys, values, dropout=dropout, training=training), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """What each memory vector has read in each head: a sum of values and its normaliser."""
        return self.config.num_memory * self.dims.num_heads * (self.dims.head_dim + 1)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend("auto", device, dropout=self.dims.dropout)
