"""cosFormer: ReLU features weighted by the cosine of the distance (Qin et al. 2022, arXiv:2202.08791).

The weight of key j for query i is relu(q_i)·relu(k_j) cos(π (i - j) / 2M), which splits into a product of features by
the cosine of a difference.

Departures from the paper:

- M is the longest length that the model accepts, not the length at hand, so that neither padding nor the sequences
  beside it change what a sequence gives.
- Prefix tokens such as CLS take part as the first positions.
- The causal form goes by chunks of tokens.
- There are no weights to drop: dropout falls on what the heads return.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits
from attention_zoo.kernels.linear_attention import float_features, linear_attention
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class CosformerConfig(QkvConfig):
    """Options of cosFormer: those of the q-k-v family."""


@register_variant(
    "cosformer",
    title="cosFormer",
    traits=Traits(memory="linear", complexity="O(n d²)", causal=True),
    paper="Qin et al. 2022, arXiv:2202.08791",
)
class Cosformer(SequenceMixer):
    """Attention whose weights are products of ReLU features that fade with the distance, normalised."""

    config: CosformerConfig
    angles: Tensor

    def __init__(self, config: CosformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        angles = torch.arange(dims.max_length, dtype=torch.float64) * (math.pi / (2 * dims.max_length))
        self.register_buffer("angles", torch.stack((angles.cos(), angles.sin())).float(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        self.check_input(x, mask)
        q, k, v = self.projections.split(x)
        heads = linear_attention(self._features(q), self._features(k), v, mask, causal=self.dims.causal)
        return self.projections.merge(F.dropout(heads, self.dims.dropout, self.training), mask)

    def _features(self, x: Tensor) -> Tensor:
        """Return (batch, num_heads, length, 2 * head_dim): relu(x) by the cosine and by the sine of its position."""
        positive = float_features(x).relu()
        cos, sin = self.angles[:, : x.shape[2], None].to(positive.dtype)
        return torch.cat((positive * cos, positive * sin), dim=-1)
