# SPDX-License-Identifier: Apache-2.0
"""Linear scan h_t = a_t h_{t-1} + b_t, element by element, from either end, in linear time and memory.

The sequence is cut into chunks, and all chunks go on by one token at once. A first pass finds for each chunk what it
makes of nothing, and the product of its factors; these form a scan over the chunks, which is solved in the same way. A
second pass goes through each chunk again, from the state in which the chunk before it ended. So the number of
operations in a row is about 2 chunk log(length) / log(chunk), and every element is read three times.

There are only products and sums, no quotients and no logarithms: a factor may be zero, and factors of absolute value at
most 1 let nothing overflow. The gradient of b is the same scan from the other end, with the conjugates of the factors;
that of a is this gradient times the conjugate of the state before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 16
"""Tokens of a chunk. On a CPU 8 to 64 take about the same time; larger ones make more operations in a row."""


def linear_scan(a: Tensor, b: Tensor, *, reverse: bool = False) -> Tensor:
    """Compute h_t = a_t h_{t-1} + b_t over axis 1, with h_{-1} = 0; reversed, h_t = a_t h_{t+1} + b_t from the end.

    The results have the precision of `b`; sums over long sequences want float32 at least.

    Args:
        a: Factors, of a shape that broadcasts to that of `b`, and of its dtype.
        b: (batch, length, ...), real or complex, with at least one token.
        reverse: Go from the last token to the first.

    Returns:
        (batch, length, ...).
    """
    a = a.expand_as(b)
    # The first state of all is b there, so that its factor has no meaning.
    return _scan(a[:, :-1] if reverse else a[:, 1:], b, reverse)


@torch.library.custom_op("attention_zoo::linear_scan", mutates_args=())
def _scan(kept: Tensor, added: Tensor, reverse: bool) -> Tensor:  # noqa: FBT001 - an operator has no keywords
    """Scan; an operator of its own, so that a compiler need not look into the loops.

    Args:
        kept: Factors between neighbouring tokens, (batch, length - 1, ...).
        added: (batch, length, ...).
        reverse: Go from the last token to the first.
    """
    out = torch.empty_like(added, memory_format=torch.contiguous_format)
    _fill(out, kept, added, reverse=reverse)
    return out


def _fill(out: Tensor, kept: Tensor, added: Tensor, *, reverse: bool) -> None:
    """Write the states of (batch, length, ...) to `out`."""
    first, others = (slice(-1, None), slice(None, -1)) if reverse else (slice(1), slice(1, None))
    out[:, first] = added[:, first]
    state: Tensor = out[:, first].squeeze(1)
    rows: tuple[Tensor, ...] = (kept, added[:, others], out[:, others])
    count = kept.shape[1] // _CHUNK
    if count > 1:
        whole = count * _CHUNK
        # What is left over comes last in the order of the scan.
        body, rest = (slice(-whole, None), slice(-whole)) if reverse else (slice(whole), slice(whole, None))
        # Tokens of all chunks at one place each, (batch, chunks, ...), in the order of the scan
        places = [_in_order(each[:, body].unflatten(1, (count, _CHUNK)), 2, reverse=reverse) for each in rows]
        product, end = (each[0].clone() for each in places[:2])
        for k, a in zip(places[0][1:], places[1][1:], strict=True):
            torch.addcmul(a, k, end, out=end)
            product *= k
        ends = torch.cat((end, out[:, first]) if reverse else (out[:, first], end), dim=1)
        states = torch.empty_like(ends)  # before the first chunk and after each
        _fill(states, product, ends, reverse=reverse)
        before = states[:, 1:] if reverse else states[:, :-1]
        for k, a, o in zip(*places, strict=True):
            torch.addcmul(a, k, before, out=o)
            before = o
        state, rows = states[:, 0 if reverse else -1], tuple(each[:, rest] for each in rows)
    for k, a, o in zip(*(_in_order(each, 1, reverse=reverse) for each in rows), strict=True):
        torch.addcmul(a, k, state, out=o)
        state = o


def _in_order(x: Tensor, axis: int, *, reverse: bool) -> tuple[Tensor, ...]:
    return x.unbind(axis)[:: -1 if reverse else 1]


@_scan.register_fake
def _(kept: Tensor, added: Tensor, reverse: bool) -> Tensor:  # noqa: ARG001, FBT001
    return torch.empty_like(added, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    kept, _, ctx.reverse = inputs
    ctx.save_for_backward(kept, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    kept, states = ctx.saved_tensors
    added = _scan(kept.conj().resolve_conj(), gradient, not ctx.reverse)
    if ctx.reverse:
        return added[:, :-1] * states[:, 1:].conj(), added, None
    return added[:, 1:] * states[:, :-1].conj(), added, None


_scan.register_autograd(_backward, setup_context=_setup_context)
