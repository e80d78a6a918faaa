# SPDX-License-Identifier: Apache-2.0
"""The predictor m of ContextPool: two convolutions from a token's neighbourhood to a few numbers about the token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.masking import zero_masked
from contextpool.config import PredictorConfig

_OUTPUT_STD = 0.02
"""Spread of the last layer's weights at the start: outputs near zero, with a gradient that reaches the first layer."""


class Predictor(nn.Module):
    """LayerNorm, convolution, GELU, convolution; dim -> hidden -> outputs.

    Masked positions count as zero before each convolution, so padding reaches no output. There is no bias inside the
    last convolution: the last `num_biases` outputs have one, and the others could not use it.
    """

    def __init__(
        self,
        dim: int,
        config: PredictorConfig,
        *,
        outputs: int,
        num_biases: int,
        causal: bool = False,
        planar: bool = False,
    ) -> None:
        super().__init__()
        self.causal = causal
        hidden, kernel_size = config.hidden_of(dim), config.kernel_size
        convolution = nn.Conv2d if planar else nn.Conv1d
        self.norm = nn.LayerNorm(dim) if config.input_norm else None
        self.inner = convolution(dim, hidden, kernel_size)
        self.outer = convolution(hidden, outputs, kernel_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_biases)) if num_biases else None
        nn.init.normal_(self.outer.weight, std=_OUTPUT_STD)

    def forward(self, x: Tensor, mask: Tensor | None = None, grid: tuple[int, int] | None = None) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            x: (batch, length, dim).
            mask: (batch, length), bool, True = real token; None = all real.
            grid: (rows, columns) of a planar predictor, whose tokens are the pixels in row-major order.

        Returns:
            One (batch, length) for each output, in float32 (float64 if `x` is); finite at masked positions.
        """
        x = zero_masked(x, mask)  # before the norm too, whose gradient a NaN at a masked position would reach
        if self.norm is not None:
            x = zero_masked(self.norm(x), mask)
        hidden = zero_masked(F.gelu(self._convolve(self.inner, x, grid)), mask)
        out = self._convolve(self.outer, hidden, grid)
        out = out.to(torch.promote_types(x.dtype, torch.float32))
        if self.bias is not None:
            out = out + F.pad(self.bias.to(out.dtype), (out.shape[2] - len(self.bias), 0))
        return out.unbind(dim=2)

    def _convolve(self, convolution: nn.Module, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Map (batch, length, channels) to (batch, length, channels of the result)."""
        if isinstance(convolution, nn.Conv1d):
            return _convolve_tokens(convolution, x, causal=self.causal)
        assert isinstance(convolution, nn.Conv2d)
        assert grid is not None, "a planar predictor needs the grid"
        image = x.transpose(1, 2).unflatten(2, grid)
        padding = convolution.kernel_size[0] // 2
        return F.conv2d(image, convolution.weight, convolution.bias, padding=padding).flatten(2).transpose(1, 2)


def _convolve_tokens(convolution: nn.Conv1d, x: Tensor, *, causal: bool) -> Tensor:
    """Convolve (batch, length, channels) over the length, zero beyond both ends; causal: padded on the left only.

    One product with the weights of all taps, then a sum of shifted results: channels stay last and nothing is copied
    into another layout, which on a CPU takes two thirds of the time of torch's convolution, or less.
    """
    weight = convolution.weight
    taps, length = weight.shape[2], x.shape[1]
    before = taps - 1 if causal else taps // 2
    products = F.linear(x, weight.permute(2, 0, 1).flatten(0, 1)).unflatten(2, (taps, weight.shape[0]))
    out = products[:, :, before]
    for tap in range(taps):
        shift = tap - before
        if shift != 0 and abs(shift) < length:
            out = out + F.pad(products[:, :, tap], (0, 0, -shift, shift))
    return out if convolution.bias is None else out + convolution.bias.to(out.dtype)
