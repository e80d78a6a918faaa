# SPDX-License-Identifier: Apache-2.0
"""Mamba: selective state space (Gu and Dao 2023, arXiv:2312.00752, sections 3.2 to 3.4), to both sides.

The stream is projected to values and gates. Values pass through a short causal convolution for each channel and a SiLU.
Each channel u then drives `state_size` states, whose step, input and readout depend on the token (S6):

    h_t = exp(step_t A) h_{t-1} + step_t B_t u_t,  y_t = C_t·h_t + D u_t,  step_t = softplus(W_s V_s u_t + bias),

with B_t and C_t linear in u_t and shared by all channels, and A < 0 learned. The result is y * silu(gate), projected.

A starts as -1, -2, ..., -`state_size` in each channel, and steps from 0.001 to 0.1 on a logarithmic scale, at random.

Both directions share the two large projections and have all else for themselves: convolution, steps, A, B, C and D.
Their results are added before the gate. So do Vision Mamba (arXiv:2401.09417) and Caduceus (arXiv:2403.03234) it.
Causal models look back only, which is the original.

Departures:

- `inner_size=0` takes as many channels as give the weights of full attention, 1.15 times the width at width 512. The
  paper takes twice the width, and has no feed-forward layers beside its blocks.
- All parameters have the model's weight decay; the authors exempt A and D (`train.undecayed=[state_space]`).
- Masked tokens are skipped: their step is zero. In the convolution they count as zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import STATE_SPACE, LayerDims, ParameterGroup, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.selective_scan import selective_scan
from attention_zoo.masking import zero_masked
from attention_zoo.registry import register_variant

_SHORTEST, _LONGEST = 1e-3, 1e-1
"""Range of the steps at the start of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaConfig(VariantConfig):
    """Options of Mamba."""

    state_size: int = option(16, "states of a channel (N in the paper); time grows with it", least=1)
    inner_size: int = option(
        0, "channels; 0 gives as many weights as full attention; twice the width in the paper", least=0
    )
    kernel_size: int = option(4, "tokens that the convolution reads, the token itself and those before it", least=1)

    def resolved(self, dims: LayerDims) -> MambaConfig:
        """Return the options with the number of channels that 0 means."""
        directions = 1 if dims.causal else 2
        # Weights of a channel: 3 dim of the projections, and those of each direction
        weights = 3 * dims.dim + directions * (2 * _rank(dims) + 3 * self.state_size + self.kernel_size + 3)
        return replace(self, inner_size=self.inner_size or max(4, round(dims.dim**2 / weights) * 4))


@register_variant(
    "mamba",
    title="Mamba",
    family="state space",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Gu and Dao 2023, arXiv:2312.00752; both directions as in arXiv:2401.09417",
)
class Mamba(SequenceMixer):
    """Every channel has a few states that each token may fill, keep or clear.

    Steps and states are computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: MambaConfig

    def __init__(self, config: MambaConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        inner, rank = config.resolved(dims).inner_size, _rank(dims)
        self.expand = nn.Linear(dims.dim, 2 * inner, bias=dims.qkv_bias)
        self.past = SelectiveStateSpace(inner, rank, config)
        self.future = None if dims.causal else SelectiveStateSpace(inner, rank, config)
        self.out = nn.Linear(inner, dims.dim, bias=dims.qkv_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the state spaces over the length; see `SequenceMixer.forward`."""
        values, gate = self.expand(x).chunk(2, dim=2)
        values = zero_masked(values, mask)
        mixed = self.past(values, mask)
        if self.future is not None:
            mixed = mixed + self.future(values.flip(1), None if mask is None else mask.flip(1)).flip(1)
        hidden = self.dropped(mixed * F.silu(gate))
        return zero_masked(self.out(hidden), mask)

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Name A and D of each direction."""
        return {name: STATE_SPACE for name, _ in self.named_parameters() if name.endswith((".log_rate", ".skip"))}

    def state_size(self, length: int) -> int:
        """The states of each channel in each direction, and the tokens that its convolution reads."""
        inner = self.out.in_features
        near = min(length, self.config.kernel_size - 1) * min(self.dims.dim, inner)
        return (1 if self.dims.causal else 2) * (inner * self.config.state_size + near)


def _rank(dims: LayerDims) -> int:
    """Return the width of the bottleneck before the steps."""
    return -(-dims.dim // 16)


class SelectiveStateSpace(nn.Module):
    """One direction: convolution, SiLU and S6 on (batch, length, inner)."""

    def __init__(self, inner: int, rank: int, config: MambaConfig) -> None:
        super().__init__()
        self.sizes = (rank, config.state_size, config.state_size)
        self.convolution = nn.Conv1d(inner, inner, config.kernel_size, groups=inner)
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)  # V_s u, B and C
        self.step = nn.Linear(rank, inner)
        low, high = math.log(_SHORTEST), math.log(_LONGEST)
        first = (low + (high - low) * torch.rand(inner)).exp()
        with torch.no_grad():
            nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
            self.step.bias.copy_(first.expm1().log())  # softplus(log(exp(first) - 1)) = first
        # A = -exp(log_rate), (state_size, inner)
        self.log_rate = nn.Parameter(torch.arange(1.0, config.state_size + 1).log()[:, None].repeat(1, inner))
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Run the state space from the first token on."""
        signal = F.pad(values.transpose(1, 2), (self.convolution.kernel_size[0] - 1, 0))
        u = F.silu(self.convolution(signal)).transpose(1, 2)  # (batch, length, inner)
        dtype = torch.promote_types(values.dtype, torch.float32)
        low, b, c = self.select(u).split(self.sizes, dim=2)
        # softplus(z) as -logsigmoid(-z): under torch.compile the gradient of F.softplus gets wrong strides.
        step = zero_masked(-F.logsigmoid(-self.step(low).to(dtype)), mask)
        with torch.autocast(values.device.type, enabled=False):
            u, b, c = u.to(dtype), b.to(dtype), c.to(dtype)
            read = selective_scan(step * u, step, -self.log_rate.to(dtype).exp(), b, c) + self.skip.to(dtype) * u
        return read.to(values.dtype)
