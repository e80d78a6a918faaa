# SPDX-License-Identifier: Apache-2.0
"""Linear attention with the feature map elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236).

Departures from the paper:

- The causal form takes a chunk of tokens at a time, not one token.
- The normaliser has a floor of 1e-6; the authors' code adds a small term to it.
- The weights are never written out, so they cannot be dropped: dropout acts on the outputs of the heads.
- `rotary` rotates queries and keys before the feature map, so that the weights stay positive.
"""

from __future__ import annotations

from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits
from attention_zoo.kernels.linear_attention import float_features, linear_attention
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@register_variant(
    "linear",
    title="Linear attention",
    family="kernel",
    traits=Traits(memory="linear", complexity="O(n d²)", causal=True, permutation_equivariant=True),
    paper="Katharopoulos et al. 2020, arXiv:2006.16236",
)
class LinearAttention(SequenceMixer):
    """Attention whose weights are φ(q)·φ(k) with φ = elu + 1, normalised over the real keys."""

    config: QkvConfig

    def __init__(self, config: QkvConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        # φ(q) and φ(k) are (batch, num_heads, length, head_dim): as many features as a head is wide.
        heads = linear_attention(feature_map(q), feature_map(k), v, mask, causal=self.dims.causal)
        return self.projections.merge(self.dropped(heads), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The sum of keys times values, and the normaliser, in each head."""
        return self.dims.num_heads * self.dims.head_dim * (self.dims.head_dim + 1)


def feature_map(x: Tensor) -> Tensor:
    """Return elu(x) + 1, which is positive everywhere (the paper's equation 7)."""
    x = float_features(x)
    # x + 1 above 0 and exp(x) below. F.elu would do the same, but under torch.compile its gradient gets wrong strides.
    return x.relu() + x.clamp_max(0.0).exp()
