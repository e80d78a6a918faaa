# SPDX-License-Identifier: Apache-2.0
"""Softmax attention in which each block of queries meets its own list of key blocks, and perhaps some shared keys.

A few blocks of queries at a time gather their keys, so few that everything stays in the processor's cache. Scores,
gathered keys and dropout are computed again in backward, so that only the inputs are stored. The log-sum-exp L of the
scores is returned beside the output, with a gradient, so that attentions over disjoint sets of keys can be merged.

The gradient of the scores is that of softmax attention, see `attention_zoo.kernels.blockwise`, plus one term for L:
with weights P, d L / d S = P, so dS = P (dP - rowsum(P dP)) + P dL.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_zoo.kernels.blocks import cut
from attention_zoo.kernels.dropout import DropoutBits

_NUMBERS_CPU = 3 * 2**16
"""Scores, or features of keys, that are computed at a time (768 KiB in float32) if several blocks fit."""
_NUMBERS_GPU = 2**27
"""512 MiB in float32, so that a step needs few kernels."""

HIDDEN = torch.finfo(torch.float32).min / 4
"""Added to a hidden score: the weight underflows to zero. The sum of three of them is still a finite number."""

Part = tuple[slice, slice, slice]
"""Slices of the sequences, the heads and the blocks of queries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """Which block of queries meets which keys. All blocks of queries have one size, and all blocks of keys have one.

    Masks are bool, True = may be seen. They must hide the entries of `index` that stand for no block, or for a block
    that is already in the list.
    """

    index: Tensor
    """(batch or 1, query blocks, slots), int64: the key blocks that a block of queries meets."""
    key_size: int
    """Keys in a key block."""
    seen: Tensor | None = None
    """(batch or 1, query blocks, slots * key_size): gathered keys that the block may see; None = all."""
    bias: Tensor | None = None
    """(batch or 1, query blocks, slots * key_size): added to the scores, without a gradient; None = 0."""
    relative: Tensor | None = None
    """(queries, slots * key_size): a further condition, the same in each block, such as a band; None = none."""
    pairs: Tensor | None = None
    """(batch, query blocks, queries, slots * key_size): a further condition on each pair; None = none."""
    shared: Tensor | None = None
    """(batch or 1, shared keys), int64: positions of keys that every query meets; None = none."""
    shared_seen: Tensor | None = None
    """(batch or 1, shared keys): those of them that may be seen; None = all."""
    by_distance: Tensor | None = None
    """(num_heads, 2 * reach - 1): added to the scores, with a gradient; entry reach - 1 + d belongs to keys that stand
    d places behind the query. What lies farther takes the outermost entry. None = 0."""
    query_blocks: Tensor | None = None
    """(batch or 1, query blocks), int64: where the blocks of queries stand, for `by_distance`; None = in order."""


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attend from each block of queries to its key blocks and to the shared keys, in one softmax.

    Computes in float32 (float64 for float64 inputs), under autocast too.

    Args:
        q: (batch, num_heads, query blocks * queries, head_dim).
        k: (batch, num_heads, key blocks * key_size, head_dim).
        v: Like `k`.
        pattern: Which block of queries meets which keys.
        dropout: Probability of dropping a weight, rounded to a multiple of 2^-16.

    Returns:
        The outputs, shaped like `q`, and the log-sum-exp of the scores, (batch, num_heads, query blocks * queries), of
        which the gradient flows too. Rows that see no key have finite outputs, and a log-sum-exp far below all others.
    """
    # Under torch.compile the call stays outside the graph: the compiler would unroll the loop over parts.
    run = torch.compiler.disable(_run) if torch.compiler.is_compiling() else _run
    out, log_sum = run(q, k, v, pattern, dropout)
    return out, log_sum


def _run(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, dropout: float) -> tuple[Tensor, Tensor]:
    seed = int(torch.randint(2**63 - 1, (), device="cpu").item()) if dropout > 0.0 else 0
    shape = _Shape(pattern.index.shape[1], pattern.key_size, dropout, seed)
    masks = pattern.seen, pattern.bias, pattern.relative, pattern.pairs
    out, log_sum = _BlockSparse.apply(  # type: ignore[no-untyped-call]
        shape,
        q,
        k.contiguous(),
        v.contiguous(),
        pattern.by_distance,
        pattern.query_blocks,
        pattern.index,
        *masks,
        pattern.shared,
        pattern.shared_seen,
    )
    return out, log_sum


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge attentions over disjoint sets of keys into the attention over their union.

    Args:
        parts: (outputs, log-sum-exp) of each, as `block_sparse_attention` returns them.

    Returns:
        The same of the union.
    """
    return functools.reduce(_merge_two, parts)


