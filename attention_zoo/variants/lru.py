# SPDX-License-Identifier: Apache-2.0
"""Linear recurrent unit (LRU; Orvieto et al. 2023, arXiv:2303.06349), to both sides.

One linear recurrence with complex states that do not see each other, section 3 of the paper:

    h_t = λ h_{t-1} + scale (B x_t),  y_t = Re(C h_t) + D x_t,  with λ = exp(-decay + i phase).

λ starts on a ring of the complex plane, evenly between the radii `min_radius` and `max_radius`, with a phase of at most
`max_phase`. Decay, phase and scale (nu, theta and gamma in the paper) are learned as logarithms. The scale starts at
sqrt(1 - |λ|²), so that a state is as large as its input. GELU, a linear layer and a gate (GLU) follow.

Departures from the paper:

- The second direction has a C of its own and the same λ, scale and B, as in S5. The code in the paper's appendix has
  one direction. Causal models look back only.
- `state_size=0` takes as many weights as full attention has, which is about a third of the width; the paper sets it for
  each task.
- All parameters learn at the model's rate and with its weight decay. The authors use a lower rate for the recurrence
  and B, without decay (`train.state_space_lr`, `train.undecayed=[state_space]`).
- Masked tokens count as zeros.
- The number of heads and rotary positions have no meaning here and are not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import STATE_SPACE, LayerDims, ParameterGroup, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.diagonal_system import diagonal_system
from attention_zoo.masking import zero_masked
from attention_zoo.projections import initialise
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class LRUConfig(VariantConfig):
    """Options of the linear recurrent unit.

    Raises:
        ValueError: A value is out of its range.
    """

    state_size: int = option(
        0, "complex states of the layer (N in the paper); 0 gives as many weights as full attention", least=0
    )
    min_radius: float = option(0.0, "least absolute value of λ at the start; nearer to 1 for long sequences", least=0.0)
    max_radius: float = option(0.99, "largest absolute value of λ at the start; below 1", below=1.0)
    max_phase: float = option(
        2 * math.pi,
        "largest phase of λ at the start; π / 10 for the longest tasks in the paper",
        above=0.0,
        most=2 * math.pi,
    )

    def __post_init__(self) -> None:
        """Check the options together."""
        VariantConfig.__post_init__(self)
        if self.min_radius >= self.max_radius:
            raise ValueError(f"min_radius must be below max_radius: {self.min_radius}, {self.max_radius}")

    def resolved(self, dims: LayerDims) -> LRUConfig:
        """Return the options with the number of states that 0 means."""
        directions = 1 if dims.causal else 2
        # The output map has 2 dim² weights, B and each C have 2 dim for a state: 2 dim² + 2 (1 + directions) dim N is 4
        # dim², the weights of full attention.
        return replace(self, state_size=self.state_size or max(1, dims.dim // (1 + directions)))


@register_variant(
    "lru",
    title="LRU",
    family="state space",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Orvieto et al. 2023, arXiv:2303.06349",
)
class LRU(SequenceMixer):
    """All channels drive one set of complex states, each of which turns and fades at its own rate.

    Complex parameters are stored as pairs of real numbers. The recurrence is computed in float32 (float64 for float64
    inputs), under autocast too.
    """

    config: LRUConfig

    def __init__(self, config: LRUConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        directions = 1 if dims.causal else 2
        states = config.resolved(dims).state_size
        # |λ|² is uniform between the squares of the radii, so that the ring is covered evenly; its root is kept from
        # zero, whose logarithm is infinite.
        low, high = config.min_radius**2, config.max_radius**2
        decay = -0.5 * (low + (high - low) * torch.rand(states)).clamp_min(1e-6).log()
        self.log_decay = nn.Parameter(decay.log())  # (states,)
        self.log_phase = nn.Parameter((config.max_phase * torch.rand(states)).clamp_min(1e-6).log())
        self.log_scale = nn.Parameter(0.5 * (-torch.expm1(-2.0 * decay)).log())  # of sqrt(1 - |λ|²)
        # Of variance 1 / dim and 1 / states as complex numbers
        self.drive = nn.Parameter(torch.randn(states, dims.dim, 2) * (2 * dims.dim) ** -0.5)  # B
        self.readout = nn.Parameter(torch.randn(directions, dims.dim, states, 2) * (2 * states) ** -0.5)  # C
        self.skip = nn.Parameter(torch.randn(dims.dim))
        self.out = nn.Linear(dims.dim, 2 * dims.dim, bias=dims.qkv_bias)
        initialise(self.out)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the recurrence over the length; see `SequenceMixer.forward`."""
        signal = zero_masked(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            signal = signal.to(torch.promote_types(x.dtype, torch.float32))
            decay, phase, scale, drive, readout = (
                each.to(signal.dtype)
                for each in (self.log_decay, self.log_phase, self.log_scale, self.drive, self.readout)
            )
            factor = torch.polar((-decay.exp()).exp(), phase.exp())  # λ, (states,)
            mixed = diagonal_system(signal, factor, drive * scale.exp()[:, None, None], *readout) + self.skip * signal
        hidden = self.dropped(F.gelu(mixed.to(x.dtype)))
        return zero_masked(F.glu(self.out(hidden)), mask)

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Name the recurrence and B."""
        return dict.fromkeys(("log_decay", "log_phase", "log_scale", "drive"), STATE_SPACE)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The states of each direction; a complex one is two numbers."""
        return self.readout.shape[0] * 2 * len(self.log_decay)
