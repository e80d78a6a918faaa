# SPDX-License-Identifier: Apache-2.0
"""cosFormer: ReLU features weighted by the cosine of the distance (Qin et al. 2022, arXiv:2202.08791).

The weight of key j for query i is relu(q_i)·relu(k_j) cos(π (i - j) / 2M), which is not negative because the angle
stays below π / 2.

With a = π i / 2M and b = π j / 2M, cos(a - b) = cos a cos b + sin a sin b. The weight is therefore a dot product of the
features [relu(q_i) cos a, relu(q_i) sin a] and [relu(k_j) cos b, relu(k_j) sin b], and the cost is linear in the length
(the paper's cosine-based re-weighting).

Departures from the paper:

- M is the longest length that the model accepts, not the length at hand, so that a sequence gives the same whatever its
  padding and the other sequences of the batch are.
- Prefix tokens such as CLS have the first positions.
- The causal form takes a chunk of tokens at a time.
- The weights are never written out, so they cannot be dropped: dropout acts on the outputs of the heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits
from attention_zoo.kernels.linear_attention import float_features, linear_attention
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@register_variant(
    "cosformer",
    title="cosFormer",
    family="kernel",
    traits=Traits(memory="linear", complexity="O(n d²)", causal=True),
    paper="Qin et al. 2022, arXiv:2202.08791",
)
class Cosformer(SequenceMixer):
    """Attention whose weights are products of ReLU features that fade with the distance, normalised."""

    config: QkvConfig
    angles: Tensor

    def __init__(self, config: QkvConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        # π i / 2M; the buffer is (2, max_length), the cosines and the sines
        angles = torch.arange(dims.max_length, dtype=torch.float64) * (math.pi / (2 * dims.max_length))
        self.register_buffer("angles", torch.stack((angles.cos(), angles.sin())).float(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        heads = linear_attention(self._features(q), self._features(k), v, mask, causal=self.dims.causal)
        return self.projections.merge(self.dropped(heads), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The sum of keys times values, and the normaliser; a key has two features for each of its numbers."""
        return self.dims.num_heads * 2 * self.dims.head_dim * (self.dims.head_dim + 1)

    def _features(self, x: Tensor) -> Tensor:
        """Return (batch, num_heads, length, 2 * head_dim): relu(x) by the cosine and by the sine of its position."""
        positive = float_features(x).relu()  # (batch, num_heads, length, head_dim)
        cos, sin = self.angles[:, : x.shape[2], None].to(positive.dtype)  # each (length, 1)
        return torch.cat((positive * cos, positive * sin), dim=-1)
