# SPDX-License-Identifier: Apache-2.0
"""Helpers for masks, in which True means a real token. All of them accept sequences without any real token."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set masked positions of (batch, length, dim) to zero, NaN and infinity too; their gradient is exactly zero."""
    # Not a product, in which NaN would stay. `masked_fill` takes twice as long on a CPU.
    return x if mask is None else torch.where(mask.unsqueeze(-1), x, 0.0)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average (batch, length, dim) over the real positions: (batch, dim); zeros where there are none."""
    if mask is None:
        return x.mean(dim=1) if x.shape[1] > 0 else x.sum(dim=1)
    # (batch, dim) / (batch, 1); the clamp divides a sum over no token by 1.
    return zero_masked(x, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1).to(x.dtype)


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Take the softmax over the allowed entries of the last axis; rows without any give zeros, not NaN.

    Args:
        scores: (..., keys).
        allowed: bool, broadcastable to `scores`; None = all.
    """
    if allowed is None:
        return scores.softmax(dim=-1)
    # The lowest finite number and not -inf: in a row of -inf alone the softmax would compute -inf - (-inf) = NaN.
    # Such a row comes out uniform instead, and the second fill sets it to zero.
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~allowed, 0.0)


def real_first(mask: Tensor) -> Tensor:
    """Return positions (batch, length) that put the real tokens of each sequence first, both kinds in their order."""
    # Masked = 1 sorts behind real = 0; the sort is stable, so equal tokens keep their order.
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
