# SPDX-License-Identifier: Apache-2.0
"""Softmax attention as the textbook writes it, in plain torch and without parameters.

Every faster form in `attention_zoo.kernels` is tested against this one, outputs and gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.masking import masked_softmax


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    weight_factor: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(head_dim)) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    Args:
        q: (batch, num_heads, queries, head_dim).
        k: (batch, num_heads, keys, head_dim).
        v: (batch, num_heads, keys, value_dim).
        mask: bool, True = may be seen; (batch, keys), or broadcastable to (batch, num_heads, queries, keys).
        causal: Query i sees keys 0..i only.
        weight_factor: Multiplies the weights after the softmax, such as a scaled dropout mask; broadcastable to
            (batch, num_heads, queries, keys).
        bias: Added to the scores; broadcastable to (batch, num_heads, queries, keys).

    Returns:
        (batch, num_heads, queries, value_dim); zeros for a query that may see no key.
    """
    # (batch, num_heads, queries, keys). A dot product of head_dim terms of variance 1 has the variance head_dim; the
    # scale brings it back to 1, so that the softmax does not start out saturated.
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    allowed = score_mask(mask)  # broadcastable to the scores
    if causal:
        past = causal_mask(q.shape[2], k.shape[2], q.device)
        allowed = past if allowed is None else allowed & past
    weights = masked_softmax(scores, allowed)  # (batch, num_heads, queries, keys); rows sum to 1, or are all zero
    return (weights if weight_factor is None else weights * weight_factor) @ v


def score_mask(mask: Tensor | None) -> Tensor | None:
    """Bring a key mask (batch, keys) into the shape of scores, (batch, 1, 1, keys); leave other masks as they are."""
    return mask[:, None, None, :] if mask is not None and mask.dim() == 2 else mask


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return (queries, keys), bool: True where the key is not later than the query."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
