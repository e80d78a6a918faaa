# SPDX-License-Identifier: Apache-2.0
"""Synthesizer: attention weights without dot products of tokens (Tay et al. 2021, arXiv:2005.00743).

Each head computes softmax(B) v. The scores B are one of

- "factorised": R₁ R₂ᵀ, with two learned tables of `rank` columns, as in the code of Long Range Arena;
- "random": a learned matrix with max_length² parameters for each head;
- "dense": row i is W₂ relu(W₁ x_i) + b₂, from the token of the query alone.

With `dot_product`, q·k / sqrt(head_dim) is added to B. The published row of Long Range Arena is `kind="random"` with it
on all tasks: its code adds dot products unless told otherwise, and the one file that says otherwise, that of Text, says
it where nothing reads it. So this row is full attention with a learned matrix added to its scores.

Departures from the paper:

- Factorised and dense scores are dot products of one vector for each query and one for each key. So they go through the
  same fused attention as other variants and are never written out. Only "random" needs memory quadratic in the length.
- The hidden layer of "dense" is as wide as a head, and there is a bias for every key, as in the code of Long Range
  Arena; each head has its own W₂.
- "factorised" is the paper's factorised random kind. The factorised dense kind and mixtures of several B are not
  offered.
- A sum of B and q·k is one softmax of the sum, as in the code of Long Range Arena. In the paper's mixtures each part
  has a weight, which is learned.
- Parameters are drawn from a normal distribution. Its standard deviation is `rank`^(-1/4) for the factors, 1 for
  "random", and head_dim^(-1/2) for "dense". With `dot_product` and "random" it is (heads * max_length)^(-1/2), as in
  the code of Long Range Arena, so that the matrix starts near zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.softmax import attend, resolve_backend
from attention_zoo.masking import masked_softmax, zero_masked
from attention_zoo.projections import initialise
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthesizerConfig(VariantConfig):
    """Options of the Synthesizer."""

    kind: Literal["factorised", "random", "dense"] = option(
        "factorised", "weights from two learned tables, from one learned matrix, or from the token of the query"
    )
    rank: int = option(32, "number of columns of the tables of the factorised kind (k in the paper)", least=1)
    dot_product: bool = option(False, "add q·k / sqrt(head_dim) to the scores, as the code of Long Range Arena does")


@register_variant(
    "synthesizer",
    title="Synthesizer",
    family="attention",
    traits=Traits(memory="linear", complexity="O(n²)"),
    paper="Tay et al. 2021, arXiv:2005.00743",
)
class Synthesizer(SequenceMixer):
    """Attention with weights from positions, or from the token of the query alone.

    Memory is linear for the default kind and for "dense"; "random" has its matrix as a parameter.
    """

    config: SynthesizerConfig

    def __init__(self, config: SynthesizerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        width = dims.num_heads * dims.head_dim
        self.value = nn.Linear(dims.dim, width, bias=dims.qkv_bias)
        self.out = nn.Linear(width, dims.dim, bias=dims.qkv_bias)
        self.hidden = nn.Linear(dims.dim, width, bias=dims.qkv_bias) if config.kind == "dense" else None
        self.query, self.key = (
            nn.Linear(dims.dim, width, bias=dims.qkv_bias) if config.dot_product else None for _ in range(2)
        )
        linears = self.value, self.out, self.hidden, self.query, self.key
        initialise(*(linear for linear in linears if linear is not None))
        heads, length = dims.num_heads, dims.max_length
        if config.kind == "random":
            # B of the longest sequence; shorter ones use its upper left corner
            scale = (heads * length) ** -0.5 if config.dot_product else 1.0
            self.scores = nn.Parameter(torch.randn(heads, length, length) * scale)
        elif config.kind == "factorised":
            # A sum of `rank` products of two numbers of variance rank^(-1/2) has variance 1, as q·k / sqrt(d) has.
            self.query_table = nn.Parameter(torch.randn(heads, length, config.rank) * config.rank**-0.25)
            self.key_table = nn.Parameter(torch.randn(heads, length, config.rank) * config.rank**-0.25)
        else:
            # W₂, a row for every key, and b₂
            self.key_table = nn.Parameter(torch.randn(heads, length, dims.head_dim) * dims.head_dim**-0.5)
            self.key_bias = nn.Parameter(torch.zeros(heads, length, 1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix by synthetic weights; see `SequenceMixer.forward`."""
        v = self._to_heads(self.value(x))
        # q / sqrt(head_dim) and k, (batch, num_heads, length, head_dim), if dot products are added
        q, k = (None if linear is None else self._to_heads(linear(x)) for linear in (self.query, self.key))
        q = None if q is None else q * q.shape[-1] ** -0.5
        if self.config.kind == "random":
            heads = self._mix_by_matrix(v, mask, None if q is None or k is None else q @ k.transpose(-2, -1))
        else:
            queries, keys = self._factors(x)
            if q is not None and k is not None:  # [q, query]·[k, key] = q·k + query·key
                queries, keys = torch.cat((q, queries.to(q.dtype)), dim=-1), torch.cat((k, keys.to(k.dtype)), dim=-1)
            queries = queries * queries.shape[-1] ** 0.5  # `attend` divides by this: the scores have no scale
            heads = attend(
                queries.to(v.dtype),
                keys.to(v.dtype),
                v,
                mask,
                dropout=self.dims.dropout,
                training=self.training,
            )
        return zero_masked(self.out(heads.transpose(1, 2).flatten(2)), mask)

    def state_size(self, length: int) -> int:
        """Values of all tokens, and with `dot_product` their keys."""
        return length * self.value.out_features * (2 if self.config.dot_product else 1)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend(
            "reference" if self.config.kind == "random" else "auto", device, dropout=self.dims.dropout
        )

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two tensors, (batch, num_heads, length, rank), whose dot products are the scores.

        For "dense" the rank is head_dim + 1: the hidden layer, and a column for the bias.
        """
        batch, length = x.shape[:2]
        keys = self.key_table[:, :length]
        if self.hidden is None:
            return self.query_table[:, :length].expand(batch, -1, -1, -1), keys.expand(batch, -1, -1, -1)
        hidden = self._to_heads(self.hidden(x).relu())
        # [hidden, 1]·[W₂ row, b₂] = W₂ row·hidden + b₂
        keys = torch.cat((keys, self.key_bias[:, :length]), dim=-1)
        return F.pad(hidden, (0, 1), value=1.0), keys.expand(batch, -1, -1, -1)

    def _mix_by_matrix(self, v: Tensor, mask: Tensor | None, dots: Tensor | None) -> Tensor:
        """Mix v, (batch, num_heads, length, head_dim), by the learned matrix, to which `dots` may be added."""
        length = v.shape[2]
        scores = self.scores[None, :, :length, :length]
        scores = scores if dots is None else scores + dots
        weights = masked_softmax(scores, None if mask is None else mask[:, None, None, :])
        return self.dropped(weights).to(v.dtype) @ v

    def _to_heads(self, x: Tensor) -> Tensor:
        """Reshape (batch, length, num_heads * head_dim) to (batch, num_heads, length, head_dim)."""
        return x.unflatten(2, (self.dims.num_heads, self.dims.head_dim)).transpose(1, 2)
