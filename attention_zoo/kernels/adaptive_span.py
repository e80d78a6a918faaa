# SPDX-License-Identifier: Apache-2.0
"""Softmax attention whose weights fade out with the distance, over a band of keys and in linear memory.

The weights are m exp(s) / sum(m exp(s)), with scores s and the mask m = clamp(1 - (distance - span) / ramp, 0, 1) of
Sukhbaatar et al. 2019 (arXiv:1905.07799, the soft mask m_z). Since m exp(s) = exp(s + log m), log m is added to the
scores and an ordinary softmax follows. A few queries at a time meet the keys of their band. Scores are computed again
in backward, and dropout is drawn again from its seed, so no tensor of queries-by-keys size is ever stored.

On a CPU the longest span limits the band. Other devices meet all keys: to read the longest span would stop them in
every layer, and a key out of reach has the weight zero either way.

The gradient of the scores is that of softmax attention, see `attention_zoo.kernels.blockwise`. The span gets its
gradient through log m: d loss / d span = sum over queries and keys of dS * (d log m / d span), and on the ramp
d log m / d span = 1 / (ramp * m).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_zoo.kernels.blocks import cut
from attention_zoo.kernels.blockwise import by_pair, by_place, prepare

_QUERIES = {"cpu": 64, "cuda": 1024}
"""Queries in a block. The number is fixed, so that the scores of a block grow linearly with the band."""
_STEP = 32
"""The radius of the band is rounded up to a multiple of this, so that shapes seldom change while spans move."""
_SCORES = {"cpu": 2**18, "cuda": 2**29}
"""Scores in a block of several sequences: those of a CPU stay in its cache, of a GPU take 2 GiB, for few launches."""


class Band(NamedTuple):
    """Which keys a query meets, and how the weights fade with the distance."""

    ramp: int
    """Distance over which m falls from 1 to 0."""
    causal: bool = False
    num_prefix: int = 0
    """Leading tokens at distance 0 of every token."""
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class _Block:
    """A part of the work: some sequences, a range of queries, and the range of keys that these meet.

    Every block meets the first `prefix` keys as well, in front of its range.
    """

    sequences: slice
    queries: slice
    keys: slice
    prefix: int

    def take(self, x: Tensor) -> Tensor:
        """Take the keys of the block from (batch, num_heads, length, features), those of the prefix first."""
        band = x[self.sequences, :, self.keys]
        return torch.cat((x[self.sequences, :, : self.prefix], band), dim=2) if self.prefix else band

    def is_later(self, device: torch.device) -> Tensor:
        """Say which keys stand behind the query: (queries, prefix + keys)."""
        i = torch.arange(self.queries.start, self.queries.stop, device=device)
        band = torch.arange(self.keys.start, self.keys.stop, device=device)
        return torch.cat((torch.arange(self.prefix, device=device), band)) > i[:, None]

    def add_to(self, total: Tensor, part: Tensor) -> None:
        """Add the gradients of the keys of the block to (batch, num_heads, length, features)."""
        if self.prefix:
            total[self.sequences, :, : self.prefix].add_(part[:, :, : self.prefix])
        total[self.sequences, :, self.keys].add_(part[:, :, self.prefix :])

    def by_distance(self, bias: Tensor) -> Tensor:
        """Write out a bias by distance for the pairs of the block, broadcastable to (num_heads, queries, keys)."""
        here = bias[:, bias.shape[1] // 2, None, None]  # distance 0
        if self.queries.start < self.prefix:
            return here
        count = self.queries.stop - self.queries.start
        pairs = by_pair(bias[:, self._offsets(bias)], count)
        return torch.cat((here.expand(-1, count, self.prefix), pairs), dim=2)

    def add_by_distance(self, total: Tensor, pairs: Tensor) -> None:
        """Add (num_heads, queries, keys) of the block by distance, the transpose of `by_distance`."""
        prefix = pairs if self.queries.start < self.prefix else pairs[..., : self.prefix]
        total[:, total.shape[1] // 2] += prefix.sum(dim=(1, 2))
        if self.queries.start >= self.prefix:
            total[:, self._offsets(total)] += by_place(pairs[..., self.prefix :])

    def _offsets(self, bias: Tensor) -> slice:
        """Return which entries of a bias by distance the queries and keys behind the prefix have."""
        middle = bias.shape[1] // 2
        return slice(self.keys.start - self.queries.stop + 1 + middle, self.keys.stop - self.queries.start + middle)

    def part_of(self, span: Tensor) -> Tensor:
        """Take the spans of the queries; axes of size 1 stand for all sequences or all queries."""
        return cut(span, (self.sequences, slice(None), self.queries))


def spanned_attention(
    q: Tensor, k: Tensor, v: Tensor, span: Tensor, mask: Tensor | None, band: Band, bias: Tensor | None = None
) -> Tensor:
    """Compute softmax attention within spans.

    Computes in float32 (float64 for float64 inputs), under autocast too.

    Args:
        q: (batch, num_heads, length, head_dim).
        k: Like `q`.
        v: Like `q`.
        span: Distance up to which m = 1, in tokens; (1 or batch, num_heads, 1 or length).
        mask: (batch, length), bool, True = real token.
        band: Ramp, causality, prefix and dropout.
        bias: (num_heads, 2 * length - 1), added to the scores; entry length - 1 + d belongs to keys that stand d places
            behind the query, and that in the middle to prefix tokens. None = none.

    Returns:
        (batch, num_heads, length, head_dim) in the dtype of `q`; finite and unspecified for a query that sees no key.
    """
    if torch.compiler.is_compiling():
        compiled: Tensor = torch.ops.attention_zoo.spanned_attention(q, k, v, span, mask, bias, *band)[0]
        return compiled
    out: Tensor = _Spanned.apply(q, k, v, span, mask, bias, band, _new_seed(band))  # type: ignore[no-untyped-call]
    return out


def _new_seed(band: Band) -> int:
    """Draw one number from the global generator of the CPU, which stands for all decisions of dropout."""
    return int(torch.randint(2**63 - 1, (), device="cpu").item()) if band.dropout > 0.0 else 0


class _Spanned(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        span: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        band: Band,
        seed: int,
    ) -> Tensor:
        out = _forward(q, k, v, span, mask, bias, band, seed)
        ctx.save_for_backward(q, k, v, span, mask, bias, out)
        ctx.settings = band, seed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grads = _backward(grad_out, *ctx.saved_tensors, *ctx.settings, for_bias=ctx.needs_input_grad[5])
        return *grads[:4], None, grads[4], None, None


# Under torch.compile the two passes are operators of their own: the compiler need not look into the loops.
_NAME = "attention_zoo::spanned_attention"


def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    ramp: int,
    causal: bool,  # noqa: FBT001 - an operator has no keywords
    num_prefix: int,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Return the outputs and, on the CPU, the seed of dropout."""
    band = Band(ramp, causal, num_prefix, dropout)
    seed = _new_seed(band)
    return _forward(q, k, v, span, mask, bias, band, seed), torch.tensor(seed, device="cpu")


