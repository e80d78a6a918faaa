"""Depth-wise convolution: the control that sees its neighbourhood and nothing else.

From no paper as it stands; depth-wise kernels in place of attention are those of Wu et al. 2019 (arXiv:1901.10430,
lightweight convolution). Departures: one kernel per channel and no softmax over its taps; a GELU between the
convolution and the output projection; bidirectional unless causal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.masking import zero_masked
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvConfig(VariantConfig):
    """Options of the convolution.

    Raises:
        ValueError: The kernel has no centre.
    """

    kernel_size: int = option(5, "positions that a token sees, itself in the middle; odd; 61 for the wide control")

    def __post_init__(self) -> None:
        """Refuse kernels without a centre."""
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {self.kernel_size}")


@register_variant(
    "conv",
    title="Convolution",
    traits=Traits(memory="linear", complexity="O(n k)", causal=True),
    paper="none: a control; after Wu et al. 2019, arXiv:1901.10430",
)
class Conv(SequenceMixer):
    """Project, convolve each channel with its own kernel, GELU, project back.

    There are twice as many channels as the heads of full attention have together, so that the projections have its
    weights to the last one. A CLS token sees its neighbourhood as every token does: pool by the mean.
    """

    config: ConvConfig

    def __init__(self, config: ConvConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        channels = 2 * dims.num_heads * dims.head_dim
        self.expand = nn.Linear(dims.dim, channels, bias=dims.qkv_bias)
        self.kernel = nn.Conv1d(channels, channels, config.kernel_size, groups=channels, bias=dims.qkv_bias)
        self.out = nn.Linear(channels, dims.dim, bias=dims.qkv_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve over the length, masked positions counting as zero; see `SequenceMixer.forward`."""
        self.check_input(x, mask)
        reach = self.config.kernel_size - 1
        padding = (reach, 0) if self.dims.causal else (reach // 2, reach // 2)
        signal = zero_masked(self.expand(x), mask).transpose(1, 2)
        mixed = self.kernel(F.pad(signal, padding)).transpose(1, 2)
        hidden = F.dropout(F.gelu(mixed), self.dims.dropout, self.training)
        return zero_masked(self.out(hidden), mask)
