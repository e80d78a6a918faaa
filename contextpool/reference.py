# SPDX-License-Identifier: Apache-2.0
"""The definition of context pooling, dense and obvious: what every other backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

SIGMA_MIN = 0.05
"""Narrowest Gaussian, in tokens. At this width the neighbour weighs exp(-200): pooling is the identity."""


def reference_pool(
    x: Tensor,
    log_weight: Tensor,
    sigma: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    normalized: bool = True,
) -> Tensor:
    """Pool every token's neighbourhood with its own Gaussian, by the formula and with length-by-length memory.

    See `contextpool.functional.context_pool` for the definition. Computes in the dtype of `x`; use float64 for a truth.

    Args:
        x: (batch, length, dim).
        log_weight: (batch, length).
        sigma: (batch, length), in tokens.
        mask: (batch, length), bool, True = real token; None = all real.
        causal: Whether token i sees only tokens j <= i.
        normalized: Whether to divide by the sum of the weights (else by the number of real tokens).

    Returns:
        (batch, length, dim); zeros at masked positions.
    """
    length = x.shape[1]
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    position = torch.arange(length, device=x.device)
    offset = position[:, None] - position[None, :]
    visible = mask[:, :, None] & mask[:, None, :]
    if causal:
        visible = visible & (offset >= 0)
    width = sigma.masked_fill(~mask, 1.0).clamp_min(SIGMA_MIN)
    scores = log_weight[:, None, :] - offset.to(x.dtype).square() / (2 * width[:, :, None].square())
    scores = scores.masked_fill(~visible, -torch.inf)
    if normalized:
        # A masked query sees nothing; its scores are replaced before the softmax so that no NaN enters the backward.
        weights = scores.masked_fill(~mask[:, :, None], 0.0).softmax(dim=-1).masked_fill(~visible, 0.0)
    else:
        weights = scores.exp() / mask.sum(dim=1).clamp_min(1)[:, None, None]
    return weights.to(x.dtype) @ x.masked_fill(~mask[:, :, None], 0.0)
