"""Gated linear attention (Yang, Wang, Shen, Panda and Kim 2023, arXiv:2312.06635), in chunks and to both sides.

A state forgets and learns: S_t = a_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, with a gate a_t = sigmoid(w x_t + b)^(1/16).
Each head is normalised, gated by silu(r) and projected. Queries and keys are half as wide as values, as in the paper,
which leaves the weights of full attention's four projections to the last one (and the gates).

Departures from the paper:

- One gate for each head and token, as in gated retention (Sun et al. 2024, arXiv:2405.05254), where the paper has one
  for each feature of a key. The decay between any two tokens of a chunk is then a number at most 1, computed as it is:
  no division by a product that underflows, hence no second level of chunks.
- Bidirectional by two passes with gates of their own, the second over the reversed sequence and without the token
  itself, which would count twice. Causal models have the first alone.
- Masked tokens neither enter the state nor age it.
- Root mean square norm in place of layer norm.
- b starts at 4, memories of some 900 tokens; the paper leaves it at zero, 23 tokens.
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
"""Root of the gate (the value of the paper): a gate in the middle of its range forgets slowly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedLinearConfig(VariantConfig):
    """Options of gated linear attention.

    Raises:
        ValueError: The chunk is empty.
    """

    chunk: int = option(32, "tokens that meet directly, and after which the state is written; changes no result")
    gate_bias: float = option(4.0, "gate at the start, before the sigmoid: memories of about 16 exp(gate_bias) tokens")

    def __post_init__(self) -> None:
        """Refuse empty chunks."""
        if self.chunk < 1:
            raise ValueError(f"chunk must be positive, got {self.chunk}")


@register_variant(
    "gated_linear",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Yang et al. 2023, arXiv:2312.06635; gates of arXiv:2405.05254",
)
class GatedLinear(SequenceMixer):
    """Linear attention whose memory fades at a rate that each token decides.

    The recurrence computes in float32 (float64 for float64 inputs), under autocast too.
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
        self.check_input(x, mask)
        dtype = torch.promote_types(x.dtype, torch.float32)
        q, v = self._heads(self.query(x)), self._heads(self.value(x))
        k = self._heads(zero_masked(self.key(x), mask))
        decay = self._heads(
            zero_masked(F.logsigmoid(self.forget_gate(x).to(dtype)) / _TEMPERATURE, mask), directions=True
        )
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = q.to(dtype) * q.shape[-1] ** -0.5, k.to(dtype), v.to(dtype)
            read = gated_linear_attention(q, k, v, decay[..., 0], chunk=self.config.chunk)
            if not self.dims.causal:
                q, k, v, back = (each.flip(2) for each in (q, k, v, decay[..., 1]))
                read = read + gated_linear_attention(q, k, v, back, chunk=self.config.chunk, itself=False).flip(2)
            read = self.norm(read.to(self.norm.weight.dtype)).to(x.dtype)
        gated = F.silu(self.output_gate(x)) * read.transpose(1, 2).flatten(2)
        return zero_masked(self.out(F.dropout(gated, self.dims.dropout, self.training)), mask)

    def _heads(self, x: Tensor, *, directions: bool = False) -> Tensor:
        """Reshape (batch, length, features) to (batch, num_heads, length, head_dim or directions)."""
        return x.unflatten(2, (self.dims.num_heads, self.directions if directions else -1)).transpose(1, 2)


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, chunk: int, itself: bool = True
) -> Tensor:
    """Compute o_i = sum over j <= i of exp(log_decay_{j+1} + ... + log_decay_i) (q_i . k_j) v_j, chunk by chunk.

    Args:
        q: (batch, num_heads, length, key_dim).
        k: (batch, num_heads, length, key_dim).
        v: (batch, num_heads, length, value_dim).
        log_decay: (batch, num_heads, length), at most 0.
        chunk: Tokens in a chunk.
        itself: Whether j = i belongs to the sum.

    Returns:
        (batch, num_heads, length, value_dim).
    """
    length = q.shape[2]
    chunk = min(chunk, length)
    count = -(-length // chunk)
    padding = count * chunk - length
    q, k, v = (F.pad(each, (0, 0, 0, padding)).unflatten(2, (count, chunk)) for each in (q, k, v))
    total = F.pad(log_decay, (0, padding)).unflatten(2, (count, chunk)).cumsum(dim=-1)
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril(0 if itself else -1)
    # Hidden pairs are set before the exponential: a growing one would overflow, and its gradient be NaN.
    between = (total[..., :, None] - total[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    near = ((q @ k.transpose(-2, -1)) * between) @ v
    to_end = (total[..., -1:] - total).exp()
    written = (k * to_end[..., None]).transpose(-2, -1) @ v
    kept = total[..., -1].exp()[..., None, None]
    state, states = torch.zeros_like(written[:, :, 0]), []
    for number in range(count):
        states.append(state)
        state = kept[:, :, number] * state + written[:, :, number]
    far = (q * total.exp()[..., None]) @ torch.stack(states, dim=2)
    return (near + far).flatten(2, 3)[:, :, :length]
