"""Kernelised attention: a product of features in place of exp(q kᵀ), so that sums over the keys are taken once.

out_i = Σ_j (φ(q_i)·φ(k_j)) v_j / Σ_j φ(q_i)·φ(k_j); Katharopoulos et al. 2020 (arXiv:2006.16236), equations 4 to 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-6
"""The normaliser is not allowed below this, so that a query without weight gives zeros."""

_CHUNK = 64
"""Tokens between two running sums in causal form."""


def linear_attention(
    q_features: Tensor, k_features: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Attend with non-negative features; time and memory are linear in the number of tokens.

    Products and sums are in the dtype of the features, float32 at least, under autocast too.

    Args:
        q_features: (batch, num_heads, queries, num_features).
        k_features: (batch, num_heads, keys, num_features).
        v: (batch, num_heads, keys, head_dim).
        mask: (batch, keys), bool, True = real; masked keys are in neither sum.
        causal: Query i sees keys 0..i only; as many queries as keys.

    Returns:
        (batch, num_heads, queries, head_dim), in the dtype of `v`; zeros where no key has weight.
    """
    with torch.autocast(v.device.type, enabled=False):
        dtype = torch.promote_types(q_features.dtype, torch.float32)
        q_features, k_features, values = q_features.to(dtype), k_features.to(dtype), v.to(dtype)
        if mask is not None:
            k_features = k_features.masked_fill(~mask[:, None, :, None], 0.0)
        total, normaliser = (_causal_sums if causal else _sums)(q_features, k_features, values)
        return (total / normaliser.clamp_min(SMALLEST)).to(v.dtype)


def float_features(x: Tensor) -> Tensor:
    """Return x in float32 at least: features, and the sums over them, lose too much in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sums(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return numerators (batch, num_heads, queries, head_dim) and normalisers (batch, num_heads, queries, 1)."""
    return q @ (k.transpose(-2, -1) @ v), q @ k.sum(dim=-2).unsqueeze(-1)


def _causal_sums(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """As `_sums`, over the keys up to each query: sums over earlier chunks, and scores within a chunk."""
    length = q.shape[2]
    q, k, v = (
        F.pad(x, (0, 0, 0, -length % _CHUNK)).unflatten(2, (-1, _CHUNK)) for x in (q, k, F.pad(v, (0, 1), value=1.0))
    )
    state = k.transpose(-2, -1) @ v
    before = F.pad(state.cumsum(dim=2), (0, 0, 0, 0, 1, -1))
    both = q @ before + (q @ k.transpose(-2, -1)).tril() @ v
    both = both.flatten(2, 3)[:, :, :length]
    return both[..., :-1], both[..., -1:]
