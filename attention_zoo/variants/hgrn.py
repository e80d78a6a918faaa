# SPDX-License-Identifier: Apache-2.0
"""Gated linear recurrences: HGRN (Qin, Yang and Zhong 2023) and RG-LRU (De et al. 2024), to both sides.

Each feature has a state that forgets as much as the token says. The states do not see each other, so a scan runs them.

`kind="hgrn"` is the token mixer of arXiv:2311.04823, section 3. States are complex and turn by a learned angle:

    h_t = λ_t exp(i angle) h_{t-1} + (1 - λ_t) c_t,  λ_t = bound + (1 - bound) sigmoid(F x_t),
    y_t = out(silu(G x_t) * norm([Re h_t, Im h_t])),  c_t = silu(C x_t).

Upper layers have a higher bound, so that they remember for longer.

`kind="rg_lru"` is the recurrent block of Griffin (arXiv:2402.19427, section 2.4), with real states behind a short
convolution u of x for each feature:

    h_t = a_t h_{t-1} + sqrt(1 - a_t²) (sigmoid(I u_t) * u_t),  a_t = exp(-8 rate sigmoid(R u_t)),
    y_t = out(gelu(G x_t) * h_t).

I and R are block-diagonal, with one block for each head. exp(-8 rate) starts evenly between 0.9 and 0.999.

Departures:

- Both directions have the same gates and inputs, and their states are added, as in the code of HGRN's authors. HGRN has
  one angle for each direction. Griffin is causal; its second direction is an addition, for which the convolution reads
  two tokens before, one after and the token itself. Causal models look back only.
- HGRN's bounds come from a softmax over all layers, which ties them to each other and makes them grow with the layer.
  A mixer does not know the other layers: here layer k learns bounds of its own, which start at k / (k + 1). The first
  layer has no bound, as in the paper.
- Masked tokens are skipped: the states neither fade nor turn at them. In the convolution they count as zeros.
- `state_size=0` takes as many weights as full attention has. The papers' layers are as wide as the stream (HGRN) or 4/3
  as wide (Griffin).
- In RG-LRU 1 - a² has a floor of 2.5e-7, so that the gradient of its root is at most 1,000, as in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.scan import linear_scan
from attention_zoo.masking import zero_masked
from attention_zoo.projections import initialise
from attention_zoo.registry import register_variant

_KERNEL = 4
"""Tokens that Griffin's convolution reads."""
_SHARPNESS = 8.0
"""The constant c of Griffin."""
_LEAST = 2.5e-7
"""Floor of 1 - a²."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HGRNConfig(VariantConfig):
    """Options of gated linear recurrences."""

    kind: Literal["hgrn", "rg_lru"] = option("hgrn", "complex states of HGRN, or the real ones of Griffin's RG-LRU")
    state_size: int = option(
        0, "states of the layer; 0 gives as many weights as full attention; for rg_lru a multiple of the heads", least=0
    )

    def resolved(self, dims: LayerDims) -> HGRNConfig:
        """Return the options with the number of states that 0 means."""
        cell = HGRU if self.kind == "hgrn" else RGLRU
        return replace(self, state_size=self.state_size or cell.matched_size(dims))


@register_variant(
    "hgrn",
    title="HGRN",
    family="gated recurrence",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Qin et al. 2023, arXiv:2311.04823; rg_lru: De et al. 2024, arXiv:2402.19427",
)
class HGRN(SequenceMixer):
    """Every state fades at a rate that each token decides.

    Gates and states are computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: HGRNConfig

    def __init__(self, config: HGRNConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        cell = HGRU if config.kind == "hgrn" else RGLRU
        self.cell = cell(config.resolved(dims).state_size, dims)
        self.out = nn.Linear(self.cell.width, dims.dim, bias=dims.qkv_bias)
        initialise(self.out)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the recurrence; see `SequenceMixer.forward`."""
        hidden = self.cell(x, mask).to(x.dtype)
        return zero_masked(self.out(self.dropped(hidden)), mask)

    def state_size(self, length: int) -> int:
        """The states of each direction (hgrn: a complex one is two numbers; rg_lru: with the tokens it convolves)."""
        return self.cell.state_size(length)


class HGRU(nn.Module):
    """The complex recurrence of HGRN with its gates; (batch, length, dim) to (batch, length, 2 states)."""

    def __init__(self, states: int, dims: LayerDims) -> None:
        super().__init__()
        self.width = 2 * states
        self.value = nn.Linear(dims.dim, 2 * states, bias=dims.qkv_bias)
        self.forget_gate = nn.Linear(dims.dim, states, bias=dims.qkv_bias)
        self.output_gate = nn.Linear(dims.dim, 2 * states, bias=dims.qkv_bias)
        initialise(self.value, self.forget_gate, self.output_gate)
        # Angles as in rotary positions, (directions, states)
        angle = 10000.0 ** (-2.0 * torch.arange(states) / states)
        self.angle = nn.Parameter(angle.repeat(1 if dims.causal else 2, 1))
        # logit(k / (k + 1)) = log k
        self.bound = nn.Parameter(torch.full((states,), math.log(dims.layer))) if dims.layer else None
        self.norm = nn.LayerNorm(2 * states)

    @staticmethod
    def matched_size(dims: LayerDims) -> int:
        """Return the states with which 7 dim states are about 4 dim²."""
        return _multiple(4 * dims.dim / 7, dims.num_heads)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Run the states in all directions, normalise and gate them."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        value, logit = F.silu(self.value(x).to(dtype)), self.forget_gate(x).to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            lost = (-logit).sigmoid()  # 1 - λ, (batch, length, states), without cancellation where λ is near 1
            if self.bound is not None:
                lost = lost * (-self.bound.to(dtype)).sigmoid()
            added = zero_masked(torch.complex(*(lost.repeat(1, 1, 2) * value).chunk(2, dim=2)), mask)
            states = torch.zeros_like(added)
            for direction, angle in enumerate(self.angle.to(dtype)):
                factor = (1.0 - lost) * torch.polar(torch.ones_like(angle), angle)
                states = states + linear_scan(_one_where_masked(factor, mask), added, reverse=direction == 1)
            hidden = torch.cat((states.real, states.imag), dim=2).to(self.norm.weight.dtype)
        return F.silu(self.output_gate(x)) * self.norm(hidden).to(x.dtype)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """Count real and imaginary parts of the states of all directions."""
        return 2 * self.angle.numel()


class RGLRU(nn.Module):
    """The real recurrence of Griffin with its gates and convolution; (batch, length, dim) to (batch, length, states).

    Raises:
        ValueError: The number of states is not a multiple of the number of heads.
    """

    def __init__(self, states: int, dims: LayerDims) -> None:
        super().__init__()
        if states % dims.num_heads:
            raise ValueError(f"state_size {states} is not a multiple of num_heads {dims.num_heads}")
        self.width = states
        self.directions = 1 if dims.causal else 2
        self.value = nn.Linear(dims.dim, states, bias=dims.qkv_bias)
        self.output_gate = nn.Linear(dims.dim, states, bias=dims.qkv_bias)
        initialise(self.value, self.output_gate)
        self.convolution = nn.Conv1d(states, states, _KERNEL, groups=states)
        block = states // dims.num_heads
        # I and R, (num_heads, block, 2 block), and their biases
        self.gates = nn.Parameter(torch.randn(dims.num_heads, block, 2 * block) * block**-0.5)
        self.gate_bias = nn.Parameter(torch.zeros(dims.num_heads, 2 * block))
        # softplus(log(exp(rate) - 1)) = rate
        rate = -(0.9 + 0.099 * torch.rand(states)).log() / _SHARPNESS
        self.rate = nn.Parameter(rate.expm1().log())

    @staticmethod
    def matched_size(dims: LayerDims) -> int:
        """Return the states with which 3 dim states + 2 states² / num_heads are about 4 dim²."""
        return _multiple((math.sqrt(9.0 + 32.0 / dims.num_heads) - 3.0) * dims.num_heads * dims.dim / 4, dims.num_heads)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Convolve, run the states in all directions, and gate them."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        after = self.directions - 1
        values = F.pad(zero_masked(self.value(x), mask), (0, 0, _KERNEL - 1 - after, after))
        u = self.convolution(values.transpose(1, 2)).transpose(1, 2)  # (batch, length, states)
        blocks = u.unflatten(2, (len(self.gates), -1))
        logits = (torch.einsum("blhi,hij->blhj", blocks, self.gates) + self.gate_bias).to(dtype)
        gate, forget = (each.flatten(2) for each in logits.sigmoid().chunk(2, dim=3))
        with torch.autocast(x.device.type, enabled=False):
            # log a, (batch, length, states); -softplus(z) is logsigmoid(-z)
            log_factor = _SHARPNESS * F.logsigmoid(-self.rate.to(dtype)) * forget
            added = (-torch.expm1(2.0 * log_factor)).clamp_min(_LEAST).sqrt() * gate * u.to(dtype)
            added, factor = zero_masked(added, mask), _one_where_masked(log_factor.exp(), mask)
            states = linear_scan(factor, added)
            if self.directions == 2:
                states = states + linear_scan(factor, added, reverse=True)
        return F.gelu(self.output_gate(x)) * states.to(x.dtype)

    def state_size(self, length: int) -> int:
        """Count the states of all directions, and what the convolution reads of other tokens."""
        return self.directions * self.width + min(length, _KERNEL - 1) * min(self.value.in_features, self.width)


def _one_where_masked(factor: Tensor, mask: Tensor | None) -> Tensor:
    return factor if mask is None else torch.where(mask.unsqueeze(-1), factor, 1.0)


def _multiple(size: float, step: int) -> int:
    """Round to a multiple of a step, and at least one."""
    return max(1, round(size / step)) * step
