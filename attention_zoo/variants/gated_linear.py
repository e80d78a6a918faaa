# SPDX-License-Identifier: Apache-2.0
"""Gated linear attention (Yang, Wang, Shen, Panda and Kim 2023, arXiv:2312.06635), in chunks and to both sides.

A state S, (key_dim, value_dim), forgets and learns, and is read by the query:

    S_t = a_t S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t,  with the gate a_t = sigmoid(w x_t + b)^(1/16).

The result of each head is normalised, gated by silu(r) and projected. Queries and keys are half as wide as values, as
in the paper, so that the projections have exactly the weights of full attention's four (the forget gates come on top).

The recurrence is computed in chunks (the paper's chunkwise form): within a chunk tokens meet directly, as in attention,
with the product of the gates between them as a factor; across chunks the state carries what was written.

Departures from the paper:

- There is one gate for each head and token, as in gated retention (Sun et al. 2024, arXiv:2405.05254); the paper has
  one for each feature of a key, and needs a second level of chunks.
- Both directions have a state and gates of their own. The second runs from the end and leaves out the token itself,
  which would count twice. Causal models have only the first.
- Masked tokens are not written into the state, and the state does not decay at them.
- The norm is a root mean square norm, not a layer norm.
- b starts at 4, which makes memories of about 900 tokens; in the paper it starts at zero, which makes 23.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.masking import zero_masked
from attention_zoo.registry import register_variant

_TEMPERATURE = 16.0
"""The gate is the 16th root of a sigmoid, as in the paper, so that a gate in the middle of its range forgets slowly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedLinearConfig(VariantConfig):
    """Options of gated linear attention.

    Raises:
        ValueError: The chunk is empty.
    """

    chunk: int = option(32, "tokens that meet directly, without the state; affects speed but not results")
    gate_bias: float = option(4.0, "bias of the gates at the start: memories of about 16 exp(gate_bias) tokens")

    def __post_init__(self) -> None:
        """Check the size of a chunk."""
        if self.chunk < 1:
            raise ValueError(f"chunk must be positive, got {self.chunk}")


