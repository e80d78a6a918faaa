# SPDX-License-Identifier: Apache-2.0
"""Softmax attention with dropout in memory linear in the length, for devices whose fused kernel has no dropout.

The scores of a few queries at a time are small enough to stay in the processor's cache. They are computed again in
backward, and the dropout mask is drawn again from its seed, so no tensor of queries-by-keys size is ever stored. The
gradient is that of FlashAttention (Dao et al. 2022, arXiv:2205.14135, appendix B.2). Its running maximum is not needed,
because a block of queries sees all of its keys at once.

With weights P = softmax(S), S = q kᵀ / sqrt(head_dim), output O = P v and its gradient dO, the formulas are

    dv = Pᵀ dO,  dP = dO vᵀ,  dS = P (dP - D) with D = rowsum(P dP) = rowsum(dO O),  dq = dS k,  dk = dSᵀ q

where products without a transpose are taken entry by entry. The second form of D needs the output alone, which is why
backward can visit one block after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_zoo.kernels.blocks import cut
from attention_zoo.kernels.dropout import DropoutBits

_QUERIES = 64
"""Queries in a block. The number is fixed, so that the scores of a block grow linearly with the keys."""
_SCORES = 2**17
"""Scores in a block (512 KiB in float32) that takes in several heads or sequences."""

Block = tuple[slice, slice, slice, slice]
"""Which sequences, heads, queries and keys."""


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute softmax attention block by block, with dropout of the weights.

    Computes in float32 (float64 for float64 inputs), under autocast too. What is dropped depends on the state of
    torch's global CPU generator and on nothing else: not on the number of threads.

    Args:
        q: (batch, num_heads, queries, head_dim).
        k: (batch, num_heads, keys, head_dim).
        v: (batch, num_heads, keys, value_dim).
        allowed: bool, four axes broadcastable to (batch, num_heads, queries, keys); True = may be seen.
        causal: Query i sees keys 0..i only.
        dropout: Probability of dropping a weight, rounded to a multiple of 2^-16.
        bias: (num_heads, queries + keys - 1), added to the scores by place, see `by_pair`; None = none.

    Returns:
        (batch, num_heads, queries, value_dim) in the dtype of `q`; finite and unspecified for a query that sees no key.
    """
    # One number from the global generator stands for all decisions: forward and backward derive the same ones from it.
    seed = int(torch.randint(2**63 - 1, ()).item()) if dropout > 0.0 else 0
    out: Tensor = _Blockwise.apply(q, k, v, allowed, bias, causal, dropout, seed)  # type: ignore[no-untyped-call]
    return out


