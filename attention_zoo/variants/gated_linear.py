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
from attention_zoo.kernels.decayed_attention import decayed_attention
from attention_zoo.masking import zero_masked
from attention_zoo.registry import register_variant

_TEMPERATURE = 16.0
"""The gate is the 16th root of a sigmoid, as in the paper, so that a gate in the middle of its range forgets slowly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedLinearConfig(VariantConfig):
    """Options of gated linear attention."""

    chunk: int = option(32, "tokens that meet directly, without the state; affects speed but not results", least=1)
    gate_bias: float = option(4.0, "bias of the gates at the start: memories of about 16 exp(gate_bias) tokens")


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
            read = decayed_attention(q, k, v, past, *future, chunk=self.config.chunk)
            # (batch, num_heads, length, head_dim), normalised over each head
            read = self.norm(read.to(self.norm.weight.dtype)).to(x.dtype)
        gated = F.silu(self.output_gate(x)) * read.transpose(1, 2).flatten(2)
        return zero_masked(self.out(self.dropped(gated)), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The state of each direction."""
        key_dim = max(1, self.dims.head_dim // 2)
        return self.directions * self.dims.num_heads * key_dim * self.dims.head_dim

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape (batch, length, features) to (batch, num_heads, length, head_dim)."""
        return x.unflatten(2, (self.dims.num_heads, -1)).transpose(1, 2)