@register_variant(
    "gated_linear",
    title="Gated linear attention",
    family="gated recurrence",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Yang et al. 2023, arXiv:2312.06635; gates of arXiv:2405.05254",
)
class GatedLinear(SequenceMixer):
    """Linear attention whose memory fades at a rate that each token decides.

    The recurrence is computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: GatedLinearConfig

    def __init__(self, config: GatedLinearConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        width, key_width = dims.num_heads * dims.head_dim, dims.num_heads * max(1, dims.head_dim // 2)
        self.directions = 1 if dims.causal else 2
        self.query = nn.Linear(dims.dim, key_width, bias=dims.qkv_bias)
        self.key = nn.Linear(dims.dim, key_width, bias=dims.qkv_bias)
        self.value = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
        self.output_gate = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
        self.forget_gate = nn.Linear(dims.dim, self.directions * dims.num_heads)
        self.norm = nn.RMSNorm(dims.head_dim, eps=1e-5)
        self.out = nn.Linear(width, dims.dim, bias=dims.qkv_bias)
        for linear in (self.query, self.key, self.value, self.output_gate, self.out):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.constant_(self.forget_gate.bias, config.gate_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read a fading memory; see `SequenceMixer.forward`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        q, v = self._heads(self.query(x)), self._heads(self.value(x))
        k = self._heads(zero_masked(self.key(x), mask))
        # log a, (batch, num_heads, length) for each direction; zero at masked tokens, which neither write (k = 0) nor
        # decay.
        gates = F.logsigmoid(self.forget_gate(x).to(dtype)) / _TEMPERATURE
        past, *future = zero_masked(gates, mask).transpose(1, 2).split(self.dims.num_heads, dim=1)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = q.to(dtype) * q.shape[-1] ** -0.5, k.to(dtype), v.to(dtype)
            read = gated_linear_attention(q, k, v, past, *future, chunk=self.config.chunk)
            # (batch, num_heads, length, head_dim), normalised over each head
            read = self.norm(read.to(self.norm.weight.dtype)).to(x.dtype)
        gated = F.silu(self.output_gate(x)) * read.transpose(1, 2).flatten(2)
        return zero_masked(self.out(F.dropout(gated, self.dims.dropout, self.training)), mask)

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape (batch, length, features) to (batch, num_heads, length, head_dim)."""
        return x.unflatten(2, (self.dims.num_heads, -1)).transpose(1, 2)


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, past: Tensor, future: Tensor | None = None, *, chunk: int
) -> Tensor:
    """Compute o_i = sum_j w_ij (q_i . k_j) v_j, chunk by chunk.

    For j <= i, log w_ij = past_{j+1} + ... + past_i: what j wrote has decayed at every later token up to i. For j > i,
    log w_ij = future_i + ... + future_{j-1}, in the same way from the other side.

    Args:
        q: (batch, num_heads, length, key_dim).
        k: (batch, num_heads, length, key_dim).
        v: (batch, num_heads, length, value_dim).
        past: Logarithm of the decay, at most 0, (batch, num_heads, length).
        future: The same for j > i; None leaves j > i out.
        chunk: Tokens that meet directly.

    Returns:
        (batch, num_heads, length, value_dim).
    """
    length = q.shape[2]
    chunk = min(chunk, length)
    q, k, v = (_chunks(each, chunk) for each in (q, k, v))  # (batch, num_heads, chunks, chunk, features)
    # log of the decay from the start of the chunk to each token: (batch, num_heads, chunks, chunk)
    since = _chunks(past[..., None], chunk)[..., 0].cumsum(dim=-1)
    # log w_ij within a chunk, for j <= i: (batch, num_heads, chunks, chunk, chunk)
    apart = since[..., :, None] - since[..., None, :]
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    # Across chunks the decay from j to i has three factors: from j to the end of its chunk (write), through the
    # chunks between (kept), and from the start of i's chunk to i (read).
    read, write, kept = since.exp(), (since[..., -1:] - since).exp(), since[..., -1].exp()
    far = (q * read[..., None]) @ _states((k * write[..., None]).transpose(-2, -1) @ v, kept)
    if future is None:
        apart = apart.masked_fill(later, -torch.inf)  # exp gives zero: the future is not seen
    else:
        # The same from the end. `before` sums the gates of the chunk in front of a token, so that the decay from j > i
        # to i is before_j - before_i.
        steps = _chunks(future[..., None], chunk)[..., 0]
        until = steps.cumsum(dim=-1)
        before = until - steps
        apart = torch.where(later, before[..., None, :] - before[..., :, None], apart)
        read, write, kept = (until[..., -1:] - before).exp(), before.exp(), until[..., -1].exp()
        written = (k * write[..., None]).transpose(-2, -1) @ v
        far = far + (q * read[..., None]) @ _states(written.flip(2), kept.flip(2)).flip(2)
    # All exponents are sums of decays and never positive, so that nothing overflows.
    near = ((q @ k.transpose(-2, -1)) * apart.exp()) @ v
    return (near + far).flatten(2, 3)[:, :, :length]


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """Cut (batch, num_heads, length, features) into (batch, num_heads, chunks, chunk, features), zeros at the end."""
    missing = -x.shape[2] % chunk
    return (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(2, (-1, chunk))


def _states(written: Tensor, kept: Tensor) -> Tensor:
    """Run state = kept * state + written over the chunks, from zero, and return the state before each chunk.

    Args:
        written: (batch, num_heads, chunks, key_dim, value_dim).
        kept: (batch, num_heads, chunks).
    """
    state, states = torch.zeros_like(written[:, :, 0]), []
    for number in range(written.shape[2]):
        states.append(state)
        state = kept[:, :, number, None, None] * state + written[:, :, number]
    return torch.stack(states, dim=2)
