# SPDX-License-Identifier: Apache-2.0
"""Gated attention unit (GAU; Hua, Dai, Liu and Le 2022, arXiv:2202.10447): one weak head of attention inside a gate.

    u = silu(W_u x),  v = silu(W_v x),  z = silu(W_z x),  q = κ_q z + μ_q,  k = κ_k z + μ_k
    out = W_o (u (A v)),    A_ij = relu(q_i·k_j / sqrt(s) + b_{i-j})² / n,

where products without W are taken entry by entry, s = 128 is the width of queries and keys, and n counts the tokens.

This is the quadratic form (section 2.2, FLASH-Quad). With `kernel="softmax"`, A is the softmax of the same scores, with
which the paper compares.

Departures:

- The paper's code divides q·k by n inside the square, so that all weights together shrink as 1 / n. Here they do not
  depend on the length: the division by sqrt(s) is inside, that by n outside.
- n counts real tokens; in causal models, those up to the query.
- κ starts at 1 and μ at 0; in the paper κ starts at random, with a deviation of 0.02.
- b is the dot product of two learned vectors, 32 wide, rotated by their positions; it enters as more features of
  queries and keys. This is the paper's form for long sequences. Rotary and sinusoidal positions, which the paper has as
  well, are not added.
- `width=0` takes u and v so wide that the mixer has the weights of full attention. In the paper they are twice as wide
  as the stream, and a unit stands for attention and feed-forward layer together.
- Dropout acts on u (A v), not on the weights.
- The number of heads has no meaning here and is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.linear_attention import computed_again
from attention_zoo.kernels.softmax import attend
from attention_zoo.masking import zero_masked
from attention_zoo.projections import Rotary, initialise
from attention_zoo.registry import register_variant

_BIAS_DIM = 32
"""Width of the vectors whose dot product is the bias."""
_QUERIES = 256
"""Queries whose scores are made together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GauConfig(VariantConfig):
    """Options of the gated attention unit."""

    kernel: Literal["relu2", "softmax"] = option("relu2", "weights from scores: squared ReLU, or softmax")
    bias: bool = option(True, "add a learned bias of the distance to the scores (b)")
    key_dim: int = option(128, "width of queries and keys (s)", least=1)
    width: int = option(
        0, "width of values and gate (e in the paper); 0 gives as many weights as full attention has", least=0
    )

    def resolved(self, dims: LayerDims) -> GauConfig:
        """Return the options with the width that 0 means."""
        # 3 dim width + dim key_dim = 4 dim², rounded to a multiple of 8
        return replace(self, width=self.width or max(8, round((4 * dims.dim - self.key_dim) / 24) * 8))


@register_variant(
    "gau",
    title="Gated attention unit",
    family="attention",
    traits=Traits(memory="linear", complexity="O(n²)", causal=True),
    paper="Hua et al. 2022, arXiv:2202.10447",
)
class Gau(SequenceMixer):
    """One head of attention without a softmax, whose result gates the token and is gated by it."""

    config: GauConfig

    def __init__(self, config: GauConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        dim, key_dim, width = dims.dim, config.key_dim, config.resolved(dims).width
        self.gate = nn.Linear(dim, width, bias=dims.qkv_bias)
        self.value = nn.Linear(dim, width, bias=dims.qkv_bias)
        self.shared = nn.Linear(dim, key_dim, bias=dims.qkv_bias)
        self.out = nn.Linear(width, dim, bias=dims.qkv_bias)
        initialise(self.gate, self.value, self.shared, self.out)
        # κ and μ, for queries and for keys: (2, key_dim)
        self.scale, self.shift = nn.Parameter(torch.ones(2, key_dim)), nn.Parameter(torch.zeros(2, key_dim))
        if config.bias:
            self.distance = nn.Parameter(torch.randn(2, _BIAS_DIM) * _BIAS_DIM**-0.5)
            self.rotary = Rotary(_BIAS_DIM, dims.max_length)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend and gate; see `SequenceMixer.forward`."""
        q, k = self._queries_and_keys(F.silu(self.shared(x)))
        v, causal = zero_masked(F.silu(self.value(x)), mask), self.dims.causal
        if self.config.kernel == "softmax":
            q = q * q.shape[-1] ** 0.5  # `attend` divides by the square root of the width
            read = attend(q[:, None], k[:, None], v[:, None], mask, causal=causal)[:, 0]
        else:
            # relu(q·k / sqrt(n))² = relu(q·k)² / n: no sum grows with the length.
            read = squared_relu_attention(q * _seen(x, mask, causal=causal).rsqrt().to(q.dtype), k, v, causal=causal)
        return zero_masked(self.out(self.dropped(F.silu(self.gate(x)) * read)), mask)

    def state_size(self, length: int) -> int:
        """Shared vector, of which the key is made, and value of all tokens."""
        return length * (self.shared.out_features + self.value.out_features)

    def _queries_and_keys(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Make queries and keys of z whose dot products are the scores, b included: (batch, length, features)."""
        q, k = (shared * scale + shift for scale, shift in zip(self.scale, self.shift, strict=True))
        q = q * self.config.key_dim**-0.5
        if not self.config.bias:
            return q, k
        # (2, 1, length, 32): after the rotation the dot product of the two depends on the distance alone.
        turned = self.rotary(self.distance[:, None, None].expand(-1, 1, shared.shape[1], -1)).to(q.dtype)
        q, k = (
            torch.cat((own, bias.expand(len(shared), -1, -1)), dim=-1) for own, bias in zip((q, k), turned, strict=True)
        )
        return q, k


def squared_relu_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Compute Σ_j relu(q_i·k_j)² v_j for a block of queries at a time.

    The scores of a block are computed again in backward, so that memory is linear in the length.

    Args:
        q: (batch, length, key_dim).
        k: (batch, length, key_dim).
        v: (batch, length, value_dim); zero for tokens that are not to be seen.
        causal: Leave out j > i.

    Returns:
        (batch, length, value_dim).
    """
    read = []
    for start in range(0, q.shape[1], _QUERIES):
        keys = start + _QUERIES if causal else q.shape[1]
        block = _causal_block if causal else _block
        read.append(computed_again(block, q[:, start : start + _QUERIES], k[:, :keys], v[:, :keys]))
    return torch.cat(read, dim=1)


def _block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let (batch, queries, key_dim) see all keys."""
    return (q @ k.transpose(1, 2)).relu().square() @ v


def _causal_block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let queries that stand at the end of the keys see those up to their own place."""
    return (q @ k.transpose(1, 2)).relu().square().tril(k.shape[1] - q.shape[1]) @ v


def _seen(x: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Count the real tokens that each token sees, at least 1, in float32 at least: (batch or 1, length or 1, 1)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    real = x.new_ones(1, x.shape[1], dtype=dtype) if mask is None else mask.to(dtype)
    count = real.cumsum(dim=1) if causal else real.sum(dim=1, keepdim=True)
    return count.clamp_min(1.0)[..., None]
