# SPDX-License-Identifier: Apache-2.0
"""Diagonal state space (S4D; Gu, Gupta, Goel and Re 2022, arXiv:2206.11893), to both sides.

Each channel is a linear system x' = A x + B u, y = Re(C x) + D u with a diagonal complex matrix A. Sampled with a step
of its own, by zero-order hold (the input is constant within a step), it is a convolution of the channel with

    K_l = 2 Re sum_n C_n (exp(A_n step) - 1) / A_n exp(A_n step l),

which is computed by FFT. The states come in conjugate pairs, of which one is kept; hence 2 Re.

A starts as S4D-Lin, A_n = -1/2 + i pi n, or with `initialisation="legs"` as S4D-LegS: with the eigenvalues of the
HiPPO-N matrix. These have the same real part; with 64 states their frequencies reach from 0.26 to 1,303 in place of 0
to 97. GELU, a linear layer and a gate (GLU) follow, as in the authors' block.

Departures from the paper:

- The system runs in both directions, with one C for each and the same A and step, as in the authors' code for Long
  Range Arena. The second direction starts at the next token, so that a token meets itself once. Causal models look back
  only.
- B is 1, because only its product with C matters.
- All parameters learn at the model's rate and with its weight decay. The authors use a lower rate, and no decay, for A,
  B and the step (`train.state_space_lr`,
  `train.undecayed=[state_space]`).
- The number of heads, the biases of projections and rotary positions have no meaning here and are not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import STATE_SPACE, LayerDims, ParameterGroup, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.hippo import hippo_normal
from attention_zoo.kernels.long_convolution import exponential_kernel, long_convolution
from attention_zoo.masking import zero_masked
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class S4DConfig(VariantConfig):
    """Options of the diagonal state space.

    Raises:
        ValueError: A value is out of its range.
    """

    state_size: int = option(
        64, "states of a channel (N), conjugates included; even; 4 on text in the authors' runs", least=2, parity="even"
    )
    min_step: float = option(1e-3, "shortest step at the start of training; 1e-4 for 16,384 tokens", above=0.0)
    max_step: float = option(1e-1, "longest step at the start of training")
    initialisation: Literal["lin", "legs"] = option(
        "lin", "frequencies of A at the start: evenly spaced (S4D-Lin), or the eigenvalues of HiPPO-N (S4D-LegS)"
    )

    def __post_init__(self) -> None:
        """Check the options together."""
        VariantConfig.__post_init__(self)
        if self.min_step > self.max_step:
            raise ValueError(f"min_step must be at most max_step: {self.min_step}, {self.max_step}")


@register_variant(
    "s4d",
    title="S4D",
    family="state space",
    traits=Traits(memory="linear", complexity="O(n log n)", causal=True),
    paper="Gu, Gupta, Goel and Re 2022, arXiv:2206.11893",
)
class S4D(SequenceMixer):
    """Every channel is convolved with its own sum of damped oscillations, as long as the sequence.

    Complex parameters are stored as pairs of real numbers, because a cast of the module to a real dtype would drop the
    imaginary part. Kernel and FFT are computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: S4DConfig

    def __init__(self, config: S4DConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        states, directions = config.state_size // 2, 1 if dims.causal else 2
        low, high = math.log(config.min_step), math.log(config.max_step)
        # The steps are spread evenly on a logarithmic scale: channels with long and with short memories.
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(dims.dim))
        # A = -exp(log_decay) + i frequency, (dim, states): the real part stays negative, so no state grows.
        self.log_decay = nn.Parameter(torch.full((dims.dim, states), math.log(0.5)))
        frequency = math.pi * torch.arange(states, dtype=torch.float32)
        if config.initialisation == "legs":
            frequency = hippo_normal(config.state_size)[0].imag.float()  # the real part is -1/2 there, too
        self.frequency = nn.Parameter(frequency.repeat(dims.dim, 1))
        # C, of variance 1 as a complex number
        self.readout = nn.Parameter(torch.randn(directions, dims.dim, states, 2) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(dims.dim))
        self.out = nn.Linear(dims.dim, 2 * dims.dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the state space over the length; see `SequenceMixer.forward`."""
        signal = zero_masked(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            signal = signal.to(torch.promote_types(x.dtype, torch.float32))
            mixed = long_convolution(signal, *self.kernels(x.shape[1], signal.dtype)) + self.skip * signal
        hidden = self.dropped(F.gelu(mixed.to(x.dtype)))
        return zero_masked(F.glu(self.out(hidden)), mask)

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Name A and the step."""
        return dict.fromkeys(("log_step", "log_decay", "frequency"), STATE_SPACE)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The states of each channel in each direction; a complex one is two numbers."""
        return self.readout.shape[0] * self.dims.dim * self.config.state_size

    def kernels(self, length: int, dtype: torch.dtype) -> list[Tensor]:
        """Compute the kernel of each direction, (dim, length), sampled by zero-order hold."""
        poles = torch.complex(-self.log_decay.to(dtype).exp(), self.frequency.to(dtype))
        rate = poles * self.log_step.to(dtype).exp()[:, None]
        # (exp(A step) - 1) / A, by expm1 because A step is close to zero
        held = 2.0 * torch.expm1(rate) / poles
        return [
            exponential_kernel(torch.view_as_complex(weight) * held, rate, length)
            for weight in self.readout.to(dtype).contiguous()
        ]
