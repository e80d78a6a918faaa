# SPDX-License-Identifier: Apache-2.0
"""The selective scan of Mamba in linear time, without a state for every token in memory.

    h_t = exp(step_t * a) h_{t-1} + b_t driven_tᵀ,    y_t = c_t·h_t,

where h_t is (states, dim), step_t and driven_t are (dim,), b_t and c_t are (states,), and a is (states, dim). All
states of all tokens are `states` times as large as the sequence. Here the sequence is cut into chunks of about the root
of its length, at most `_LONGEST` tokens, and all chunks go on by one token at once. Only the states at the start of
each chunk are kept for backward, which makes the others again, a few tokens at a time.

Every chunk is run twice: from nothing, for what it leaves to the next ones, and from the state in which they leave it.
The exponents are never positive where a is negative and the steps are not, so that nothing overflows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.kernels.scan import linear_scan

_LONGEST = 64
"""Most tokens of a chunk."""
_SEGMENT = 8
"""Tokens of a chunk whose states are in memory together in backward."""


def selective_scan(driven: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Compute y.

    Args:
        driven: (batch, length, dim), float32 or float64; in Mamba the product of step and input.
        step: At least 0, (batch, length, dim).
        a: Negative, (states, dim).
        b: (batch, length, states).
        c: (batch, length, states).

    Returns:
        (batch, length, dim).
    """
    length = driven.shape[1]
    chunk = min(_LONGEST, 1 << ((length - 1).bit_length() + 1) // 2)
    # (batch, chunks, chunk, features); a step of zero at the end changes no state
    parts = [F.pad(each, (0, 0, 0, -length % chunk)).unflatten(1, (-1, chunk)) for each in (driven, step, b, c)]
    y: Tensor = _scan(*parts[:2], a, *parts[2:])[0]
    return y.flatten(1, 2)[:, :length]


@torch.library.custom_op("attention_zoo::selective_scan", mutates_args=())
def _scan(driven: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return y, (batch, chunks, chunk, dim), and the states at the start of chunks, (batch, chunks, states, dim)."""
    move = _Move(driven, step, a, b)
    ends = torch.zeros_like(move.factor)
    for place in range(driven.shape[2]):
        move.on(ends, place)
    starts = _moved_on(linear_scan(_whole(step, a), ends))
    y, state = torch.empty_like(driven, memory_format=torch.contiguous_format), starts.clone()
    for place in range(driven.shape[2]):
        move.on(state, place)
        y[:, :, place] = (c[:, :, place, None, :] @ state).squeeze(2)
    return y, starts


@torch.library.custom_op("attention_zoo::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor, driven: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of driven, step, a, b and c."""
    move, places = _Move(driven, step, a, b), range(driven.shape[2])
    # The gradient of a state is that of its own y, and what comes back from the next state. Across chunks, it is the
    # scan of the states from the other end.
    comes_back = torch.zeros_like(starts)
    for place in reversed(places):
        comes_back.addcmul_(c[:, :, place, :, None], grad_y[:, :, place, None, :]).mul_(move.factor_at(place))
    scanned = linear_scan(_whole(step, a), comes_back, reverse=True)
    gradient = _moved_on(scanned.flip(1)).flip(1)
    marks, state = [], starts.clone()
    for place in places:
        if place % _SEGMENT == 0:
            marks.append(state.clone())
        move.on(state, place)
    of_driven, of_step, of_b, of_c = (torch.empty_like(each) for each in (driven, step, b, c))
    of_a = torch.zeros_like(starts)
    for first, mark in reversed(list(zip(places[::_SEGMENT], marks, strict=True))):
        segment, states = places[first : first + _SEGMENT], [mark]
        for place in segment:
            states.append(move.on(states[-1].clone(), place))
        for place in reversed(segment):
            upper = grad_y[:, :, place, None, :]  # (batch, chunks, 1, dim)
            gradient.addcmul_(c[:, :, place, :, None], upper)
            of_c[:, :, place] = (states.pop() @ upper.transpose(2, 3)).squeeze(3)
            of_b[:, :, place] = (gradient @ driven[:, :, place, :, None]).squeeze(3)
            of_driven[:, :, place] = (b[:, :, place, None, :] @ gradient).squeeze(2)
            # From here on the gradient of the state before, and with it that of the exponent step * a
            exponent = gradient.mul_(move.factor_at(place)) * states[-1]
            of_a.addcmul_(exponent, step[:, :, place, None, :])
            of_step[:, :, place] = exponent.mul_(a).sum(dim=2)
    return of_driven, of_step, of_a.sum(dim=(0, 1)), of_b, of_c


class _Move:
    """Moves the states of all chunks, (batch, chunks, states, dim), over the token at one place of each chunk."""

    def __init__(self, driven: Tensor, step: Tensor, a: Tensor, b: Tensor) -> None:
        self.driven, self.step, self.a, self.b = driven, step, a, b
        self.factor = driven.new_empty((*driven.shape[:2], *a.shape))  # used again for every place

    def factor_at(self, place: int) -> Tensor:
        """Return exp(step * a)."""
        return torch.mul(self.a, self.step[:, :, place, None, :], out=self.factor).exp_()

    def on(self, state: Tensor, place: int) -> Tensor:
        """Change states in place, and return them."""
        added = self.b[:, :, place, :, None], self.driven[:, :, place, None, :]
        return state.mul_(self.factor_at(place)).addcmul_(*added)


def _whole(step: Tensor, a: Tensor) -> Tensor:
    """Return the product of the factors of each chunk, (batch, chunks, states, dim)."""
    return (a * step.sum(dim=2)[:, :, None, :]).exp_()


def _moved_on(states: Tensor) -> Tensor:
    """Shift (batch, chunks, ...) to the next chunk; the first one gets zeros."""
    return torch.cat((torch.zeros_like(states[:, :1]), states[:, :-1]), dim=1)


@_scan.register_fake
def _(driven: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(driven, memory_format=torch.contiguous_format), driven.new_empty(
        (*driven.shape[:2], *a.shape)
    )


@_scan_backward.register_fake
def _(
    grad_y: Tensor,  # noqa: ARG001
    driven: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    starts: Tensor,  # noqa: ARG001
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(each) for each in (driven, step, a, b, c))


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad_y: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _scan_backward(grad_y.contiguous(), *ctx.saved_tensors)
    return gradients


_scan.register_autograd(_backward, setup_context=_setup_context)
