# SPDX-License-Identifier: Apache-2.0
"""Toeplitz neural network (TNN; Qin et al. 2023, arXiv:2305.04749): weights that depend on the distance alone.

The weight of token j for token i in a channel is t_{i-j} = λ^|i-j| p(i - j). A small network p, the relative position
encoder, computes all channels from the distance (section 3.3), so that the number of parameters does not grow with the
length; λ is a constant (section 3.4). The Toeplitz matrix T of these weights is multiplied by FFT, inside a gate
(the gated Toeplitz unit, section 3.2):

    out = W_o (silu(W_u x) * T silu(W_v x)).

Departures:

- `width=0` takes as many channels as give the mixer the weights of full attention. The authors have 1 to 3 times the
  width of the stream.
- λ is 0.99 for all tasks. On Long Range Arena the authors have one for each: 1 for ListOps, 0.9 for Text, 0.6 for
  Retrieval, 0.7 for Image, 1 for Pathfinder, 0.999 for Path-X. They read images in two dimensions; here they are
  sequences.
- Masked tokens count as zeros.
- The number of heads and rotary positions have no meaning here and are not used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.long_convolution import long_convolution
from attention_zoo.masking import zero_masked
from attention_zoo.projections import initialise
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class TnnConfig(VariantConfig):
    """Options of the Toeplitz neural network."""

    decay: float = option(
        0.99, "factor of the weights from one distance to the next (λ), above 0 and at most 1", above=0.0, most=1.0
    )
    position_dim: int = option(
        32, "width of the network that computes the weights; 16 or 32 in the authors' runs", least=1
    )
    position_layers: int = option(3, "hidden layers of that network; 0 on images in the authors' runs", least=0)
    width: int = option(
        0, "channels that the Toeplitz matrices mix; 0 gives as many weights as full attention has", least=0
    )

    def resolved(self, dims: LayerDims) -> TnnConfig:
        """Return the options with the number of channels that 0 means."""
        dim, hidden = dims.dim, self.position_dim
        # 3 dim width + hidden (width + position_layers hidden) = 4 dim², rounded to a multiple of 8
        rest = 4 * dim * dim - self.position_layers * hidden * hidden
        return replace(self, width=self.width or max(8, round(rest / (3 * dim + hidden) / 8) * 8))


@register_variant(
    "tnn",
    title="Toeplitz network",
    family="convolution",
    traits=Traits(memory="linear", complexity="O(n log n)", causal=True),
    paper="Qin et al. 2023, arXiv:2305.04749",
)
class Tnn(SequenceMixer):
    """Every channel is mixed by a Toeplitz matrix of its own, whose entries one network computes from the distance.

    Entries and FFT are computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: TnnConfig

    def __init__(self, config: TnnConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        dim, hidden, width = dims.dim, config.position_dim, config.resolved(dims).width
        self.gate = nn.Linear(dim, width, bias=dims.qkv_bias)
        self.value = nn.Linear(dim, width, bias=dims.qkv_bias)
        self.out = nn.Linear(width, dim, bias=dims.qkv_bias)
        initialise(self.gate, self.value, self.out)
        self.weights = DistanceNetwork(hidden, config.position_layers, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix by distance, and gate; see `SequenceMixer.forward`."""
        signal = zero_masked(F.silu(self.value(x)), mask)
        with torch.autocast(x.device.type, enabled=False):
            signal = signal.to(torch.promote_types(signal.dtype, torch.float32))
            mixed = long_convolution(signal, *self.kernels(x.shape[1], signal.dtype)).to(x.dtype)
        hidden = self.dropped(F.silu(self.gate(x)) * mixed)
        return zero_masked(self.out(hidden), mask)

    def state_size(self, length: int) -> int:
        """All tokens: weights by distance follow no recurrence."""
        return length * min(self.dims.dim, self.value.out_features)

    def kernels(self, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Compute t_0, t_1, ... and, unless causal, t_-1, t_-2, ..., each (width, length)."""
        places = torch.arange(length, dtype=dtype, device=self.out.weight.device)
        distances = places if self.dims.causal else torch.cat((places, -1.0 - places))
        entries = self.weights(distances) * self.config.decay ** distances.abs()[:, None]
        return entries.t().split(length, dim=1)


class DistanceNetwork(nn.Module):
    """The relative position encoder: a linear map, then layers of root mean square norm, ReLU and linear map."""

    def __init__(self, hidden: int, layers: int, width: int) -> None:
        super().__init__()
        sizes = (1, *[hidden] * (layers + 1), width)
        self.linears = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))

    def forward(self, distances: Tensor) -> Tensor:
        """Compute (distances, width) of signed distances (distances,), in their dtype."""
        features = distances[:, None]
        for number, linear in enumerate(self.linears):
            assert isinstance(linear, nn.Linear)
            if number > 0:
                features = F.relu(F.rms_norm(features, features.shape[-1:], eps=1e-8))
            features = F.linear(features, linear.weight.to(features.dtype), linear.bias.to(features.dtype))
        return features
