# SPDX-License-Identifier: Apache-2.0
"""LION: bidirectional linear attention without decay, with a fixed one or a selective one (Afzal et al. 2025).

arXiv:2502.16249. The weight of token j for token i is a product of features and of the decays between the two,

    out_i = Σ_j w_ij (φ(q_i)·φ(k_j)) v_j / Σ_j w_ij (φ(q_i)·φ(k_j)),    φ(x) = (silu(x) + 1/2) / |silu(x) + 1/2|,

with w_ij = λ_{j+1} ... λ_i for j <= i and λ_i ... λ_{j-1} for j > i. Causal models leave out j > i.

- `decay="none"`: λ = 1. This is `linear` with another feature map.
- `decay="fixed"`: one λ for each head, as in RetNet (Sun et al. 2023, arXiv:2307.08621), whose values 1 - 2^(-5 - head)
  it starts from. They are learned, as in the paper.
- `decay="selective"`: each token decides for each head, λ = exp(-rate softplus(u·x + b)), as in Mamba-2 (Dao and Gu
  2024, arXiv:2405.21060). The paper's gate, sigmoid(u·x + b), is the case rate = 1 with the opposite sign inside.

`backend="reference"` is the attention form, which writes out all weights; `chunked` takes linear time.

Departures:

- The rates and the biases of the selective gate start as in Mamba-2: rates evenly from 1 to 16, and softplus(b) from
  0.001 to 0.1 on a logarithmic scale, both at random. What a token writes is not scaled by its step; in Mamba-2 it is.
- Masked tokens have no weight and do not decay: the distance between two tokens counts the real ones between them.
- The normaliser has a floor of 1e-6.
- Dropout acts on the outputs of the heads, not on the weights, which are never written out in linear time.
- `rotary` rotates queries and keys before the feature map, so that the weights stay positive.

`gated_linear` is no setting of this variant: it has no feature map and no normaliser, gates of its own for each
direction, narrow keys, and a norm and a gate behind each head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.decayed_attention import decay_weights, decayed_attention
from attention_zoo.kernels.linear_attention import SMALLEST, float_features, linear_attention
from attention_zoo.masking import zero_masked
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant
from attention_zoo.selective_decay import SelectiveDecay


@dataclass(frozen=True, kw_only=True, slots=True)
class LionConfig(QkvConfig):
    """Options of LION."""

    decay: Literal["none", "fixed", "selective"] = option(
        "selective", "how weights decay with the distance: not, by a factor of the head, or by one of each token"
    )
    chunk: int = option(64, "tokens that meet directly, without the state; affects speed but not results", least=1)
    backend: Literal["chunked", "reference"] = option("chunked", "linear time, or all weights written out")


@register_variant(
    "lion",
    title="LION",
    family="gated recurrence",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Afzal et al. 2025, arXiv:2502.16249; decays of arXiv:2307.08621 and arXiv:2405.21060",
)
class Lion(SequenceMixer):
    """Normalised linear attention, times what the decays of the tokens in between leave.

    Features, decays and sums are computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: LionConfig

    def __init__(self, config: LionConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        if config.decay == "fixed":
            # sigmoid(log(2^(5 + head) - 1)) = 1 - 2^(-5 - head)
            exponents = 5.0 + torch.arange(dims.num_heads, dtype=torch.float64)
            self.fixed = nn.Parameter((2.0**exponents - 1.0).log().float())  # (num_heads,)
        elif config.decay == "selective":
            self.decay = SelectiveDecay(dims.dim, dims.num_heads)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        q, k, causal = feature_map(q), feature_map(k), self.dims.causal  # (batch, num_heads, length, head_dim)
        if self.config.decay == "none" and self.config.backend == "chunked":
            heads = linear_attention(q, k, v, mask, causal=causal)
        else:
            log_decay = zero_masked(self.log_decay(x), mask).transpose(1, 2)  # (batch, num_heads, length)
            future = None if causal else log_decay
            if mask is not None:
                k = k.masked_fill(~mask[:, None, :, None], 0.0)
            # A column of ones behind the values makes the normaliser one more column of the sums.
            values = F.pad(float_features(v), (0, 1), value=1.0)
            with torch.autocast(x.device.type, enabled=False):
                if self.config.backend == "reference":
                    sums = (q @ k.transpose(-2, -1) * decay_weights(log_decay, future)) @ values
                else:
                    sums = decayed_attention(q, k, values, log_decay, future, chunk=self.config.chunk)
            heads = (sums[..., :-1] / sums[..., -1:].clamp_min(SMALLEST)).to(v.dtype)
        return self.projections.merge(self.dropped(heads), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The sum of keys times values, and the normaliser, of each direction; without decay both are one."""
        directions = 1 if self.dims.causal or self.config.decay == "none" else 2
        return directions * self.dims.num_heads * self.dims.head_dim * (self.dims.head_dim + 1)

    def log_decay(self, x: Tensor) -> Tensor:
        """Compute log λ of each token, (batch, length, num_heads), in float32 at least."""
        if self.config.decay == "selective":
            decay: Tensor = self.decay(x)
            return decay
        shape = (*x.shape[:2], self.dims.num_heads)
        if self.config.decay == "fixed":
            return F.logsigmoid(float_features(self.fixed)).expand(shape)
        return float_features(x.new_zeros(shape))

    def resolved_backend(self, device: torch.device) -> str:  # noqa: ARG002
        """Name the form that `forward` uses."""
        return self.config.backend


def feature_map(x: Tensor) -> Tensor:
    """Return silu(x) + 1/2, which is positive everywhere, divided by its norm over the features."""
    return F.normalize(F.silu(float_features(x)) + 0.5, dim=-1)
