"""Softmax attention with a choice of implementation: the one entry for every variant that attends over blocks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.functional import attention, causal_mask, score_mask
from attention_zoo.kernels.blockwise import blockwise_attention

Backend = Literal["auto", "fused", "blockwise", "reference"]

_MASKED_SCORE = -1e4
"""Far enough below any score for its weight to underflow to zero, and still finite in half precision."""


def resolve_backend(backend: Backend, device: torch.device, *, dropout: float) -> str:
    """Name the implementation that `attend` uses in training.

    torch's fused kernel has no dropout on CPU: there it falls back to the form that writes the whole queries-by-keys
    matrix, so "auto" goes block by block instead.
    """
    if backend != "auto":
        return backend
    return "blockwise" if device.type == "cpu" and dropout > 0.0 else "fused"


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
) -> Tensor:
    """Attend from queries to keys; equals `attention_zoo.functional.attention`.

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

    Returns:
        (batch, num_heads, queries, value_dim); zeros for a query that may see no key.
    """
    rate = dropout if training else 0.0
    chosen = resolve_backend(backend, q.device, dropout=rate)
    allowed = score_mask(mask)
    if allowed is not None and causal and allowed.shape[2] > 1:
        allowed, causal = allowed & causal_mask(q.shape[2], k.shape[2], q.device), False
    if chosen == "reference":
        factor = None
        if rate > 0.0:
            factor = F.dropout(torch.ones((), dtype=q.dtype, device=q.device).expand(*q.shape[:3], k.shape[2]), rate)
        return attention(q, k, v, allowed, causal=causal, weight_factor=factor)
    compute = blockwise_attention if chosen == "blockwise" else _fused
    if allowed is None:
        return compute(q, k, v, None, causal=causal, dropout=rate)
    sees_a_key = _sees_a_key(allowed, queries=q.shape[2], causal=causal)
    if not causal:
        # Kernels differ on a row without keys (zeros, NaN): let it see all of them, and zero what comes out.
        allowed = allowed | ~sees_a_key
    out = compute(q, k, v, allowed, causal=causal, dropout=rate)
    return out * sees_a_key  # a product: masked_fill is far slower with a broadcast mask


def _sees_a_key(allowed: Tensor, *, queries: int, causal: bool) -> Tensor:
    """Say which queries have a key: bool, broadcastable to (batch, num_heads, queries, 1)."""
    if not causal:
        return allowed.any(dim=-1, keepdim=True)
    return (allowed.cumsum(dim=-1) > 0)[..., :queries].transpose(-2, -1)


def _fused(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, *, causal: bool, dropout: float) -> Tensor:
    if causal and allowed is not None and q.device.type != "cpu":
        return _fused_causal_masked(q, k, v, allowed, dropout=dropout)
    # The fused kernels want values as wide as the keys: else torch writes out all scores. Zeros change no score.
    scale, width = q.shape[-1] ** -0.5, v.shape[-1]
    if q.shape[-1] != width:  # padding by nothing would copy
        q, k, v = (F.pad(x, (0, max(q.shape[-1], width) - x.shape[-1])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, dropout_p=dropout, scale=scale)
    return out[..., :width]


def _fused_causal_masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, *, dropout: float) -> Tensor:
    """Attend under a key mask and causality at once, which torch's CUDA kernels refuse.

    The mask travels as one more feature, 1 in every query and the masking score in a masked key. Zeros follow it,
    because the kernels want a multiple of eight.
    """
    head_dim, width = q.shape[-1], v.shape[-1]
    wide = -(-max(head_dim + 1, width) // 8) * 8
    bias = torch.where(allowed, 0.0, _MASKED_SCORE).to(k.dtype).transpose(-2, -1).expand(*k.shape[:3], 1)
    wide_q = F.pad(F.pad(q * head_dim**-0.5, (0, 1), value=1.0), (0, wide - head_dim - 1))
    wide_k = F.pad(torch.cat((k, bias), dim=-1), (0, wide - head_dim - 1))
    wide_v = F.pad(v, (0, wide - width))
    out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, is_causal=True, dropout_p=dropout, scale=1.0)
    return out[..., :width]
