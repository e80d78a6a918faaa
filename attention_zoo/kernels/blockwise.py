"""Softmax attention with dropout in memory linear in the length, for devices whose fused kernel has no dropout.

Scores are made for a few queries at a time, small enough to stay in the processor's cache, and made again in backward;
so is the dropout mask, from a seed. Nothing of queries-by-keys size is ever stored. The gradient is that of softmax
attention as in FlashAttention (Dao et al. 2022, arXiv:2205.14135, appendix B.2), without its running maximum: here a
block of queries sees all of its keys at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_QUERIES = 64
"""Queries in a block; fixed, so that a block's scores grow linearly with the keys."""
_SCORES = 2**17
"""Scores in a block (512 KiB in float32), when several heads or sequences fit beside each other."""
_LEVELS = 2**16
"""Values of the 16 random bits that decide on one weight."""

Block = tuple[slice, slice, slice, slice]
"""Which sequences, heads, queries and keys."""


def blockwise_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Attend block by block, with dropout of the weights.

    Computes in float32 (float64 for float64 inputs), under autocast too. What is dropped depends on the state of
    torch's global CPU generator and on nothing else: not on the number of threads.

    Args:
        q: (batch, num_heads, queries, head_dim).
        k: (batch, num_heads, keys, head_dim).
        v: (batch, num_heads, keys, value_dim).
        allowed: bool, four axes broadcastable to (batch, num_heads, queries, keys); True = may be seen.
        causal: Query i sees keys 0..i only.
        dropout: Probability of dropping a weight, rounded to a multiple of 2^-16.

    Returns:
        (batch, num_heads, queries, value_dim) in the dtype of `q`. Rows that see no key are finite and unspecified.
    """
    seed = int(torch.randint(2**63 - 1, ()).item()) if dropout > 0.0 else 0
    out: Tensor = _Blockwise.apply(q, k, v, allowed, causal, dropout, seed)  # type: ignore[no-untyped-call]
    return out


def dropout_factor(q: Tensor, k: Tensor, *, causal: bool = False, dropout: float, seed: int) -> Tensor:
    """Write out what a call with this seed multiplies the weights by: 0 or 1 / (1 - rate). For comparisons only.

    Returns:
        (batch, num_heads, queries, keys); 0 where causality makes whole blocks unseen.
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
        causal: bool,  # noqa: FBT001 - autograd.Function passes by position
        dropout: float,
        seed: int,
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            queries, keys, values = _prepare(q, k, v)
            bits = DropoutBits(dropout, seed, queries)
            out = torch.empty(*q.shape[:3], v.shape[3], dtype=values.dtype, device=q.device)
            for block in _blocks(q, k, causal=causal):
                b, h, i, j = block
                weights = _weights(queries[b, h, i], keys[b, h, j], allowed, block, causal=causal)
                bits.draw(weights.shape)
                out[b, h, i] = bits.drop_(weights) @ values[b, h, j]
            out = out.mul_(bits.scale).to(q.dtype)
        ctx.save_for_backward(q, k, v, allowed, out)
        ctx.settings = (causal, dropout, seed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed, out = ctx.saved_tensors
        causal, dropout, seed = ctx.settings
        queries, keys, values = _prepare(q, k, v)
        bits = DropoutBits(dropout, seed, queries)
        grad = grad_out.to(values.dtype)
        mean = (grad * out).sum(dim=-1, keepdim=True)
        grad = grad * bits.scale
        grad_q, grad_k, grad_v = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for block in _blocks(q, k, causal=causal):
            b, h, i, j = block
            weights = _weights(queries[b, h, i], keys[b, h, j], allowed, block, causal=causal)
            bits.draw(weights.shape)
            grad_weights = bits.drop_(grad[b, h, i] @ values[b, h, j].transpose(-2, -1))
            grad_scores = grad_weights.sub_(mean[b, h, i]).mul_(weights)
            grad_q[b, h, i] = grad_scores @ keys[b, h, j]
            grad_k[b, h, j] += grad_scores.transpose(-2, -1) @ queries[b, h, i]
            grad_v[b, h, j] += bits.drop_(weights).transpose(-2, -1) @ grad[b, h, i]
        grad_q *= q.shape[-1] ** -0.5
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _prepare(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the queries, and make all three contiguous in the dtype of the computation."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries = (q.to(dtype) * q.shape[-1] ** -0.5).contiguous()
    return queries, k.to(dtype).contiguous(), v.to(dtype).contiguous()


def _blocks(q: Tensor, k: Tensor, *, causal: bool) -> Iterator[Block]:
    """Cut the scores into blocks: one group of queries by all of its keys, and as many heads and sequences as fit."""
    batch, num_heads, queries, keys = *q.shape[:3], k.shape[2]
    together = max(1, _SCORES // (min(queries, _QUERIES) * keys))
    heads = min(num_heads, together)
    sequences = max(1, together // num_heads)
    for b in range(0, batch, sequences):
        for h in range(0, num_heads, heads):
            for i in range(0, queries, _QUERIES):
                end = min(i + _QUERIES, keys) if causal else keys
                yield slice(b, b + sequences), slice(h, h + heads), slice(i, i + _QUERIES), slice(0, end)


def _weights(queries: Tensor, keys: Tensor, allowed: Tensor | None, block: Block, *, causal: bool) -> Tensor:
    """Softmax of the scores of one block: (sequences, heads, queries, keys)."""
    scores = queries @ keys.transpose(-2, -1)
    lowest = torch.finfo(scores.dtype).min  # added, not filled in: several times faster, and it swallows the score
    if allowed is not None:
        part = allowed[tuple(s if size > 1 else slice(None) for s, size in zip(block, allowed.shape, strict=True))]
        scores += torch.zeros_like(part, dtype=scores.dtype).masked_fill_(~part, lowest)
    if causal:
        diagonal = scores[..., block[2].start :]
        diagonal += diagonal.new_full(diagonal.shape[-2:], lowest).triu_(1)
    return torch.softmax(scores, dim=-1)


class DropoutBits:
    """Drops weights of block after block, the same ones for the same seed and the same blocks in the same order.

    Four decisions per 64-bit word: making the words is the dearest part of dropout.
    """

    def __init__(self, dropout: float, seed: int, like: Tensor) -> None:
        self.dropped = round(dropout * _LEVELS)
        self.scale = _LEVELS / (_LEVELS - self.dropped)
        self.generator = torch.Generator(like.device).manual_seed(seed)
        self.keep = torch.empty(0, dtype=like.dtype, device=like.device)
        self.words = torch.empty(0, dtype=torch.int64, device=like.device)

    def draw(self, shape: torch.Size) -> None:
        """Decide on the weights of the next block."""
        if self.dropped == 0:
            return
        count = math.prod(shape)
        if self.keep.shape != shape:
            self.keep = self.keep.new_empty(shape)
            self.words = self.words.new_empty(-(-count // 4))
        self.words.random_(-(2**63), None, generator=self.generator)
        threshold = self.dropped - _LEVELS // 2
        torch.ge(self.words.view(torch.int16)[:count].view(shape), threshold, out=self.keep)

    def drop_(self, weights: Tensor) -> Tensor:
        """Set the dropped weights of the block last drawn to zero, in place; `scale` is the caller's to apply."""
        return weights.mul_(self.keep) if self.dropped else weights
