# SPDX-License-Identifier: Apache-2.0
"""Normalisation of the residual stream: `model.norm`, over the features of a token or over the tokens of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention_zoo.masking import zero_masked
from lra.config.schema import ModelConfig

MOMENTUM = 0.1
"""Share of a batch in the running statistics, as torch has it."""


class MaskedBatchNorm(nn.Module):
    """Batch normalisation (arXiv:1502.03167) over the real tokens of a batch.

    In training, each feature has mean 0 and variance 1 over all real tokens of all sequences of the batch. In
    evaluation, running averages take the place of both, so that no example depends on the others.

    Args:
        dim: Features.
        eps: Added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Normalise (batch, length, dim); masked positions come out as any finite numbers.

        Args:
            x: (batch, length, dim).
            mask: (batch, length), True = real token; None = all real.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums over a batch are too long for bfloat16
        mean, variance = self.running_mean, self.running_var
        if self.training:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            count = real.sum().to(x.dtype)
            mean = zero_masked(x, real).sum(dim=(0, 1)) / count.clamp_min(1)  # (dim,)
            variance = zero_masked(x - mean, real).square().sum(dim=(0, 1)) / count.clamp_min(1)
            with torch.no_grad():
                share = MOMENTUM * (count > 0)  # a batch without a real token says nothing
                unbiased = variance * count / (count - 1).clamp_min(1)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(unbiased, share)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


def build_norm(config: ModelConfig) -> nn.Module:
    """Build one normalisation of a model; `normalise` calls it."""
    if config.norm == "batch":
        return MaskedBatchNorm(config.dim, config.norm_eps)
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.dim, eps=config.norm_eps)


def normalise(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Normalise (batch, length, dim); only batch normalisation looks at the mask."""
    normed: Tensor = norm(x, mask) if isinstance(norm, MaskedBatchNorm) else norm(x)
    return normed
