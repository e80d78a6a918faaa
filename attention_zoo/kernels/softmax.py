# SPDX-License-Identifier: Apache-2.0
"""Softmax attention with a choice of implementation, for all variants that use the ordinary softmax."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.functional import attention, causal_mask, score_mask
from attention_zoo.kernels.blockwise import blockwise_attention, by_pair

Backend = Literal["auto", "fused", "blockwise", "reference"]
BACKEND_HELP = "implementation; auto is blockwise on CPU with attention dropout, and fused elsewhere"
"""Help of the option `backend` of all variants that call `attend`."""

_MASKED_SCORE = -1e4
"""Far enough below any score for its weight to underflow to zero, and finite in half precision."""


def resolve_backend(backend: Backend, device: torch.device, *, dropout: float, biased: bool = False) -> str:
    """Name the implementation that `attend` uses in training.

    On CPU torch's fused kernel has no dropout. It falls back to a form that writes out the whole queries-by-keys
    matrix, so "auto" is "blockwise" there. With a bias it would need the biases of all pairs written out.
    """
    if backend != "auto":
        return backend
    return "blockwise" if biased or (device.type == "cpu" and dropout > 0.0) else "fused"


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    backend: Backend = "auto",
    bias: Tensor | None = None,
) -> Tensor:
    """Compute softmax attention from queries to keys, as `attention_zoo.functional.attention` does.

    Variants that attend block by block fold their blocks into the batch axis.

    Args:
        q: (batch, num_heads, queries, head_dim).
        k: (batch, num_heads, keys, head_dim).
        v: (batch, num_heads, keys, value_dim).
        mask: bool, True = may be seen; (batch, keys), or four axes broadcastable to (batch, num_heads, queries, keys).
        causal: Query i sees keys 0..i only.
        dropout: Probability of dropping a weight, in training only.
        training: Whether to drop weights.
        backend: "fused" is torch's own kernel, "blockwise" recomputes in backward, "reference" is plain torch.
        bias: (num_heads, queries + keys - 1), added to the scores by place: to that of query i and key j entry
            j - i + queries - 1; None = none. The fused kernel takes none.

    Returns:
        (batch, num_heads, queries, value_dim); zeros for a query that may see no key.

    Raises:
        ValueError: The fused kernel is asked for a bias.
    """
    rate = dropout if training else 0.0
    chosen = resolve_backend(backend, q.device, dropout=rate, biased=bias is not None)
    if chosen == "fused" and bias is not None:
        raise ValueError("the fused kernel takes no bias")
    allowed = score_mask(mask)
    if allowed is not None and causal and allowed.shape[2] > 1:
        # The mask has an axis of queries already, so that causality joins it without making it larger.
        allowed, causal = allowed & causal_mask(q.shape[2], k.shape[2], q.device), False
    if chosen == "reference":
        factor = None
        if rate > 0.0:
            # Dropout of ones: 0 or 1 / (1 - rate) for each weight, (batch, num_heads, queries, keys).
            factor = F.dropout(torch.ones((), dtype=q.dtype, device=q.device).expand(*q.shape[:3], k.shape[2]), rate)
        pairs = None if bias is None else by_pair(bias, q.shape[2])
        return attention(q, k, v, allowed, causal=causal, weight_factor=factor, bias=pairs)
    sees_a_key = None
    if allowed is not None:
        sees_a_key = _sees_a_key(allowed, queries=q.shape[2], causal=causal)
        if not causal:
            # Kernels differ on a query that sees no key (zeros, NaN). It is shown all keys, and its result set to zero.
            allowed = allowed | ~sees_a_key
    if chosen == "blockwise":
        out = blockwise_attention(q, k, v, allowed, causal=causal, dropout=rate, bias=bias)
    elif causal and allowed is not None and q.device.type != "cpu":
        out = _fused_causal_masked(q, k, v, allowed, dropout=rate)
    else:
        # The fused kernels take only values as wide as the keys, those of CUDA only multiples of eight; otherwise torch
        # writes out all scores. Zeros are added up to such a width: they change no score. The scale is the true one's.
        scale, width = q.shape[-1] ** -0.5, v.shape[-1]
        wide = max(q.shape[-1], width)
        wide = wide if q.device.type == "cpu" else -(-wide // 8) * 8
        if not q.shape[-1] == width == wide:  # padding by nothing would copy
            q, k, v = (F.pad(x, (0, wide - x.shape[-1])) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, dropout_p=rate, scale=scale)
        out = out[..., :width]
    return out if sees_a_key is None else out * sees_a_key  # masked_fill is far slower with a broadcast mask


def _sees_a_key(allowed: Tensor, *, queries: int, causal: bool) -> Tensor:
    """Say which queries have a key: bool, broadcastable to (batch, num_heads, queries, 1)."""
    if not causal:
        return allowed.any(dim=-1, keepdim=True)
    # With a key mask (batch, 1, 1, keys), query i sees a key if one of the keys 0 .. i is real.
    return (allowed.cumsum(dim=-1) > 0)[..., :queries].transpose(-2, -1)


def _fused_causal_masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, *, dropout: float) -> Tensor:
    """Attend under a key mask and causality at once, which torch's CUDA kernels do not accept.

    The mask becomes one more feature: it is 1 in every query, and in a key 0 or, if the key is masked, a large negative
    number, which the dot product adds to the score.
    """
    head_dim, width = q.shape[-1], v.shape[-1]
    wide = -(-max(head_dim + 1, width) // 8) * 8  # the kernels take multiples of eight
    # (batch, num_heads, keys, 1)
    bias = torch.where(allowed, 0.0, _MASKED_SCORE).to(k.dtype).transpose(-2, -1).expand(*k.shape[:3], 1)
    # [q / sqrt(head_dim), 1, 0 ..], scaled here, since the kernel's own scale would reach the added feature too
    wide_q = F.pad(F.pad(q * head_dim**-0.5, (0, 1), value=1.0), (0, wide - head_dim - 1))
    wide_k = F.pad(torch.cat((k, bias), dim=-1), (0, wide - head_dim - 1))
    wide_v = F.pad(v, (0, wide - width))
    out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, is_causal=True, dropout_p=dropout, scale=1.0)
    return out[..., :width]
