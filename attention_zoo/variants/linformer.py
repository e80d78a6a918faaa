# SPDX-License-Identifier: Apache-2.0
"""Linformer: keys and values projected along the length (Wang et al. 2020, arXiv:2006.04768).

Queries attend to `rank` learned mixtures of the keys and values, not to the tokens themselves (equation 7):
softmax(q (E k)ᵀ / sqrt(head_dim)) (F v), with E and F of shape (rank, length). The cost is linear in the length.

Departures from the paper:

- Masked tokens are zero in the mixtures; the paper has no masks. The weights of a mixture belong to positions, so the
  result depends on where in the sequence a token stands.
- Every layer has its own E and F. Sharing them between layers is not offered, because a mixer does not know the others.
  Nyströmformer's code shares one E among all layers.
- E and F are drawn from a normal distribution with standard deviation max_length^(-1/2), which keeps the scale of a
  key. For shorter sequences their first columns are used.

The code of Long Range Arena has one E for keys and values (`share="key_value"`), Nyströmformer's one for each head
(`share="key_value_by_head"`). The first mixes padding in like any token; the second drops no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.softmax import attend, resolve_backend
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class LinformerConfig(QkvConfig):
    """Options of the Linformer."""

    rank: int = option(16, "number of mixtures of keys and of values that queries attend to (k in the paper)", least=1)
    share: Literal["none", "heads", "key_value", "key_value_by_head"] = option(
        "heads",
        "none: each head has its own E and F; heads: all heads share them; key_value: F is E as well; "
        "key_value_by_head: each head has its own E, and F is E",
    )


@register_variant(
    "linformer",
    title="Linformer",
    family="low rank",
    traits=Traits(memory="linear", complexity="O(n k), k the rank"),
    paper="Wang et al. 2020, arXiv:2006.04768",
)
class Linformer(SequenceMixer):
    """Softmax attention to a fixed number of learned mixtures of the tokens."""

    config: LinformerConfig

    def __init__(self, config: LinformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        # E and F: (num_heads or 1, rank, max_length); an axis of size 1 is shared by all heads.
        own = config.share in ("none", "key_value_by_head")
        shape = (dims.num_heads if own else 1, config.rank, dims.max_length)
        self.key_mixture = nn.Parameter(torch.randn(shape) * dims.max_length**-0.5)
        self.value_mixture = (
            nn.Parameter(torch.randn(shape) * dims.max_length**-0.5) if config.share in ("none", "heads") else None
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        if mask is not None:  # a masked token adds nothing to a mixture
            k, v = (tokens.masked_fill(~mask[:, None, :, None], 0.0) for tokens in (k, v))
        of_keys = self.key_mixture[..., : x.shape[1]]
        of_values = of_keys if self.value_mixture is None else self.value_mixture[..., : x.shape[1]]
        # E k and F v: (num_heads or 1, rank, length) @ (batch, num_heads, length, head_dim). Every mixture may be seen.
        heads = attend(q, of_keys @ k, of_values @ v, dropout=self.dims.dropout, training=self.training)
        return self.projections.merge(heads, mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The mixtures of keys and of values, which are sums over the tokens."""
        return self.projections.cache_size(self.config.rank)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend("auto", device, dropout=self.dims.dropout)
