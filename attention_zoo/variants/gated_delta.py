# SPDX-License-Identifier: Apache-2.0
"""DeltaNet and Gated DeltaNet: a memory that replaces what it holds under a key, in chunks and to both sides.

A state S, (key_dim, value_dim), maps keys to values. Each token first erases what S has for its key, and then writes:

    S_t = λ_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,    o_t = S_tᵀ q_t,

with queries and keys of norm one and β = sigmoid(w·x) for each head.

- `gate=false` is DeltaNet (Yang, Wang, Zhang, Shen and Kim 2024, arXiv:2406.06484): λ = 1, and each head is normalised
  and projected.
- `gate=true` is Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464): λ = exp(-rate softplus(u·x + b)),
  as in Mamba-2, and silu(r x) gates each normalised head. Keys are half as wide as values, as in the paper.

So both have the weights of full attention's four projections, and gates on top. Queries, keys and values pass through a
short convolution and a silu, as in both papers. The recurrence is computed in chunks: with Λ_t = λ_1 ... λ_t within a
chunk that starts from S_0, the tokens write

    S_t = Λ_t S_0 + Σ_{i<=t} Λ_t / Λ_i k_i u_iᵀ,    (I + A) U = diag(β) V - diag(β Λ) K S_0,

where A_ti = β_t Λ_t / Λ_i k_t·k_i for i < t. This triangular system is solved for both terms at once (the WY form of
section 3.2 of arXiv:2406.06484, with the decays of section 3.3 of arXiv:2412.06464). A chunk is then an affine map of
S_0, and neighbouring maps are composed in a tree, whose depth is the logarithm of the number of chunks.

Departures:

- There are two passes, one from each end, with β and λ of their own. Their results are added before the norm. Both
  contain the token itself. Causal models have only the first.
- The short convolution reaches `conv_size` - 1 tokens to both sides. In causal models it looks back only, as in the
  papers.
- Masked tokens neither write nor decay; in the short convolution they count as zeros.
- The widths are chosen for the number of weights: in the papers all values together are wider than the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.decayed_attention import decay_weights, split_chunks
from attention_zoo.masking import zero_masked
from attention_zoo.projections import initialise
from attention_zoo.registry import register_variant
from attention_zoo.selective_decay import SelectiveDecay


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDeltaConfig(VariantConfig):
    """Options of the delta rule."""

    gate: bool = option(True, "forget by λ and gate the heads (Gated DeltaNet); without, it is DeltaNet")
    conv_size: int = option(
        4, "tokens that the short convolution sees, itself and those before; 0 leaves it out", least=0
    )
    chunk: int = option(32, "tokens that meet directly, without the state; affects speed but not results", least=1)


@register_variant(
    "gated_delta",
    title="Gated DeltaNet",
    family="gated recurrence",
    traits=Traits(memory="linear", complexity="O(n)", causal=True),
    paper="Yang et al. 2024, arXiv:2412.06464; without gate: Yang et al. 2024, arXiv:2406.06484",
)
class GatedDelta(SequenceMixer):
    """Linear attention whose memory holds one value for each key: a new one takes the place of the old.

    The recurrence is computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: GatedDeltaConfig

    def __init__(self, config: GatedDeltaConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        width = dims.num_heads * dims.head_dim
        key_width = dims.num_heads * max(1, dims.head_dim // 2) if config.gate else width
        self.widths = (key_width, key_width, width)
        gates = dims.num_heads if dims.causal else 2 * dims.num_heads
        self.query = nn.Linear(dims.dim, key_width, bias=dims.qkv_bias)
        self.key = nn.Linear(dims.dim, key_width, bias=dims.qkv_bias)
        self.value = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
        self.out = nn.Linear(width, dims.dim, bias=dims.qkv_bias)
        initialise(self.query, self.key, self.value, self.out)
        self.write = nn.Linear(dims.dim, gates)  # β before the sigmoid
        if config.gate:
            self.decay = SelectiveDecay(dims.dim, gates)
            self.output_gate = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
            initialise(self.output_gate)
        if config.conv_size:
            channels, taps = sum(self.widths), config.conv_size if dims.causal else 2 * config.conv_size - 1
            self.short = nn.Conv1d(channels, channels, taps, groups=channels, bias=False)
        self.norm = nn.RMSNorm(dims.head_dim, eps=1e-5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Write to the memory and read it; see `SequenceMixer.forward`."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        features = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)
        features = F.silu(self._near(zero_masked(features, mask))).to(dtype)
        # (batch, num_heads, length, key_dim or head_dim)
        q, k, v = (
            each.unflatten(2, (self.dims.num_heads, -1)).transpose(1, 2) for each in features.split(self.widths, dim=-1)
        )
        step = self.write(x).to(dtype).sigmoid()
        # β and log λ, each (batch, length, num_heads * directions) and zero at masked tokens
        step, log_decay = (
            zero_masked(each, mask) for each in (step, self.decay(x) if self.config.gate else torch.zeros_like(step))
        )
        with torch.autocast(x.device.type, enabled=False):
            read = self._read(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, step, log_decay)
            heads = self.norm(read.to(self.norm.weight.dtype)).to(x.dtype).transpose(1, 2).flatten(2)
        if self.config.gate:
            heads = F.silu(self.output_gate(x)) * heads
        return zero_masked(self.out(self.dropped(heads)), mask)

    def state_size(self, length: int) -> int:
        """The state of each direction, and the tokens that the short convolution reads."""
        directions = 1 if self.dims.causal else 2
        states = self.widths[0] * self.dims.head_dim  # key_dim by value_dim in each head
        near = min(length, max(0, self.config.conv_size - 1)) * min(self.dims.dim, sum(self.widths))
        return directions * (states + near)

    def _near(self, features: Tensor) -> Tensor:
        """Convolve (batch, length, channels) over a few tokens."""
        reach = self.config.conv_size - 1
        if reach < 0:
            return features
        padding = (reach, 0 if self.dims.causal else reach)
        mixed: Tensor = self.short(F.pad(features.transpose(1, 2), padding))
        return mixed.transpose(1, 2)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, step: Tensor, log_decay: Tensor) -> Tensor:
        """Run the delta rule from the start, and add that from the end: (batch, num_heads, length, head_dim)."""
        step, log_decay = step.transpose(1, 2), log_decay.transpose(1, 2)
        if self.dims.causal:
            return delta_rule(q, k, v, step, log_decay, chunk=self.config.chunk)
        # Both passes in one: the second is a batch of reversed sequences.
        q, k, v = (torch.cat((each, each.flip(2))) for each in (q, k, v))
        step, log_decay = (
            torch.cat((past, future.flip(2))) for past, future in (each.chunk(2, dim=1) for each in (step, log_decay))
        )
        past, future = delta_rule(q, k, v, step, log_decay, chunk=self.config.chunk).chunk(2)
        return past + future.flip(2)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, step: Tensor, log_decay: Tensor, *, chunk: int) -> Tensor:
    """Compute o_t = S_tᵀ q_t of S_t = λ_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ, chunk by chunk.

    Time and memory are linear in the length. All exponents are sums of log λ and never positive.

    Args:
        q: (batch, num_heads, length, key_dim).
        k: (batch, num_heads, length, key_dim), of norm one at most.
        v: (batch, num_heads, length, value_dim).
        step: β, from 0 to 1, (batch, num_heads, length).
        log_decay: log λ, at most 0, (batch, num_heads, length).
        chunk: Tokens that meet directly.

    Returns:
        (batch, num_heads, length, value_dim).
    """
    length, value_dim = v.shape[2:]
    chunk = min(chunk, length)
    # (batch, num_heads, chunks, chunk, features); tokens of zeros at the end neither write nor decay.
    q, k, v, step, log_decay = (split_chunks(each, chunk) for each in (q, k, v, step[..., None], log_decay[..., None]))
    log_decay = log_decay[..., 0]
    since = log_decay.cumsum(dim=-1)[..., None]  # log Λ, (batch, num_heads, chunks, chunk, 1)
    ratio = decay_weights(log_decay)  # Λ_t / Λ_i for i <= t, (batch, num_heads, chunks, chunk, chunk)
    # A; what stands on its diagonal is not read.
    overlap = step * ratio * (k @ k.transpose(-2, -1))
    solved = torch.linalg.solve_triangular(
        overlap, step * torch.cat((v, since.exp() * k), dim=-1), upper=False, unitriangular=True
    )
    # U = written - erased S_0
    written, erased = solved.split((value_dim, k.shape[-1]), dim=-1)
    # At the end of the chunk S = (Λ I - kept_kᵀ erased) S_0 + kept_kᵀ written.
    end = since[..., -1:, :]
    added, lost = ((k * (end - since).exp()).transpose(-2, -1) @ solved).split((value_dim, k.shape[-1]), dim=-1)
    state = _states(end.exp() * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - lost, added)
    read = (since.exp() * q) @ state + (ratio * (q @ k.transpose(-2, -1))) @ (written - erased @ state)
    return read.flatten(2, 3)[:, :, :length]


def _states(change: Tensor, added: Tensor) -> Tensor:
    """Return the state before each chunk of S = change S + added, which starts from zero.

    Two neighbouring maps make one, and the states between pairs give those within: a tree instead of a loop.

    Args:
        change: (batch, num_heads, chunks, key_dim, key_dim).
        added: (batch, num_heads, chunks, key_dim, value_dim).
    """
    count = change.shape[2]
    if count == 1:
        return torch.zeros_like(added)
    (first, second), (early, late) = (
        (F.pad(each, (0, 0, 0, 0, 0, 1)) if count % 2 else each).unflatten(2, (-1, 2)).unbind(3)
        for each in (change, added)
    )
    even = _states(second @ first, second @ early + late)
    return torch.stack((even, first @ even + early), dim=3).flatten(2, 3)[:, :, :count]