# Not `custom_op`, which takes no tags in torch 2.6. The tag keeps the compiler from drawing dropout a second time.
_TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)
torch.library.define(_NAME, torch.library.infer_schema(_operator, mutates_args=()), tags=_TAGS)
torch.library.impl(_NAME, "default", _operator)


@torch.library.custom_op("attention_zoo::spanned_attention_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    seed: Tensor,
    ramp: int,
    causal: bool,  # noqa: FBT001
    num_prefix: int,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, span and bias; that of no bias is empty."""
    band = Band(ramp, causal, num_prefix, dropout)
    grads = _backward(grad, q, k, v, span, mask, bias, out, band, int(seed.item()), for_bias=bias is not None)
    return *grads[:4], q.new_empty(0) if grads[4] is None else grads[4]


def _fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), torch.empty((), dtype=torch.int64, device="cpu")


torch.library.register_fake(_NAME, _fake)


@_backward_operator.register_fake
def _(_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, span: Tensor, _mask: Any, bias: Any, *_: Any) -> Any:
    made = (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), torch.empty_like(span))
    return *made, q.new_empty(0) if bias is None else torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.band = inputs[6:]


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    grads = _backward_operator(grad, *ctx.saved_tensors, *ctx.band)
    return *grads[:4], None, grads[4] if ctx.needs_input_grad[5] else None, *[None] * 4


torch.library.register_autograd(_NAME, _differentiate, setup_context=_save)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, span: Tensor, mask: Tensor | None, bias: Tensor | None, band: Band, seed: int
) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        queries, keys, values = prepare(q, k, v)
        spans, hidden = span.to(values.dtype), _hidden(mask, values.dtype)
        dropout, fade = _Dropout(band, seed, q.device), _Fade(spans, q.shape[2], band, backward=False)
        out = torch.empty_like(values)
        for block in _blocks(q, band, _radius(span, q.shape[2], band)):
            # (sequences, num_heads, queries of the block, prefix + keys of the band)
            weights = _weights(queries, keys, hidden, fade.of(block)[0], block, bias)
            out[block.sequences, :, block.queries] = dropout.apply_(weights) @ block.take(values)
        return out.to(q.dtype)


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    band: Band,
    seed: int,
    *,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of q, k, v and span, and that of the bias if asked for."""
    queries, keys, values = prepare(q, k, v)
    spans, hidden = span.to(values.dtype), _hidden(mask, values.dtype)
    dropout, fade = _Dropout(band, seed, q.device), _Fade(spans, q.shape[2], band, backward=True)
    grad = grad_out.to(values.dtype)
    mean = (grad * out).sum(dim=-1, keepdim=True)  # rowsum(dO O), (batch, num_heads, length, 1)
    grad_q, grad_k, grad_v = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
    grad_span = torch.zeros_like(spans)
    grad_bias = torch.zeros_like(bias, dtype=grad.dtype) if bias is not None and for_bias else None
    for block in _blocks(q, band, _radius(span, q.shape[2], band)):
        b, i = block.sequences, block.queries
        log_m, slope = fade.of(block)
        assert slope is not None
        weights = _weights(queries, keys, hidden, log_m, block, bias)
        keep = dropout.draw(weights)
        # dP, then dS = P (dP - rowsum(dO O)): (sequences, num_heads, queries, keys)
        grad_weights = grad[b, :, i] @ block.take(values).transpose(-2, -1)
        grad_weights = grad_weights if keep is None else grad_weights.mul_(keep)
        grad_scores = grad_weights.sub_(mean[b, :, i]).mul_(weights)
        dropped = weights if keep is None else weights.mul_(keep)
        block.add_to(grad_v, dropped.transpose(-2, -1) @ grad[b, :, i])
        block.add_to(grad_k, grad_scores.transpose(-2, -1) @ queries[b, :, i])
        grad_q[b, :, i] = grad_scores @ block.take(keys)
        if grad_bias is not None:
            block.add_by_distance(grad_bias, grad_scores.sum(dim=0))
        # dS reaches log m unchanged, so the span gets the sum over the keys of dS times the slope of log m.
        part = block.part_of(grad_span)
        part += grad_scores.mul_(slope).sum(dim=-1).sum_to_size(part.shape)
    grad_q *= q.shape[-1] ** -0.5  # `queries` hold the scale, so dk has it already; dq does not
    if bias is not None and grad_bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_span.to(span.dtype), grad_bias


def _radius(span: Tensor, length: int, band: Band) -> int:
    """Return the farthest distance at which keys are met; from the longest span + ramp on their weight is zero."""
    if span.device.type != "cpu" or span.numel() == 0:
        return length
    longest = span.max().item()
    if not math.isfinite(longest):  # training has diverged
        return length
    return min(-(-(math.ceil(longest) + band.ramp) // _STEP) * _STEP, length)


def _blocks(q: Tensor, band: Band, radius: int) -> Iterator[_Block]:
    """Cut the band into blocks: prefix tokens first, with all keys, then a few queries at a time with their band."""
    (batch, num_heads, length, _), device = q.shape, q.device.type
    size, most = (each.get(device, each["cuda"]) for each in (_QUERIES, _SCORES))
    # The prefix is at distance 0 of everything, so as queries its tokens meet all keys.
    prefix = min(band.num_prefix, length)
    starts = range(prefix, length, size)
    ranges = [(slice(0, prefix), slice(prefix, length))] if prefix else []
    for start in starts:
        stop = min(start + size, length)
        last = stop if band.causal else min(stop + radius, length)
        ranges.append((slice(start, stop), slice(max(prefix, start - radius), last)))
    for queries, keys in ranges:
        scores = num_heads * (queries.stop - queries.start) * (prefix + keys.stop - keys.start)
        together = max(1, most // scores)
        for row in range(0, batch, together):
            yield _Block(slice(row, row + together), queries, keys, prefix)


class _Fade:
    """The mask m of the blocks of one pass: log m, and its derivative by the span.

    If a head has one span for all sequences and tokens, log m depends on the offset key - query alone. It is then
    computed once, as a line over all offsets, and every block reads its values from there.
    """

    def __init__(self, spans: Tensor, length: int, band: Band, *, backward: bool) -> None:
        self.spans, self.length, self.band, self.backward = spans, length, band, backward
        self.lowest = torch.finfo(spans.dtype).min / 4
        """Stands for log 0: its sum with any score and with itself is finite, and its weight is exactly zero."""
        # |offset| for offsets 1 - length .. length - 1
        self.offsets = torch.arange(1 - length, length, device=spans.device).abs_().to(spans.dtype)
        self.by_distance = spans.numel() == spans.shape[1]
        if self.by_distance:
            self.line, self.slopes = self._fade(self.offsets, spans)  # (1, num_heads, 2 * length - 1)

    def of(self, block: _Block) -> tuple[Tensor, Tensor | None]:
        """Return log m and d log m / d span, both broadcastable to (sequences, num_heads, queries, keys)."""
        if self.by_distance:
            log_m = self._read(self.line, block)
            slope = None if self.slopes is None else self._read(self.slopes, block)
        else:
            # spans (sequences, num_heads, queries, 1) against distances (1, 1, queries, keys)
            distance = self._read(self.offsets[None, None], block)
            log_m, slope = self._fade(distance, block.part_of(self.spans)[..., None])
        return (log_m.masked_fill_(block.is_later(log_m.device), self.lowest) if self.band.causal else log_m), slope

    def _read(self, line: Tensor, block: _Block) -> Tensor:
        """Read (1, num_heads, queries, keys) from a line over all offsets; 0 for prefix tokens, at distance 0."""
        queries, keys = block.queries, block.keys
        count, met = queries.stop - queries.start, keys.stop - keys.start
        if queries.start < block.prefix:
            return line.new_zeros(*line.shape[:2], count, block.prefix + met)
        # `unfold` makes windows of `met` neighbouring offsets, each starting one further on than the one before. The
        # last query of the block has the lowest offsets, hence the first window: `flip` puts the queries in order.
        first = keys.start - queries.stop + self.length
        values = line[..., first : first + count + met - 1].unfold(-1, met, 1).flip(2)
        return torch.nn.functional.pad(values, (block.prefix, 0)) if block.prefix else values

    def _fade(self, distance: Tensor, spans: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return log m at these distances, and with `backward` its derivative by the span."""
        # m = 1 within the span and falls to 0 over the ramp beyond it.
        beyond = (distance - spans).relu_()
        m = 1.0 - beyond / self.band.ramp
        # In this form a NaN in a span gives NaN: m <= 0 is false for it. A clamp would hide that training diverged.
        outside, slope = m <= 0.0, None
        if self.backward:
            slope = (self.band.ramp * m).reciprocal_().masked_fill_(outside.logical_or(beyond <= 0.0), 0.0)
        return m.log_().masked_fill_(outside, self.lowest), slope


def _hidden(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the scores of masked keys, shaped as keys are: (batch, 1, length, 1)."""
    return None if mask is None else mask.logical_not()[:, None, :, None].to(dtype) * (torch.finfo(dtype).min / 4)


def _weights(
    queries: Tensor, keys: Tensor, hidden: Tensor | None, log_m: Tensor, block: _Block, bias: Tensor | None
) -> Tensor:
    """Return the softmax of the scores of one block: (sequences, num_heads, queries, keys)."""
    scores = queries[block.sequences, :, block.queries] @ block.take(keys).transpose(-2, -1)
    scores += log_m
    if bias is not None:
        scores += block.by_distance(bias.to(scores.dtype))
    if hidden is not None:
        scores += block.take(hidden).transpose(-2, -1)
    return torch.softmax(scores, dim=-1)


class _Dropout:
    """Drops weights of block after block; the same seed and the same blocks in the same order drop the same weights."""

    def __init__(self, band: Band, seed: int, device: torch.device) -> None:
        self.rate = band.dropout
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self, weights: Tensor) -> Tensor | None:
        """Return the factor of the next block's weights, 0 or 1 / (1 - rate); None without dropout."""
        if self.rate == 0.0:
            return None
        keep = torch.empty_like(weights).bernoulli_(1.0 - self.rate, generator=self.generator)
        return keep.mul_(1.0 / (1.0 - self.rate))

    def apply_(self, weights: Tensor) -> Tensor:
        """Drop the next block's weights, in place."""
        keep = self.draw(weights)
        return weights if keep is None else weights.mul_(keep)
