"""Linear attention with the feature map elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236).

Departures from the paper:

- Both directions at once in classification; the causal form goes by chunks of tokens in place of one at a time.
- The normaliser has a floor of 1e-6 in place of a term that is added to it.
- There are no weights to drop: dropout falls on what the heads return.
- `rotary` turns queries and keys before the feature map, so that the weights stay positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits
from attention_zoo.kernels.linear_attention import float_features, linear_attention
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig(QkvConfig):
    """Options of linear attention: those of the q-k-v family."""


@register_variant(
    "linear",
    title="Linear attention",
    traits=Traits(memory="linear", complexity="O(n d²)", causal=True, permutation_equivariant=True),
    paper="Katharopoulos et al. 2020, arXiv:2006.16236",
)
class LinearAttention(SequenceMixer):
    """Attention whose weights are φ(q)·φ(k) with φ = elu + 1, normalised over the real keys."""

    config: LinearConfig

    def __init__(self, config: LinearConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        self.check_input(x, mask)
        q, k, v = self.projections.split(x)
        heads = linear_attention(feature_map(q), feature_map(k), v, mask, causal=self.dims.causal)
        return self.projections.merge(F.dropout(heads, self.dims.dropout, self.training), mask)


def feature_map(x: Tensor) -> Tensor:
    """Return elu(x) + 1, which is positive: the paper's equation 7."""
    x = float_features(x)
    return x.relu() + x.clamp_max(0.0).exp()  # not F.elu: compiled, its gradient gets wrong strides
