"""Linformer: keys and values projected along the length (Wang et al. 2020, arXiv:2006.04768).

Softmax attention to `rank` learned mixtures of the keys and values, E K and F V, in place of the tokens themselves.

Departures from the paper:

- Masked tokens are zero in the mixtures; the paper has no masks. A mixture is of positions, so it depends on where in
  the sequence a token stands.
- Every layer has its own E and F; sharing between layers is not offered, for a mixer knows nothing of the others.
- E and F start normal with standard deviation max_length^(-1/2), which keeps the scale of a key; for shorter sequences
  their first columns are used.
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
    """Options of the Linformer.

    Raises:
        ValueError: The rank is not positive.
    """

    rank: int = option(16, "mixtures of keys and of values that queries attend to (k in the paper)")
    share: Literal["none", "heads", "key_value"] = option(
        "heads", "none: each head has its E and F; heads: one E and F; key_value: one E for keys and values of all"
    )

    def __post_init__(self) -> None:
        """Check the rank."""
        if self.rank < 1:
            raise ValueError(f"rank must be positive, got {self.rank}")


@register_variant(
    "linformer",
    title="Linformer",
    traits=Traits(memory="linear", complexity="O(n k), k the rank"),
    paper="Wang et al. 2020, arXiv:2006.04768",
)
class Linformer(SequenceMixer):
    """Softmax attention to a fixed number of learned mixtures of the tokens."""

    config: LinformerConfig

    def __init__(self, config: LinformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        shape = (dims.num_heads if config.share == "none" else 1, config.rank, dims.max_length)
        self.key_mixture = nn.Parameter(torch.randn(shape) * dims.max_length**-0.5)
        self.value_mixture = (
            None if config.share == "key_value" else nn.Parameter(torch.randn(shape) * dims.max_length**-0.5)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        self.check_input(x, mask)
        q, k, v = self.projections.split(x)
        if mask is not None:
            k, v = (tokens.masked_fill(~mask[:, None, :, None], 0.0) for tokens in (k, v))
        of_keys = self.key_mixture[..., : x.shape[1]]
        of_values = of_keys if self.value_mixture is None else self.value_mixture[..., : x.shape[1]]
        heads = attend(q, of_keys @ k, of_values @ v, dropout=self.dims.dropout, training=self.training)
        return self.projections.merge(heads, mask)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend("auto", device, dropout=self.dims.dropout)
