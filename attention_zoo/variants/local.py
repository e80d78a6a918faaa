# SPDX-License-Identifier: Apache-2.0
"""Local attention: blocks of tokens that attend within themselves.

This is the row "Local Attention" of Long Range Arena (Tay et al. 2021, arXiv:2011.04006). As there, no token sees
beyond its block, and a CLS token is one more token of the first block.

Departures: none; the last block may be shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.blocks import fold_blocks, num_blocks, pad_mask, pad_to_blocks, unfold_blocks
from attention_zoo.kernels.softmax import BACKEND_HELP, Backend, attend, resolve_backend
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalConfig(QkvConfig):
    """Options of local attention.

    Raises:
        ValueError: The window is not positive.
    """

    window: int = option(50, "tokens in a block")
    backend: Backend = option("auto", BACKEND_HELP)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be positive, got {self.window}")


@register_variant(
    "local",
    title="Local attention",
    family="sparse",
    traits=Traits(memory="linear", complexity="O(n w)", exact_limit=lambda length: {"window": length}),
    paper="Tay et al. 2021, arXiv:2011.04006",
)
class LocalAttention(SequenceMixer):
    """Every token attends to the tokens of its own block of `window` tokens."""

    config: LocalConfig

    def __init__(self, config: LocalConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        batch, length, _ = x.shape
        size = min(self.config.window, length)
        # Blocks become sequences of their own: (batch * blocks, num_heads, size, head_dim)
        q, k, v = (fold_blocks(pad_to_blocks(heads, size), size) for heads in self.projections.split(x))
        real = pad_mask(mask, length, size, x.device)
        if real is not None:
            # The mask goes the same way: (batch * blocks, size)
            real = real.expand(batch, -1).reshape(batch * num_blocks(length, size), size)
        heads = attend(q, k, v, real, dropout=self.dims.dropout, training=self.training, backend=self.config.backend)
        return self.projections.merge(unfold_blocks(heads, batch, length), mask)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend(self.config.backend, device, dropout=self.dims.dropout)