def dropout_factor(q: Tensor, k: Tensor, *, causal: bool = False, dropout: float, seed: int) -> Tensor:
    """Write out the factors of the weights, 0 or 1 / (1 - rate), that a call with this seed uses; for comparisons only.

    Returns:
        (batch, num_heads, queries, keys); 0 in the blocks of keys that causality leaves out.
    """
    bits = DropoutBits(dropout, seed, q)
    factor = q.new_zeros(*q.shape[:3], k.shape[2])
    for block in _blocks(q, k, causal=causal):
        bits.draw(factor[block].shape)
        factor[block] = bits.drop_(torch.ones_like(factor[block])) * bits.scale
    return factor


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        allowed: Tensor | None,
        bias: Tensor | None,
        causal: bool,  # noqa: FBT001 - autograd.Function passes by position
        dropout: float,
        seed: int,
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            queries, keys, values = prepare(q, k, v)
            bits = DropoutBits(dropout, seed, queries)
            out = torch.empty(*q.shape[:3], v.shape[3], dtype=values.dtype, device=q.device)
            for block in _blocks(q, k, causal=causal):
                b, h, i, j = block
                # (sequences, heads, 64 queries, keys)
                added = _bias_of(bias, q.shape[2], block, queries.dtype)
                weights = _weights(queries[b, h, i], keys[b, h, j], allowed, added, block, causal=causal)
                bits.draw(weights.shape)
                out[b, h, i] = bits.drop_(weights) @ values[b, h, j]
            # Dropout's 1 / (1 - rate) is applied once to the output and not to every weight.
            out = out.mul_(bits.scale).to(q.dtype)
        ctx.save_for_backward(q, k, v, allowed, bias, out)
        ctx.settings = (causal, dropout, seed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed, bias, out = ctx.saved_tensors
        causal, dropout, seed = ctx.settings
        queries, keys, values = prepare(q, k, v)
        bits = DropoutBits(dropout, seed, queries)  # the same seed and the same blocks: the same decisions as forward
        grad = grad_out.to(values.dtype)  # dO
        mean = (grad * out).sum(dim=-1, keepdim=True)  # D, (batch, num_heads, queries, 1); holds with dropout too
        grad = grad * bits.scale
        grad_q, grad_k, grad_v = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        grad_bias = None if bias is None or not ctx.needs_input_grad[4] else torch.zeros_like(bias, dtype=grad.dtype)
        for block in _blocks(q, k, causal=causal):
            b, h, i, j = block
            added = _bias_of(bias, q.shape[2], block, queries.dtype)
            weights = _weights(queries[b, h, i], keys[b, h, j], allowed, added, block, causal=causal)
            bits.draw(weights.shape)
            # dP, (sequences, heads, queries, keys); the gradient of a dropped weight is dropped as well.
            grad_weights = bits.drop_(grad[b, h, i] @ values[b, h, j].transpose(-2, -1))
            grad_scores = grad_weights.sub_(mean[b, h, i]).mul_(weights)  # dS
            grad_q[b, h, i] = grad_scores @ keys[b, h, j]
            grad_k[b, h, j] += grad_scores.transpose(-2, -1) @ queries[b, h, i]
            if grad_bias is not None:
                grad_bias[h, _places(q.shape[2], block)] += by_place(grad_scores.sum(dim=0))
            grad_v[b, h, j] += bits.drop_(weights).transpose(-2, -1) @ grad[b, h, i]
        # `queries` hold the scale, so dk has it already; dq does not.
        grad_q *= q.shape[-1] ** -0.5
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, grad_bias, None, None, None


def prepare(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the queries by 1 / sqrt(head_dim), and make all three contiguous in float32 at least."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries = (q.to(dtype) * q.shape[-1] ** -0.5).contiguous()
    return queries, k.to(dtype).contiguous(), v.to(dtype).contiguous()


def _blocks(q: Tensor, k: Tensor, *, causal: bool) -> Iterator[Block]:
    """Cut the scores into blocks: one group of queries by all of its keys, and as many heads and sequences as fit."""
    batch, num_heads, queries, keys = *q.shape[:3], k.shape[2]
    # Pairs of a sequence and a head in a block; first the heads of one sequence, then several sequences.
    together = max(1, _SCORES // (min(queries, _QUERIES) * keys))
    heads = min(num_heads, together)
    sequences = max(1, together // num_heads)
    for b in range(0, batch, sequences):
        for h in range(0, num_heads, heads):
            for i in range(0, queries, _QUERIES):
                # Causal queries see no key behind the last of them: those keys are not even multiplied.
                end = min(i + _QUERIES, keys) if causal else keys
                yield slice(b, b + sequences), slice(h, h + heads), slice(i, i + _QUERIES), slice(0, end)


def by_pair(bias: Tensor, queries: int) -> Tensor:
    """Write out a bias by place: (num_heads, queries + keys - 1) to (num_heads, queries, keys).

    The pair of query i and key j has entry j - i + queries - 1.
    """
    # Window w holds the entries w .. w + keys - 1, which are those of query (queries - 1 - w).
    return bias.unfold(1, bias.shape[1] - queries + 1, 1).flip(1)


def by_place(pairs: Tensor) -> Tensor:
    """Sum (num_heads, queries, keys) over the pairs of each place, the transpose of `by_pair`."""
    queries, keys = pairs.shape[1:]
    # Read with rows that are shorter by one, row w of the windows stands w places farther to the right.
    rows = F.pad(pairs.flip(1), (0, queries)).flatten(1)[:, : queries * (queries + keys - 1)]
    return rows.unflatten(1, (queries, -1)).sum(dim=1)


def _places(queries: int, block: Block) -> slice:
    """Return which entries of a bias by place the pairs of a block have; the keys of a block begin with the first."""
    i, j = block[2:]
    stop = min(i.stop, queries)
    return slice(queries - stop, queries - i.start - 1 + j.stop)


def _bias_of(bias: Tensor | None, queries: int, block: Block, dtype: torch.dtype) -> Tensor | None:
    """Write out the biases of a block: (heads, queries, keys)."""
    if bias is None:
        return None
    return by_pair(bias[block[1], _places(queries, block)].to(dtype), min(block[2].stop, queries) - block[2].start)


def _weights(
    queries: Tensor, keys: Tensor, allowed: Tensor | None, bias: Tensor | None, block: Block, *, causal: bool
) -> Tensor:
    """Return the softmax of the scores of one block: (sequences, heads, queries, keys)."""
    scores = queries @ keys.transpose(-2, -1)
    if bias is not None:
        scores += bias
    # Hidden scores get the lowest number added, which is several times faster than filling it in with a broadcast
    # mask. It is so large that the score is lost in rounding, and the weight is exactly zero.
    lowest = torch.finfo(scores.dtype).min
    if allowed is not None:
        part = cut(allowed, block)
        scores += torch.zeros_like(part, dtype=scores.dtype).masked_fill_(~part, lowest)
    if causal:
        # Earlier keys are all seen; only the square from the first query of the block on holds later keys.
        diagonal = scores[..., block[2].start :]
        diagonal += diagonal.new_full(diagonal.shape[-2:], lowest).triu_(1)
    return torch.softmax(scores, dim=-1)
