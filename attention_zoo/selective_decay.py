# SPDX-License-Identifier: Apache-2.0
"""The decay that each token decides for each head, as in Mamba-2 (Dao and Gu 2024, arXiv:2405.21060)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelectiveDecay(nn.Module):
    """log λ = -rate softplus(u·x + b) for each token and head: what is left of a state after that token.

    It starts as in Mamba-2: rates evenly from 1 to 16, and softplus(b) from 0.001 to 0.1 on a logarithmic scale, both
    at random.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.step = nn.Linear(dim, num_heads)
        self.log_rate = nn.Parameter((1.0 + 15.0 * torch.rand(num_heads)).log())
        low, high = math.log(1e-3), math.log(1e-1)
        first = (low + (high - low) * torch.rand(num_heads)).exp()
        with torch.no_grad():
            self.step.bias.copy_(first.expm1().log())  # softplus(log(exp(first) - 1)) = first

    def forward(self, x: Tensor) -> Tensor:
        """Compute log λ of (batch, length, dim): (batch, length, num_heads), at most 0, in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        # -softplus(z) as logsigmoid(-z): under torch.compile the gradient of F.softplus gets wrong strides.
        return self.log_rate.to(dtype).exp() * F.logsigmoid(-self.step(x).to(dtype))
