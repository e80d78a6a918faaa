# SPDX-License-Identifier: Apache-2.0
"""S5: one state space with many inputs and outputs (Smith, Warrington and Linderman 2023, arXiv:2208.04933).

All channels u drive one linear system h' = Λ h + B u, y = 2 Re(C h) + D u, with a diagonal complex matrix Λ. Sampled
with a step for each state, by zero-order hold (the input is constant within a step), it is the recurrence

    h_t = exp(Λ step) h_{t-1} + (exp(Λ step) - 1) / Λ (B u_t),

which is computed by a scan. States come in conjugate pairs, of which one is kept; hence 2 Re. The output is
y sigmoid(W gelu(y)), as in the authors' runs on ListOps and Text.

The system starts block-diagonal, with a HiPPO-N matrix in each block: Λ has its eigenvalues, and B and C are random
real matrices, turned into the basis of its eigenvectors.

Departures from the paper:

- The system runs in both directions, with one C for each and the same Λ, B and steps, as in the authors' code for Long
  Range Arena. Causal models look back only.
- The real part of Λ is learned as a logarithm, so that it stays negative and no state grows.
- `state_size=0` takes as many weights as full attention has: as many states as the width. The authors set it for each
  task.
- B and C start normal with variances 1 / dim and 1 / `state_size`. In the authors' code the form depends on the task.
- All parameters learn at the model's rate and with its weight decay. The authors use a lower rate, and no decay, for Λ,
  B and the steps (`train.state_space_lr`,
  `train.undecayed=[state_space]`).
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
from attention_zoo.kernels.hippo import hippo_normal
from attention_zoo.masking import zero_masked
from attention_zoo.projections import initialise
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class S5Config(VariantConfig):
    """Options of S5.

    Raises:
        ValueError: A value is out of its range.
    """

    state_size: int = option(
        0,
        "states of the layer, conjugates included, a multiple of 2 blocks; 0 gives as many weights as full attention",
        least=0,
    )
    blocks: int = option(8, "HiPPO matrices that the states start from (J in the paper)", least=1)
    min_step: float = option(1e-3, "shortest step at the start of training; 1e-4 for 16,384 tokens", above=0.0)
    max_step: float = option(1e-1, "longest step at the start of training")

    def __post_init__(self) -> None:
        """Check the options together."""
        VariantConfig.__post_init__(self)
        if self.state_size % (2 * self.blocks):
            raise ValueError(f"state_size must be a multiple of 2 blocks: {self.state_size}, {self.blocks}")
        if self.min_step > self.max_step:
            raise ValueError(f"min_step must be at most max_step: {self.min_step}, {self.max_step}")

    def resolved(self, dims: LayerDims) -> S5Config:
        """Return the options with the number of states that 0 means."""
        directions, unit = 1 if dims.causal else 2, 2 * self.blocks
        # W has dim² weights, B and each C have dim for a state: dim² + (1 + directions) dim states = 4 dim².
        size = self.state_size or unit * max(1, round(3 * dims.dim / (1 + directions) / unit))
        return replace(self, state_size=size)


@register_variant(
    "s5",
    title="S5",
    family="state space",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Smith et al. 2023, arXiv:2208.04933",
)
class S5(SequenceMixer):
    """All channels drive and read one set of damped oscillators.

    Complex parameters are stored as pairs of real numbers. The recurrence is computed in float32 (float64 for float64
    inputs), under autocast too.
    """

    config: S5Config

    def __init__(self, config: S5Config, dims: LayerDims) -> None:
        super().__init__(config, dims)
        dim, blocks, directions = dims.dim, config.blocks, 1 if dims.causal else 2
        size = config.resolved(dims).state_size
        values, vectors = hippo_normal(size // blocks)
        vectors = vectors.to(torch.complex64)
        # Λ = -exp(log_decay) + i frequency, each (states,), where states is half of the size
        self.log_decay = nn.Parameter((-values.real).log().float().repeat(blocks))
        self.frequency = nn.Parameter(values.imag.float().repeat(blocks))
        low, high = math.log(config.min_step), math.log(config.max_step)
        self.log_step = nn.Parameter(low + (high - low) * torch.rand(size // 2))
        # B as V* B, (states, dim), and C as C V, (directions, dim, states), block by block
        drive = torch.randn(blocks, size // blocks, dim) * dim**-0.5
        self.drive = nn.Parameter(torch.view_as_real((vectors.mH @ drive.to(vectors.dtype)).flatten(0, 1)))
        readout = torch.randn(directions, dim, blocks, size // blocks) * size**-0.5
        self.readout = nn.Parameter(torch.view_as_real((readout.to(vectors.dtype) @ vectors).flatten(2)))
        self.skip = nn.Parameter(torch.randn(dim))
        self.gate = nn.Linear(dim, dim, bias=dims.qkv_bias)
        initialise(self.gate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the state space over the length; see `SequenceMixer.forward`."""
        signal = zero_masked(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            signal = signal.to(torch.promote_types(x.dtype, torch.float32))
            mixed = diagonal_system(signal, *self.sampled(signal.dtype)) + self.skip * signal
        mixed = mixed.to(x.dtype)
        gate = self.gate(self.dropped(F.gelu(mixed)))
        return zero_masked(self.dropped(mixed * gate.sigmoid()), mask)

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Name Λ, B and the steps."""
        return dict.fromkeys(("log_step", "log_decay", "frequency", "drive"), STATE_SPACE)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The states of each direction; a complex one is two numbers."""
        return self.readout.shape[0] * 2 * len(self.log_step)

    def sampled(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the factors of the states, the sampled B, and 2 C of each direction; see `diagonal_system`."""
        log_decay, frequency, log_step, drive, readout = (
            each.to(dtype) for each in (self.log_decay, self.frequency, self.log_step, self.drive, self.readout)
        )
        poles = torch.complex(-log_decay.exp(), frequency)
        rate = poles * log_step.exp()
        # (exp(Λ step) - 1) / Λ, by expm1 because Λ step is close to zero
        held = (torch.expm1(rate) / poles)[:, None] * torch.view_as_complex(drive.contiguous())
        return rate.exp(), torch.view_as_real(held), *(2.0 * readout)
