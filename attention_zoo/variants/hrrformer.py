# SPDX-License-Identifier: Apache-2.0
"""Hrrformer (Alam et al. 2023, arXiv:2305.19534): keys and values bound into one vector, which the queries unbind.

In holographic reduced representations, binding two vectors is their circular convolution ⊛. All pairs of a head are
bound and added up, each query takes out an estimate of a value, and the cosine between it and the token's own value
decides, by a softmax over the sequence, how much of that value the token passes on (section 3):

    b = Σ_j k_j ⊛ v_j,    e_i = q_i† ⊛ b,    out_i = softmax_i(cos(v_i, e_i)) v_i.

So a token never reads another one's value: it sees the others in its weight alone. Binding is a product of Fourier
transforms over the features of a head, and the cost is linear in the length.

Departures:

- † is the approximate inverse, which reverses the features and whose transform is the complex conjugate. The paper
  writes the exact inverse, one over the transform; the authors' code has the approximate one, which divides by nothing.
- Dropout acts on the outputs of the heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig
from attention_zoo.kernels.linear_attention import float_features
from attention_zoo.masking import masked_softmax
from attention_zoo.projections import HeadProjections
from attention_zoo.registry import register_variant


@register_variant(
    "hrrformer",
    title="Hrrformer",
    family="kernel",
    traits=Traits(memory="linear", complexity="O(n log d)", permutation_equivariant=True),
    paper="Alam et al. 2023, arXiv:2305.19534",
)
class Hrrformer(SequenceMixer):
    """Every token weighs its own value by how well its query finds it in the sum of all bound pairs.

    Transforms, sums and weights are computed in float32 (float64 for float64 inputs), under autocast too.
    """

    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Bind, unbind and weigh; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)  # each (batch, num_heads, length, head_dim)
        with torch.autocast(x.device.type, enabled=False):
            q, k, values = (float_features(each) for each in (q, k, v))
            if mask is not None:
                k = k.masked_fill(~mask[:, None, :, None], 0.0)
            # (batch, num_heads, 1, head_dim / 2 + 1), complex
            bound = (torch.fft.rfft(k) * torch.fft.rfft(values)).sum(dim=2, keepdim=True)
            found = torch.fft.irfft(torch.fft.rfft(q).conj() * bound, n=values.shape[-1])
            match = F.cosine_similarity(values, found, dim=-1)  # (batch, num_heads, length)
            weight = masked_softmax(match, None if mask is None else mask[:, None, :])
            heads = (weight[..., None] * values).to(v.dtype)
        return self.projections.merge(self.dropped(heads), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The sum of bound pairs, and the normaliser of the weights, in each head."""
        return self.dims.num_heads * (self.dims.head_dim + 1)
