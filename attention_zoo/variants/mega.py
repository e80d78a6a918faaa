"""Mega: moving average equipped gated attention (Ma et al. 2022, arXiv:2209.10655), full and chunked.

Each feature of the stream passes through several damped exponential moving averages (EMA). One head of attention takes
its queries and keys from what comes out and its values from the stream; a reset gate multiplies what it reads, and an
update gate mixes the result with the stream. With `chunk`, attention stays within chunks of that many tokens, and only
the averages go further.

Departures from the paper:

- Softmax only, not the Laplace function. The relative bias of the scores is the rotary one, a product of two learned
  vectors turned by their positions: as more features of queries and keys it needs no matrix of length by length.
- The mixer returns update * (candidate - x), and the block around it adds its stream. That is the paper's output
  where the stream comes without a norm; behind a norm, the gate weighs the normed stream.
- Keys are as wide as one head of full attention, and values as wide as gives the mixer the weights of its four
  projections; the paper's values are twice as wide as the stream (`value_dim`).
- Averages to both sides have parameters of their own and are added, the second without the token itself: the first is
  the authors' code. Causal models look back only.
- Masked tokens count as zeros in the averages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.long_convolution import exponential_kernel, long_convolution
from attention_zoo.kernels.softmax import Backend, attend, resolve_backend
from attention_zoo.masking import zero_masked
from attention_zoo.projections import Rotary
from attention_zoo.registry import register_variant

_FASTEST = 1.0 - 1e-6
"""Largest loss of an average in a step; at 1 its logarithm would have no gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MegaConfig(VariantConfig):
    """Options of Mega.

    Raises:
        ValueError: A size is out of its range.
    """

    chunk: int | None = option(None, "tokens that attend to each other; none = all; 128 in the paper's Mega-chunk")
    num_averages: int = option(16, "moving averages of a feature (h in the paper)")
    key_dim: int = option(0, "width of queries and keys, even (z in the paper); 0 = that of one head")
    value_dim: int = option(0, "width of values (v in the paper); 0 = as many weights as full attention has")
    backend: Backend = option(
        "auto", "implementation of the attention: auto is blockwise on CPU with dropout, fused elsewhere"
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be positive, got {self.chunk}")
        if self.num_averages < 1 or min(self.key_dim, self.value_dim) < 0 or self.key_dim % 2:
            raise ValueError(f"widths may not be negative, key_dim is even, num_averages positive: {self}")


@register_variant(
    "mega",
    title="Mega",
    traits=Traits(memory="linear", complexity="O(n²); O(n c) in chunks of c", causal=True),
    paper="Ma et al. 2022, arXiv:2209.10655",
)
class Mega(SequenceMixer):
    """Moving averages bring the neighbourhood, one gated head of attention the rest."""

    config: MegaConfig

    def __init__(self, config: MegaConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        dim, key_dim = dims.dim, config.key_dim or dims.head_dim + dims.head_dim % 2
        value_dim = config.value_dim or max(8, round((2 * dim - key_dim) / 24) * 8)
        self.average = MovingAverage(dim, config.num_averages, causal=dims.causal)
        self.shared = nn.Linear(dim, key_dim, bias=dims.qkv_bias)
        self.scale, self.shift = nn.Parameter(torch.ones(2, key_dim)), nn.Parameter(torch.zeros(2, key_dim))
        self.bias = nn.Parameter(torch.randn(2, key_dim) * key_dim**-0.5)
        self.rotary = Rotary(key_dim, min(config.chunk or dims.max_length, dims.max_length))
        self.value = nn.Linear(dim, value_dim, bias=dims.qkv_bias)
        self.reset = nn.Linear(dim, value_dim, bias=dims.qkv_bias)
        self.update = nn.Linear(dim, dim, bias=dims.qkv_bias)
        self.candidate = nn.Linear(dim, dim, bias=dims.qkv_bias)
        self.out = nn.Linear(value_dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Average, attend and gate; see `SequenceMixer.forward`."""
        self.check_input(x, mask)
        signal = zero_masked(x, mask)
        averaged = self.average(signal)
        read = self._attend(F.silu(self.shared(averaged)), F.silu(self.value(signal)), mask)
        candidate = F.silu(self.candidate(averaged) + self.out(F.silu(self.reset(averaged)) * read))
        return zero_masked(self.update(averaged).sigmoid() * (candidate - signal), mask)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation of the attention; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend(self.config.backend, device, dropout=self.dims.dropout)

    def _attend(self, shared: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in every chunk: (batch, length, key_dim) and (batch, length, value_dim) to the latter."""
        batch, length, key_dim = shared.shape
        chunk = min(self.config.chunk or length, length)
        padding = -length % chunk
        if padding:
            real = torch.ones(batch, length, dtype=torch.bool, device=shared.device) if mask is None else mask
            mask = F.pad(real, (0, padding))
            shared, values = (F.pad(each, (0, 0, 0, padding)) for each in (shared, values))
        shared, values = (each.reshape(-1, 1, chunk, each.shape[-1]) for each in (shared, values))
        q, k = (shared * scale + shift for scale, shift in zip(self.scale, self.shift, strict=True))
        bias_q, bias_k = self.rotary(self.bias[:, None, None].expand(-1, 1, chunk, -1)).to(q.dtype)
        # `attend` divides by the root of twice key_dim; the paper divides q k by that of key_dim, and the bias by none.
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
    """Damped exponential moving averages in several dimensions (paper, section 3.1).

    A feature is expanded to h_t = alpha beta x_t + (1 - alpha delta) h_{t-1} and read as eta . h_t, with alpha and
    delta in (0, 1): a convolution with a sum of exponentials. It computes in float32 (float64 for float64 inputs),
    under autocast too.
    """

    def __init__(self, dim: int, num_averages: int, *, causal: bool) -> None:
        super().__init__()
        shape = (1 if causal else 2, dim, num_averages)
        self.alpha = nn.Parameter(torch.randn(shape) * 0.2)
        self.delta = nn.Parameter(torch.randn(shape) * 0.2)
        signs = 1.0 - 2.0 * (torch.arange(num_averages) % 2)
        self.beta = nn.Parameter(signs + torch.randn(shape) * 0.02)
        self.eta = nn.Parameter(torch.randn(shape) * num_averages**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Average (batch, length, dim) to the same shape."""
        with torch.autocast(x.device.type, enabled=False):
            signal = x.to(torch.promote_types(x.dtype, torch.float32))
            averaged = long_convolution(signal, *self.kernels(x.shape[1], signal.dtype))
        return averaged.to(x.dtype)

    def kernels(self, length: int, dtype: torch.dtype) -> list[Tensor]:
        """Compute the kernel of each direction, (dim, length)."""
        alpha, delta = self.alpha.to(dtype).sigmoid(), self.delta.to(dtype).sigmoid()
        weight = self.eta.to(dtype) * alpha * self.beta.to(dtype)
        rate = torch.log1p(-(alpha * delta).clamp(max=_FASTEST))
        return [exponential_kernel(*each, length) for each in zip(weight, rate, strict=True)]
