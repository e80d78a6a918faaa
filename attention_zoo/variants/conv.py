# SPDX-License-Identifier: Apache-2.0
"""Depth-wise convolution: the control that sees its neighbourhood and nothing else.

y = W₂ gelu(k * (W₁ x)), where * is a convolution of each channel along the length with a kernel of its own. This
control is from no paper; depth-wise kernels in place of attention are the lightweight convolution of Wu et al. 2019
(arXiv:1901.10430).

Departures from lightweight convolution:

- Every channel has its own kernel, and there is no softmax over its taps.
- A GELU stands between the convolution and the output projection.
- The kernel looks to both sides unless the model is causal.
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
    """Options of the convolution."""

    kernel_size: int = option(
        5, "positions that a token sees, with itself in the middle; odd; 61 for the wide control", least=1, parity="odd"
    )


@register_variant(
    "conv",
    title="Convolution",
    family="convolution",
    traits=Traits(memory="linear", complexity="O(n k)", causal=True),
    paper="none: a control; after Wu et al. 2019, arXiv:1901.10430",
)
class Conv(SequenceMixer):
    """Project, convolve each channel with its own kernel, GELU, project back.

    There are twice as many channels as all heads of full attention have together, so that the two projections have as
    many weights as its four. A CLS token sees only its neighbourhood, as every token does, so models with this mixer
    should pool by the mean.
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
        # Zeros around the sequence: in front only if causal, so that the last tap is the token itself.
        reach = self.config.kernel_size - 1
        padding = (reach, 0) if self.dims.causal else (reach // 2, reach // 2)
        signal = zero_masked(self.expand(x), mask).transpose(1, 2)  # (batch, channels, length)
        mixed = self.kernel(F.pad(signal, padding)).transpose(1, 2)
        hidden = self.dropped(F.gelu(mixed))
        return zero_masked(self.out(hidden), mask)

    def state_size(self, length: int) -> int:
        """The other tokens under the kernel."""
        return min(length, self.config.kernel_size - 1) * self.dims.dim
