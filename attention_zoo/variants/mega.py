# SPDX-License-Identifier: Apache-2.0
"""Mega: moving average equipped gated attention (Ma et al. 2022, arXiv:2209.10655), full and chunked.

Each feature of the stream passes through several damped exponential moving averages (EMA, section 3.1 of the paper).
One head of attention takes its queries and keys from the averages and its values from the stream; a reset gate
multiplies its result, and an update gate mixes that with the stream (section 3.2):

    z = silu(W_z x'),  q = κ_q z + μ_q,  k = κ_k z + μ_k,  v = silu(W_v x),  with x' = EMA(x)
    o = softmax(q kᵀ / sqrt(key_dim) + bias) v,  reset = silu(W_r x'),  candidate = silu(W_h x' + U_h (reset o))
    y = update candidate + (1 - update) x,  update = sigmoid(W_u x')

With `chunk`, attention stays within chunks of that many tokens, and only the averages go further.

`form="code"` is the authors' code where it differs from the paper's equations: x' = silu(EMA(x) + ω x) with a learned ω
for each feature, the average of the future has the token itself too, and parameters start as there: κ, the vectors of
the bias and the weights of all linear maps from a normal distribution with standard deviation 0.02, ω from one with
standard deviation 1. So attention starts nearly uniform: q·k is below a thousandth. In 500 steps of quick ListOps (seed
0, noise of the test set 2.2 points) this form reached 44.8 % and the other 40.4 %.

Departures from the paper:

- Only softmax is offered, not the Laplace function. The relative bias of the scores is the rotary one, the dot product
  of two learned vectors that are rotated by their positions. It enters as more features of queries and keys, so that no
  matrix of length by length is needed.
- The mixer returns update (candidate - x), and the block around it adds its stream. This is the paper's y if the stream
  comes without a norm. Behind a norm, the gate weighs the normed stream.
- Keys are as wide as one head of full attention. Values are so wide that the mixer has about the weights of full
  attention; the paper's values are twice as wide as the stream (`value_dim`).
- The averages of the past and of the future have parameters of their own and are added, as in the authors' code. The
  average of the future leaves out the token itself, but for `form="code"`. Causal models look back only.
- Masked tokens count as zeros in the averages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.long_convolution import exponential_kernel, long_convolution
from attention_zoo.kernels.softmax import BACKEND_HELP, Backend, attend, resolve_backend
from attention_zoo.masking import zero_masked
from attention_zoo.projections import Rotary
from attention_zoo.registry import register_variant

_STD = 0.02
"""Standard deviation from which the weights of the authors' code start."""
_FASTEST = 1.0 - 1e-6
"""Largest share alpha * delta that an average loses in a step. The logarithm of 1 - 1 would have no gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MegaConfig(VariantConfig):
    """Options of Mega."""

    chunk: int | None = option(
        None, "tokens that attend to each other; none means all; 128 in the paper's Mega-chunk", least=1
    )
    num_averages: int = option(16, "number of moving averages of a feature (h in the paper)", least=1)
    key_dim: int = option(
        0, "width of queries and keys, even (z in the paper); 0 means that of one head", least=0, parity="even"
    )
    value_dim: int = option(
        0, "width of values (v in the paper); 0 gives as many weights as full attention has", least=0
    )
    form: Literal["paper", "code"] = option("paper", "the paper's equations, or what the authors' code computes")
    backend: Backend = option("auto", BACKEND_HELP)

    def resolved(self, dims: LayerDims) -> MegaConfig:
        """Return the options with the chunk that none means, and the widths that 0 means."""
        key_dim = self.key_dim or dims.head_dim + dims.head_dim % 2
        # value, reset and out have dim * value_dim weights each, update and candidate dim² each, shared dim * key_dim:
        # 3 dim value_dim + 2 dim² + dim key_dim = 4 dim², rounded to a multiple of 8.
        value_dim = self.value_dim or max(8, round((2 * dims.dim - key_dim) / 24) * 8)
        chunk = min(self.chunk or dims.max_length, dims.max_length)
        return replace(self, chunk=chunk, key_dim=key_dim, value_dim=value_dim)


@register_variant(
    "mega",
    title="Mega",
    family="state space",
    traits=Traits(memory="linear", complexity="O(n²); O(n c) in chunks of c", causal=True),
    paper="Ma et al. 2022, arXiv:2209.10655",
)
class Mega(SequenceMixer):
    """Moving averages collect the neighbourhood of a token, and one gated head of attention the rest."""

    config: MegaConfig

    def __init__(self, config: MegaConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        sizes = config.resolved(dims)
        dim, key_dim, value_dim = dims.dim, sizes.key_dim, sizes.value_dim
        assert sizes.chunk is not None
        self.chunk = sizes.chunk
        as_code = config.form == "code"
        self.average = MovingAverage(dim, config.num_averages, causal=dims.causal, skip=as_code)
        self.shared = nn.Linear(dim, key_dim, bias=dims.qkv_bias)
        # κ and μ, for queries and for keys: (2, key_dim)
        self.scale, self.shift = nn.Parameter(torch.ones(2, key_dim)), nn.Parameter(torch.zeros(2, key_dim))
        self.bias = nn.Parameter(torch.randn(2, key_dim) * key_dim**-0.5)
        self.rotary = Rotary(key_dim, self.chunk)
        self.value = nn.Linear(dim, value_dim, bias=dims.qkv_bias)
        self.reset = nn.Linear(dim, value_dim, bias=dims.qkv_bias)
        self.update = nn.Linear(dim, dim, bias=dims.qkv_bias)
        self.candidate = nn.Linear(dim, dim, bias=dims.qkv_bias)
        self.out = nn.Linear(value_dim, dim, bias=False)
        if as_code:
            linears = self.shared, self.value, self.reset, self.update, self.candidate, self.out
            for parameter in (self.scale, self.bias, *(linear.weight for linear in linears)):
                nn.init.normal_(parameter, std=_STD)
            for linear in linears:
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average, attend and gate; see `SequenceMixer.forward`."""
        signal = zero_masked(x, mask)
        averaged = self.average(signal)  # x', (batch, length, dim)
        read = self._attend(F.silu(self.shared(averaged)), F.silu(self.value(signal)), mask)
        candidate = F.silu(self.candidate(averaged) + self.out(F.silu(self.reset(averaged)) * read))
        return zero_masked(self.update(averaged).sigmoid() * (candidate - signal), mask)

    def state_size(self, length: int) -> int:
        """The averages of each direction, and key and value of each token (of a chunk)."""
        directions, dim, averages = self.average.alpha.shape
        attended = min(length, self.config.chunk or length)
        return directions * dim * averages + attended * (self.shared.out_features + self.value.out_features)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation of the attention; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend(self.config.backend, device, dropout=self.dims.dropout)

    def _attend(self, shared: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within every chunk.

        Args:
            shared: z, (batch, length, key_dim).
            values: (batch, length, value_dim).
            mask: (batch, length) or None.

        Returns:
            (batch, length, value_dim).
        """
        batch, length, key_dim = shared.shape
        chunk = min(self.chunk, length)
        padding = -length % chunk
        if padding:
            real = torch.ones(batch, length, dtype=torch.bool, device=shared.device) if mask is None else mask
            mask = F.pad(real, (0, padding))
            shared, values = (F.pad(each, (0, 0, 0, padding)) for each in (shared, values))
        # Chunks become sequences of one head: (batch * chunks, 1, chunk, features)
        shared, values = (each.reshape(-1, 1, chunk, each.shape[-1]) for each in (shared, values))
        q, k = (shared * scale + shift for scale, shift in zip(self.scale, self.shift, strict=True))
        # The bias of a pair is the dot product of these, each (1, 1, chunk, key_dim): after the rotation it depends on
        # the distance alone. [q, bias_q]·[k, bias_k] = q·k + bias.
        bias_q, bias_k = self.rotary(self.bias[:, None, None].expand(-1, 1, chunk, -1)).to(q.dtype)
        # `attend` divides by sqrt(2 key_dim), the width of both together. The paper divides q·k by sqrt(key_dim), and
        # the bias by nothing, hence the two factors.
        q = torch.cat((q * 2**0.5, (bias_q * (2 * key_dim) ** 0.5).expand_as(q)), dim=-1)
        read = attend(
            q,
            torch.cat((k, bias_k.expand_as(k)), dim=-1),
            values,
            None if mask is None else mask.reshape(-1, chunk),
            causal=self.dims.causal,
            dropout=self.dims.dropout,
            training=self.training,
            backend=self.config.backend,
        )
        return read.reshape(batch, length + padding, -1)[:, :length]


class MovingAverage(nn.Module):
    """Damped exponential moving averages in several dimensions (section 3.1 of the paper).

    A feature x is expanded to `num_averages` states, h_t = alpha beta x_t + (1 - alpha delta) h_{t-1}, with alpha and
    delta in (0, 1), and read as eta·h_t. This is a convolution with K_l = sum_n eta alpha beta (1 - alpha delta)^l. It
    is computed in float32 (float64 for float64 inputs), under autocast too. With `skip` both directions read the token
    itself, and the result is silu(averages + omega x).
    """

    def __init__(self, dim: int, num_averages: int, *, causal: bool, skip: bool) -> None:
        super().__init__()
        shape = (1 if causal else 2, dim, num_averages)  # the first axis is the direction
        self.alpha = nn.Parameter(torch.randn(shape) * 0.2)
        self.delta = nn.Parameter(torch.randn(shape) * 0.2)
        # beta alternates in sign, so that differences of averages are there from the start
        signs = 1.0 - 2.0 * (torch.arange(num_averages) % 2)
        self.beta = nn.Parameter(signs + torch.randn(shape) * 0.02)
        self.eta = nn.Parameter(torch.randn(shape) * num_averages**-0.5)
        self.omega = nn.Parameter(torch.randn(dim)) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """Average (batch, length, dim) to the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            signal = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.omega is None:
                averaged = long_convolution(signal, *self.kernels(x.shape[1], signal.dtype))
            else:
                averaged = F.silu(self._with_itself(signal, self.omega.to(signal.dtype)))
        return averaged.to(x.dtype)

    def _with_itself(self, signal: Tensor, omega: Tensor) -> Tensor:
        """Return the averages of both directions, each with the token itself, plus omega times the signal."""
        past, *future = self.kernels(signal.shape[1] + 1, signal.dtype)
        itself = omega + sum(kernel[:, 0] for kernel in future)
        # `long_convolution` begins the future at the next token, to which the kernel gives its second weight.
        return long_convolution(signal, past[:, :-1], *(kernel[:, 1:] for kernel in future)) + itself * signal

    def kernels(self, length: int, dtype: torch.dtype) -> list[Tensor]:
        """Compute the kernel of each direction, (dim, length)."""
        alpha, delta = self.alpha.to(dtype).sigmoid(), self.delta.to(dtype).sigmoid()
        weight = self.eta.to(dtype) * alpha * self.beta.to(dtype)
        rate = torch.log1p(-(alpha * delta).clamp(max=_FASTEST))
        return [exponential_kernel(*each, length) for each in zip(weight, rate, strict=True)]
