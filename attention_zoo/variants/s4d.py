"""Diagonal state space (S4D; Gu, Gupta, Goel and Re 2022, arXiv:2206.11893), to both sides.

Each channel is a linear system x' = A x + B u, y = Re(C x) + D u with a diagonal complex A, sampled by zero-order hold
with a step of its own: a convolution with K_l = 2 Re sum_n C_n (exp(A_n step) - 1) / A_n exp(A_n step l), done by FFT.
A starts as S4D-Lin, A_n = -1/2 + i pi n. GELU, a linear layer and a gate (GLU) follow, as in the authors' block.

Departures from the paper:

- Bidirectional, with one C for each direction and the same A and step: the authors' code for this benchmark, not the
  paper. The future starts at the next token, so that a token meets itself once. Causal models look back only.
- B is 1 and absorbed in C, which multiplies it everywhere.
- The kernel is a product of two small matrices and not a Vandermonde product in a kernel of its own: the same sums.
- All parameters learn at the model's rate and with its weight decay; the authors lower one and drop the other for A,
  B and the step.
- No position is special: heads, biases of projections and rotary positions of the host do not apply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.long_convolution import exponential_kernel, long_convolution
from attention_zoo.masking import zero_masked
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class S4DConfig(VariantConfig):
    """Options of the diagonal state space.

    Raises:
        ValueError: A value is out of its range.
    """

    state_size: int = option(64, "states of a channel (N), conjugates included; even; 4 on text in the authors' runs")
    min_step: float = option(1e-3, "shortest step at the start, in tokens of unit time; 1e-4 for 16,384 tokens")
    max_step: float = option(1e-1, "longest step at the start")

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"state_size must be even and positive, got {self.state_size}")
        if not 0.0 < self.min_step <= self.max_step:
            raise ValueError(f"min_step must be positive and at most max_step: {self.min_step}, {self.max_step}")


@register_variant(
    "s4d",
    title="S4D",
    traits=Traits(memory="linear", complexity="O(n log n)", causal=True),
    paper="Gu, Gupta, Goel and Re 2022, arXiv:2206.11893",
)
class S4D(SequenceMixer):
    """Every channel is convolved with its own sum of damped oscillations, as long as the sequence.

    Parameters are real, complex ones as pairs, so that casts of the module keep them whole. Kernel and FFT compute in
    float32 (float64 for float64 inputs), under autocast too.
    """

    config: S4DConfig

    def __init__(self, config: S4DConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        states, directions = config.state_size // 2, 1 if dims.causal else 2
        low, high = math.log(config.min_step), math.log(config.max_step)
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(dims.dim))
        self.log_decay = nn.Parameter(torch.full((dims.dim, states), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(states, dtype=torch.float32).repeat(dims.dim, 1))
        self.readout = nn.Parameter(torch.randn(directions, dims.dim, states, 2) * 0.5**0.5)
        self.skip = nn.Parameter(torch.randn(dims.dim))
        self.out = nn.Linear(dims.dim, 2 * dims.dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the state space over the length; see `SequenceMixer.forward`."""
        self.check_input(x, mask)
        signal = zero_masked(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            signal = signal.to(torch.promote_types(x.dtype, torch.float32))
            mixed = long_convolution(signal, *self.kernels(x.shape[1], signal.dtype)) + self.skip * signal
        hidden = F.dropout(F.gelu(mixed.to(x.dtype)), self.dims.dropout, self.training)
        return zero_masked(F.glu(self.out(hidden)), mask)

    def kernels(self, length: int, dtype: torch.dtype) -> list[Tensor]:
        """Compute the kernel of each direction, (dim, length), sampled by zero-order hold."""
        poles = torch.complex(-self.log_decay.to(dtype).exp(), self.frequency.to(dtype))
        rate = poles * self.log_step.to(dtype).exp()[:, None]
        held = 2.0 * torch.expm1(rate) / poles
        return [
            exponential_kernel(torch.view_as_complex(weight) * held, rate, length)
            for weight in self.readout.to(dtype).contiguous()
        ]
