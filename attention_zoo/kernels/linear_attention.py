# SPDX-License-Identifier: Apache-2.0
"""Kernelised attention: a product of features in place of exp(q kᵀ), so that sums over the keys are taken once.

    out_i = Σ_j (φ(q_i)·φ(k_j)) v_j / Σ_j φ(q_i)·φ(k_j) = φ(q_i) (Σ_j φ(k_j) v_jᵀ) / φ(q_i) (Σ_j φ(k_j))

Katharopoulos et al. 2020 (arXiv:2006.16236), equations 4 to 6. The two sums over the keys do not depend on i, so their
cost is linear in the number of tokens. The causal form sums over j <= i (equations 8 to 12).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SMALLEST = 1e-6
"""Smallest value of the normaliser, so that a query whose weights are all zero gives zeros and not NaN."""

_CHUNK = 64
"""Tokens between two running sums of the causal form."""
_BLOCK = {"cpu": 256, "cuda": 2048}
"""Tokens whose features are computed together: those of a CPU stay in its cache, and a GPU needs few kernels."""


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
        q_features, k_features = float_features(q_features), float_features(k_features)
        values = _values(float_features(v), mask)
        if causal:
            both = _causal_sums(q_features, k_features, values)
        else:
            # (queries, num_features) @ ((num_features, keys) @ (keys, head_dim + 1)): the order of the products is the
            # whole point, since (q kᵀ) v would be quadratic in the length.
            both = q_features @ (k_features.transpose(-2, -1) @ values)
        return _normalise(both).to(v.dtype)


def linear_attention_in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    q_map: Callable[[Tensor], Tensor],
    k_map: Callable[[Tensor], Tensor],
) -> Tensor:
    """Do the same as `linear_attention`, with the features of a few tokens at a time.

    Features are computed again in backward. This is for maps with many more features than a head is wide: all features
    together would be by far the largest tensors, and moving them takes longer than computing them twice.

    Args:
        q: (batch, num_heads, queries, head_dim).
        k: (batch, num_heads, keys, head_dim).
        v: (batch, num_heads, keys, head_dim), in float32 at least, as are q and k.
        mask: (batch, keys), bool, True = real; masked keys are in neither sum.
        q_map: Computes the features of a block of queries.
        k_map: Computes those of a block of keys, which must be finite for masked keys too.

    Returns:
        (batch, num_heads, queries, head_dim); zeros where no key has weight.
    """
    values, size = _values(v, mask), _BLOCK.get(v.device.type, _BLOCK["cuda"])
    state = v.new_zeros(())  # becomes Σ_j φ(k_j) [v_j, 1]ᵀ, (batch, num_heads, num_features, head_dim + 1)
    for keys, block in zip(k.split(size, dim=2), values.split(size, dim=2), strict=True):
        state = state + computed_again(lambda keys, block: k_map(keys).transpose(-2, -1) @ block, keys, block)
    both = torch.cat(
        [computed_again(lambda block: q_map(block) @ state, block) for block in q.split(size, dim=2)], dim=2
    )
    return _normalise(both)


def computed_again(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Compute now, keep only the arguments, and compute again in backward."""
    result: Tensor = checkpoint(compute, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result


def float_features(x: Tensor) -> Tensor:
    """Return x in float32 at least: features, and the sums over them, lose too much in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _values(v: Tensor, mask: Tensor | None) -> Tensor:
    """Append a column of ones to the values, and set masked tokens to zero: (batch, num_heads, keys, head_dim + 1).

    The normaliser is then one more column of the same sums, and a masked key adds to neither.
    """
    values = F.pad(v, (0, 1), value=1.0)
    return values if mask is None else values.masked_fill_(~mask[:, None, :, None], 0.0)


def _normalise(sums: Tensor) -> Tensor:
    """Divide the sums of values by their last column."""
    return sums[..., :-1] / sums[..., -1:].clamp_min(SMALLEST)


def _causal_sums(q: Tensor, k: Tensor, values: Tensor) -> Tensor:
    """Sum over the keys up to each query: a state for the earlier chunks, and scores within the chunk.

    One state after every token would fill (length, num_features, head_dim); one after every chunk takes a 64th of that.

    Returns:
        (batch, num_heads, length, head_dim + 1).
    """
    length = q.shape[2]
    # (batch, num_heads, chunks, chunk, features); zero features at the end add nothing.
    q, k, values = (F.pad(x, (0, 0, 0, -length % _CHUNK)).unflatten(2, (-1, _CHUNK)) for x in (q, k, values))
    # What each chunk adds to the state: (batch, num_heads, chunks, num_features, head_dim + 1).
    state = k.transpose(-2, -1) @ values
    # The running sum, moved on by one chunk: the first one starts from zero, and none sees itself through the state.
    before = F.pad(state.cumsum(dim=2), (0, 0, 0, 0, 1, -1))
    # Earlier chunks by the state, the own chunk by its scores up to and with the diagonal.
    return (q @ before + (q @ k.transpose(-2, -1)).tril() @ values).flatten(2, 3)[:, :, :length]
