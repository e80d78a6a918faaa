# SPDX-License-Identifier: Apache-2.0
"""Registers a pair of forward and backward functions as a PyTorch operator of its own.

`torch.compile` and autocast see one operator each way instead of the loops inside: the first does not unroll them, and
the second does not lower the precision of their sums. FLOP counters see one operator too, so each has a FLOP formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

aten = torch.ops.aten

Kernel = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(x, weight, sigma, normalized) -> y, differentiable once.

x is (batch, length, dim); weight (batch, length) is non-negative and sigma (batch, length) at least 0.05, both in the
dtype of the sums. A weight of zero marks a masked token: x may hold anything there, y is zero, and so is the gradient
of x. y has the dtype of x; not normalised, it is the bare weighted sum. Causal kernels and Triton's take log-weights in
place of the weights, and return their gradients; minus infinity marks a masked token there.
"""
Gradients = tuple[Tensor, Tensor, Tensor]
"""The gradients of x, (batch, length, dim), and of weight and sigma, (batch, length) each."""


class Saved(NamedTuple):
    """What a backward function gets from the forward pass."""

    x: Tensor
    """(batch, length, dim)."""
    weight: Tensor
    """(batch, length): weights, or log-weights where the kernel takes those."""
    sigma: Tensor
    """(batch, length)."""
    row: Tensor
    """(batch, length): the second result of the forward function, one number per query, such as 1 / its total."""


class Forward(Protocol):
    """A forward function: no differentiation inside, inputs contiguous."""

    def __call__(self, x: Tensor, weight: Tensor, sigma: Tensor, /, *, normalized: bool) -> tuple[Tensor, Tensor]:
        """Return y and one number per query, (batch, length), which the backward function needs."""
        ...


class Backward(Protocol):
    """A backward function."""

    def __call__(self, grad: Tensor, saved: Saved, /, *, normalized: bool) -> Gradients:
        """Return the gradients of x, weight and sigma from that of y."""
        ...


def register_custom_op(name: str, forward: Forward, backward: Backward, *, countable: bool = True) -> Kernel:
    """Register `contextpool::{name}` and its backward, and return the differentiable call.

    The FLOPs of a call depend on the widths of the Gaussians, so they are counted by running it once more. Functions
    that are not made of torch's operators cannot be counted that way: with `countable=False` they get no FLOP formula,
    and counters list them as unknown.
    """

    # The arguments of an operator are positional, and its schema is read from these signatures.
    def run_forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.contiguous(), weight.contiguous(), sigma.contiguous(), normalized=normalized)

    def run_backward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        sigma: Tensor,
        row: Tensor,
        normalized: bool,  # noqa: FBT001
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            saved = Saved(x.contiguous(), weight.contiguous(), sigma.contiguous(), row)
            return backward(grad.contiguous(), saved, normalized=normalized)

    # Shapes and dtypes of the results, for torch.compile.
    def fake_forward(x: Tensor, _weight: Tensor, sigma: Tensor, _normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
        return x.new_empty(x.shape), sigma.new_empty(sigma.shape)

    def fake_backward(
        _grad: Tensor,
        x: Tensor,
        weight: Tensor,
        sigma: Tensor,
        _row: Tensor,
        _normalized: bool,  # noqa: FBT001
    ) -> Gradients:
        return x.new_empty(x.shape), weight.new_empty(weight.shape), sigma.new_empty(sigma.shape)

    def save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3], output[1])
        ctx.normalized = inputs[3]

    def differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *backward_op(grad, *ctx.saved_tensors, ctx.normalized), None

    forward_op = torch.library.custom_op(f"contextpool::{name}", run_forward, mutates_args=())
    backward_op = torch.library.custom_op(f"contextpool::{name}_backward", run_backward, mutates_args=())
    forward_op.register_fake(fake_forward)
    backward_op.register_fake(fake_backward)
    forward_op.register_autograd(differentiate, setup_context=save)

    if countable:
        for op, run in ((name, run_forward), (f"{name}_backward", run_backward)):
            register_flop_formula(getattr(torch.ops.contextpool, op), get_raw=True)(_flops_by_running(run))

    def kernel(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> Tensor:  # noqa: FBT001
        y: Tensor = forward_op(x, weight, sigma, normalized)[0]
        return y

    return kernel


def _flops_by_running(function: Callable[..., Any]) -> Callable[..., int]:
    """Make the FLOP formula of an operator: it runs the operator's function on the same arguments and counts."""

    def formula(*arguments: Any, out_val: Any = None) -> int:  # noqa: ARG001 - the counter passes the result, too
        counter = FlopCounterMode(display=False)
        # torch has no formula for the in-place form; this registry is the counter's own copy.
        counter.flop_registry[aten.baddbmm_] = counter.flop_registry[aten.baddbmm]
        with counter, torch.no_grad():
            function(*arguments)
        return counter.get_total_flops()

    return formula
