# SPDX-License-Identifier: Apache-2.0
"""Reformer: attention by locality-sensitive hashing (Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451).

Queries and keys are the same vectors, and keys are normalised to length 1. Softmax attention is dominated by near keys,
so tokens are hashed such that near vectors often get the same bucket: with a random matrix R, the bucket of x is
argmax([x R, -x R]) (section 2 of the paper).

Tokens are sorted by bucket and position, and cut into chunks. A token attends to its own chunk and to the one before,
and to itself only if there is nothing else. Several rounds of hashing act as one softmax over the union of the pairs
that they reach; no pair counts twice.

There are three forms of the scores (`scores`), with q the vector of the query and k that of the key:

- "scaled", the default: q·k / (|k| sqrt(d)), the paper's equations to the letter.
- "unit": q·k / |k|. The authors' code (trax) and Hugging Face transformers normalise keys to the length sqrt(d) before
  they divide by sqrt(d), so that scores are larger by sqrt(d), which is 8 in heads of 64 features.
- "lra": q·k sqrt(d), from keys that are not normalised, and tokens see themselves like any other. This is what the code
  of Long Range Arena runs. Its profile has 10 chunks in all and 10 buckets; a `chunk_size` of 10, the default, is not
  that.

In 500 steps of quick ListOps (seed 0, chunks of 10, noise of the test set 2.2 points) they reached 38.8 %, 39.2 % and
35.8 %.

Departures from the paper:

- The matrices R are drawn once for each layer and stored, so that results can be repeated.
- The first chunk does not attend to the last one, and masked tokens are sorted behind all others, so that padding
  changes nothing.
- A pair that two rounds reach counts once, as in the paper. In transformers it counts twice.
- Long Range Arena's code has no output projection, and gives the same R to all heads. Here there is one, and each head
  has its own.
- There are no reversible layers, which belong to a model and not to a mixer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention, merge
from attention_zoo.kernels.blocks import neighbours, pad_mask, pad_to_blocks, seen_keys
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class ReformerConfig(QkvConfig):
    """Options of the Reformer."""

    chunk_size: int = option(10, "tokens in a chunk of the sorted sequence", least=1)
    num_buckets: int = option(10, "number of buckets of a hash, even", least=2, parity="even")
    num_hashes: int = option(1, "rounds of hashing", least=1)
    scores: Literal["scaled", "unit", "lra"] = option(
        "scaled",
        "q·k / (|k| sqrt(d)); unit: without sqrt(d), as in trax and transformers; lra: q·k sqrt(d), and itself",
    )


@register_variant(
    "reformer",
    title="Reformer",
    family="sparse",
    traits=Traits(memory="linear", complexity="O(n log n + r n c)"),
    paper="Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451",
)
class Reformer(SequenceMixer):
    """Tokens attend to those that a hash sorts next to them."""

    config: ReformerConfig
    rotations: Tensor
    """(num_hashes, num_heads, head_dim, num_buckets / 2)."""

    def __init__(self, config: ReformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        del self.projections.key  # the keys are the queries
        shape = config.num_hashes, dims.num_heads, dims.head_dim, config.num_buckets // 2
        self.register_buffer("rotations", torch.randn(shape))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        batch, length, _ = x.shape
        q, v = (self.projections.to_heads(linear(x)) for linear in (self.projections.query, self.projections.value))
        if self.projections.rotary is not None:
            q = self.projections.rotary(q)
        size, num_heads = self.config.chunk_size, self.dims.num_heads
        real = pad_mask(mask, length, size, x.device)
        q, v = (pad_to_blocks(heads, size) for heads in (q, v))
        if real is not None:
            # From here on each head of each sequence is a sequence of its own: it has its own order of tokens.
            real = real.expand(batch, -1).repeat_interleave(num_heads, dim=0)
        order = self._sort(q, real).flatten(1, 2)  # (num_hashes, batch * num_heads, length)
        heads = _attend_sorted(
            q.flatten(0, 1),
            v.flatten(0, 1),
            real,
            order,
            size=size,
            scores=self.config.scores,
            dropout=self.dims.dropout if self.training else 0.0,
        )
        return self.projections.merge(heads.unflatten(0, (batch, num_heads))[:, :, :length], mask)

    def state_size(self, length: int) -> int:
        """Queries, which are the keys, and values of all tokens: any of them may share a bucket with a later one."""
        return self.projections.cache_size(length)

    @torch.no_grad()
    def _sort(self, q: Tensor, real: Tensor | None) -> Tensor:
        """Sort tokens by bucket, then by position, masked ones last.

        Args:
            q: (batch, num_heads, length, head_dim).
            real: (batch * num_heads, length) or None.

        Returns:
            (num_hashes, batch, num_heads, length), int64: positions in the order of each round.
        """
        # (num_hashes, batch, num_heads, length, num_buckets / 2); the other buckets are the opposite directions.
        turned = q @ self.rotations.to(q.dtype).unsqueeze(1)
        bucket = torch.cat((turned, -turned), dim=-1).argmax(dim=-1)
        if real is not None:
            # One bucket behind all others for masked tokens
            bucket = bucket.masked_fill(~real.unflatten(0, q.shape[:2]), self.config.num_buckets)
        length = q.shape[2]
        # By bucket first, and by position within a bucket
        return (bucket * length + torch.arange(length, device=q.device)).argsort(dim=-1)


def _attend_sorted(
    q: Tensor, v: Tensor, real: Tensor | None, order: Tensor, *, size: int, scores: str, dropout: float
) -> Tensor:
    """Attend to the own chunk and the one before, in the order of each round, and merge the rounds.

    Args:
        q: (sequences, length, head_dim), as are `v` and the result; the length is a multiple of `size`.
        v: Values.
        real: (sequences, length) or None.
        order: (num_hashes, sequences, length): positions in the order of each round.
        size: Tokens in a chunk.
        scores: See `ReformerConfig`.
        dropout: Probability of dropping a weight.
    """
    rank = order.argsort(dim=-1)  # the inverse permutation: place of each token in the order of each round
    chunk = rank // size  # (num_hashes, sequences, length): chunk of each token, by position
    index, exists = neighbours(q.shape[1] // size, 1, 0, q.device)
    # (size, 2 * size), True where the key is the query itself; keys are those of the chunk before, then the own ones.
    itself = torch.arange(-size, size, device=q.device) == torch.arange(size, device=q.device)[:, None]
    itself = itself & (scores != "lra")  # which does not hide it
    everyone = real if real is not None else torch.ones(1, q.shape[1], dtype=torch.bool, device=q.device)
    sorted_real = [everyone if real is None else everyone.gather(1, each) for each in order]
    seen = [seen_keys(index[None], exists[None], each, size) for each in sorted_real]
    # A token is alone if its two chunks hold one real token, itself, in every round: (sequences, length), by position.
    alone = torch.stack(
        [(s.sum(-1) == 1).expand(q.shape[0], -1).gather(1, c) for s, c in zip(seen, chunk, strict=True)]
    )
    alone = alone.all(dim=0)
    # The kernel divides by sqrt(d).
    factor = q.shape[-1] ** (0.5 if scores == "unit" else 1.0)
    parts = []
    for turn in range(order.shape[0]):
        sorted_q, sorted_v = (_reorder(x, order[turn], rank[turn]) for x in (q, v))
        # Pairs that must not be counted, (sequences, chunks, size, 2 * size): the token itself, unless it is alone, and
        # then in the first round only.
        hidden = itself
        if turn == 0:
            hidden = hidden & ~alone.gather(1, order[0]).unflatten(1, (-1, size)).unsqueeze(3)
        for before in chunk[:turn]:
            # An earlier round reached a pair if its key was in the chunk of the query there, or in the one before.
            of_query = before.gather(1, order[turn]).unflatten(1, (-1, size))
            step = of_query.unsqueeze(3) - of_query[:, index].flatten(2).unsqueeze(2)
            hidden = hidden | (step == 0) | (step == 1)
        pattern = Pattern(index=index[None], key_size=size, seen=seen[turn], pairs=~hidden)
        sorted_k = sorted_q
        if scores != "lra":
            sorted_k = F.normalize(sorted_q, dim=-1, eps=max(1e-12, torch.finfo(q.dtype).tiny))
        out, log_sum = block_sparse_attention(
            sorted_q.unsqueeze(1) * factor if scores != "scaled" else sorted_q.unsqueeze(1),
            sorted_k.unsqueeze(1),
            sorted_v.unsqueeze(1),
            pattern,
            dropout=dropout,
        )
        # Back to the order of the positions
        parts.append((_reorder(out.squeeze(1), rank[turn], order[turn]), log_sum.squeeze(1).gather(1, rank[turn])))
    return parts[0][0] if len(parts) == 1 else merge(parts)[0]


def _reorder(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Take the tokens of (sequences, length, head_dim) in another order, (sequences, length)."""
    out: Tensor = _Reorder.apply(x, order, inverse)  # type: ignore[no-untyped-call]
    return out


class _Reorder(torch.autograd.Function):
    """A permutation of tokens, whose gradient is the inverse permutation.

    The gradient of plain indexing would be a sum over equal indices, which is slower; here no index comes twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.gather(1, order.unsqueeze(2).expand_as(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.gather(1, inverse.unsqueeze(2).expand_as(grad)), None, None