def _merge_two(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    (out, log_sum), (other_out, other_sum) = one, other
    # A part whose scores sum to exp(L) has the share exp(L') / (exp(L) + exp(L')) of the common softmax.
    share = (other_sum - log_sum).sigmoid().unsqueeze(-1).to(out.dtype)
    return out.lerp(other_out, share), torch.logaddexp(log_sum, other_sum)


class _Shape(NamedTuple):
    """The arguments of the kernel that are not tensors."""

    query_blocks: int
    key_size: int
    dropout: float
    seed: int


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shape: _Shape, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        work = _Work(shape, q, k, v, *others)
        bits = DropoutBits(shape.dropout, shape.seed, work.like)
        # In memory the output is (batch, length, num_heads, head_dim): putting the heads side by side again is free.
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        out_blocks = work.blocks_of(out)
        log_sum = work.like.new_empty(work.q.shape[:4])  # (batch, num_heads, query blocks, queries)
        with torch.autocast(q.device.type, enabled=False):
            for part in work.parts():
                queries, keys, values = work.gather(part)
                scores = work.scores(part, queries, keys)  # (batch, num_heads, blocks, queries, keys) of the part
                highest = scores.amax(dim=-1)
                weights = torch.softmax(scores, dim=-1)
                # The key with the highest score s has the weight exp(s - L), so L = s - log(weight): no second pass
                # through the exponential is needed.
                log_sum[part] = highest - weights.amax(dim=-1).log()
                bits.draw(weights.shape)
                out_blocks[part] = (bits.drop_(weights) @ values).mul_(bits.scale)
        ctx.save_for_backward(q, k, v, *others)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return out, log_sum.flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_log_sum: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        work = _Work(ctx.shape, *inputs)
        bits = DropoutBits(ctx.shape.dropout, ctx.shape.seed, work.like)
        grad_q = torch.empty_like(inputs[0])
        grad_blocks = work.blocks_of(torch.zeros_like(grad_q) if grad_out is None else grad_out)
        grad_sums = None if grad_log_sum is None else work.blocks_of(grad_log_sum.unsqueeze(-1))
        grad_q_blocks, grad_k, grad_v = work.blocks_of(grad_q), work.accumulator(), work.accumulator()
        table = inputs[3]
        grad_table = torch.zeros_like(table, dtype=work.like.dtype) if ctx.needs_input_grad[4] else None
        with torch.autocast(grad_q.device.type, enabled=False):
            for part in work.parts():
                queries, keys, values = work.gather(part)
                weights = torch.softmax(work.scores(part, queries, keys), dim=-1)
                grad = grad_blocks[part].to(work.like.dtype) * bits.scale
                bits.draw(weights.shape)
                grad_weights = bits.drop_(grad @ values.transpose(-2, -1))
                # P (dP - rowsum(P dP)) in one pass
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                if grad_sums is not None:  # + P dL
                    grad_scores.addcmul_(weights, grad_sums[part])
                if grad_table is not None:
                    work.add_by_distance(part, grad_table, grad_scores)
                grad_q_blocks[part] = (grad_scores @ keys).mul_(work.scale)
                work.scatter(part, grad_k, grad_scores.transpose(-2, -1) @ queries)
                work.scatter(part, grad_v, bits.drop_(weights).transpose(-2, -1) @ grad)
        grad_table = None if grad_table is None else grad_table.to(table.dtype)
        return None, grad_q, work.collect(grad_k), work.collect(grad_v), grad_table, *[None] * 8


class _Work:
    """The inputs cut into blocks, and the parts of the work that fit into the cache.

    Keys and values are kept as one long list of blocks, (batch * num_heads * key blocks, key_size, head_dim), from
    which a part gathers its own by number.
    """

    def __init__(
        self,
        shape: _Shape,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        query_blocks: Tensor | None,
        index: Tensor,
        seen: Tensor | None,
        bias: Tensor | None,
        relative: Tensor | None,
        pairs: Tensor | None,
        shared: Tensor | None,
        shared_seen: Tensor | None,
    ) -> None:
        self.query_blocks = shape.query_blocks
        self.q = self.blocks_of(q)
        self.key_shape = k.shape
        # (batch * num_heads * key blocks, key_size, head_dim)
        self.k, self.v = (x.unflatten(2, (-1, shape.key_size)).flatten(0, 2) for x in (k, v))
        # A row is a pair of a sequence and a head: block j of row r is number r * (key blocks) + j in the list, and
        # token j is number r * length + j in the list of tokens.
        rows = torch.arange(k.shape[0] * k.shape[1], device=q.device).view(k.shape[0], k.shape[1], 1)
        # (batch, num_heads, query blocks, slots)
        self.index = rows.unsqueeze(3) * (k.shape[2] // shape.key_size) + index.unsqueeze(1)
        # (batch, num_heads, shared keys)
        self.shared = None if shared is None else rows * k.shape[2] + shared.unsqueeze(1)
        self.num_shared = 0 if shared is None else shared.shape[1]
        self.scale = q.shape[-1] ** -0.5
        self.like = q.new_empty(0, dtype=torch.promote_types(q.dtype, torch.float32))
        # All conditions take the five axes of the scores: (batch, num_heads, query blocks, queries, keys).
        self.seen = None if seen is None else self._penalty(seen[:, None, :, None])
        self.bias = None if bias is None else bias[:, None, :, None].to(self.like.dtype)
        self.relative = None if relative is None else self._penalty(relative)
        self.pairs = None if pairs is None else pairs.unsqueeze(1)
        self.shared_seen = None if shared_seen is None else self._penalty(shared_seen[:, None, None, None])
        self.table = None if table is None else table.to(self.like.dtype)
        if self.table is not None:
            if query_blocks is None:
                query_blocks = torch.arange(self.query_blocks, device=q.device)[None]
            # Places of queries, (batch or 1, query blocks, queries), and of keys, (batch or 1, query blocks, all keys)
            self.query_places = _places(query_blocks, self.q.shape[3])
            self.key_places = _places(index, shape.key_size).flatten(2)
            if shared is not None:
                common, batch = shared.unsqueeze(1), max(len(shared), len(index))
                both = common.expand(batch, index.shape[1], -1), self.key_places.expand(batch, -1, -1)
                self.key_places = torch.cat(both, dim=2)

    def _penalty(self, condition: Tensor) -> Tensor:
        """Return what is added to the scores: 0 where the condition holds, HIDDEN elsewhere."""
        return condition.logical_not().to(self.like.dtype).mul_(HIDDEN)

    def blocks_of(self, x: Tensor) -> Tensor:
        """View a tensor that is laid out as the queries as (batch, num_heads, query blocks, queries, features)."""
        return x.unflatten(2, (self.query_blocks, -1))

    def parts(self) -> Iterator[Part]:
        """Cut the work into parts of as many blocks of queries, heads and sequences as fit into the cache."""
        batch, num_heads, blocks, size, head_dim = self.q.shape
        keys = self.num_shared + self.index.shape[3] * self.k.shape[1]
        # The largest tensor of a block is its scores (queries * keys), or for few queries its keys (keys * head_dim).
        numbers = keys * max(size, head_dim)
        together = max(1, (_NUMBERS_CPU if self.q.device.type == "cpu" else _NUMBERS_GPU) // numbers)
        heads = max(1, together // blocks)
        sequences = max(1, heads // num_heads)
        for b in range(0, batch, sequences):
            for h in range(0, num_heads, heads):
                for i in range(0, blocks, together):
                    yield slice(b, b + sequences), slice(h, h + heads), slice(i, i + together)

    def gather(self, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values: (batch, num_heads, blocks, tokens, head_dim) of the part."""
        queries = self.q[part].to(self.like.dtype) * self.scale
        return queries, self._gather(part, self.k), self._gather(part, self.v)

    def _gather(self, part: Part, blocks: Tensor) -> Tensor:
        x = _pick(blocks, self.index[part]).flatten(3, 4)  # (batch, num_heads, blocks, slots * key_size, head_dim)
        if self.shared is not None:
            # Shared keys are tokens, not blocks; they are the same for all blocks of queries.
            common = _pick(blocks.flatten(0, 1), self.shared[part[:2]]).unsqueeze(2)
            x = torch.cat((common.expand(-1, -1, x.shape[2], -1, -1), x), dim=3)
        return x.to(self.like.dtype)

    def scores(self, part: Part, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the scores of the part, lowered by HIDDEN where a key is hidden.

        Returns:
            (batch, num_heads, blocks, queries, shared + gathered keys).
        """
        scores = queries @ keys.transpose(-2, -1)
        if self.table is not None:
            # (heads, batch or 1, blocks, queries, keys) of the part
            scores += self.table[part[1]][:, self._entries(part)].transpose(0, 1)
        shared, own = scores[..., : self.num_shared], scores[..., self.num_shared :]  # views: changed in place
        if self.seen is not None:
            own += cut(self.seen, part)
        if self.bias is not None:
            own += cut(self.bias, part)
        if self.relative is not None:
            own += self.relative
        if self.pairs is not None:
            own += self._penalty(cut(self.pairs, part))  # the only condition as large as the scores
        if self.shared_seen is not None:
            shared += cut(self.shared_seen, part)
        return scores

    def _entries(self, part: Part) -> Tensor:
        """Return the entry of the table for each pair: (batch or 1, blocks, queries, keys) of the part."""
        assert self.table is not None
        here = part[0], part[2]
        distance = cut(self.key_places, here).unsqueeze(2) - cut(self.query_places, here).unsqueeze(3)
        last = self.table.shape[1] - 1
        return (distance + last // 2).clamp(0, last)

    def add_by_distance(self, part: Part, total: Tensor, grad_scores: Tensor) -> None:
        """Sum the gradients of the scores over the pairs at each distance, (num_heads, 2 * reach - 1)."""
        entries = self._entries(part)
        if entries.shape[0] == 1:
            grad_scores = grad_scores.sum(dim=0, keepdim=True)
        own = total[part[1]]
        own.index_add_(1, entries.flatten(), grad_scores.transpose(0, 1).flatten(1))

    def accumulator(self) -> tuple[Tensor, Tensor | None]:
        """Return zeros for the gradients of the key blocks and of the shared keys."""
        shared = None if self.shared is None else self.like.new_zeros(*self.shared.shape, self.k.shape[2])
        return self.like.new_zeros(self.k.shape), shared

    def scatter(self, part: Part, total: tuple[Tensor, Tensor | None], grad: Tensor) -> None:
        """Add gradients (batch, num_heads, blocks, shared + gathered keys, head_dim) to those of their keys."""
        own, shared = total
        if shared is not None:
            shared[part[:2]] += grad[..., : self.num_shared, :].sum(dim=2)
            grad = grad[..., self.num_shared :, :].contiguous()
        # A key block may be gathered by several blocks of queries: `index_add_` sums their gradients.
        own.index_add_(0, self.index[part].flatten(), grad.unflatten(3, (-1, own.shape[1])).flatten(0, 3))

    def collect(self, total: tuple[Tensor, Tensor | None]) -> Tensor:
        """Bring sums of gradients into the shape and dtype of the keys."""
        own, shared = total
        if self.shared is not None and shared is not None:
            own.flatten(0, 1).index_add_(0, self.shared.flatten(), shared.flatten(0, 2))
        return own.view(self.key_shape).to(self.k.dtype)


def _places(blocks: Tensor, size: int) -> Tensor:
    """List the tokens of blocks: (..., size)."""
    return blocks.unsqueeze(-1) * size + torch.arange(size, device=blocks.device)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Select entries of the first axis: (*index, ...)."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)
