"""Masks: True = real token. Every helper is safe for sequences without any real token."""

from __future__ import annotations

import torch
from torch import Tensor


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set masked positions of (batch, length, dim) to zero; their gradient is exactly zero too.

    A product, because torch's `masked_fill` with a broadcast mask takes several times as long on a CPU. It relies on
    the contract: masked positions hold finite values.
    """
    return x if mask is None else x * mask.unsqueeze(-1)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average (batch, length, dim) over the real positions: (batch, dim); zeros where there are none."""
    if mask is None:
        return x.mean(dim=1)
    return zero_masked(x, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1).to(x.dtype)


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the last axis among allowed entries; rows with none give zeros, not NaN.

    Args:
        scores: (..., keys).
        allowed: bool, broadcastable to `scores`; None = all.
    """
    if allowed is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~allowed, 0.0)
