"""Pairs of forward and backward functions as opaque PyTorch operators.

`torch.compile` and autocast see one operator each way instead of the loops inside: the first does not unroll them, and
the second does not lower the precision of their sums. Counters of FLOPs see one operator too, so each has a formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

aten = torch.ops.aten

Forward = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""(x, weight, sigma, normalized) -> (y, one factor per row, which the backward needs)."""
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
"""(gradient of y, x, weight, sigma, factor, normalized) -> gradients of x, weight and sigma."""
Kernel = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(x, weight, sigma, normalized) -> y, differentiable once.

x is (batch, length, dim); weight (batch, length) is non-negative and sigma (batch, length) at least 0.05, both in the
dtype of the sums. A weight of zero marks a masked token: x may hold anything there, y is zero, and so is the gradient
of x. y has the dtype of x; not normalised, it is the bare weighted sum. Causal kernels and Triton's take log-weights in
place of the weights, and return their gradients; minus infinity marks a masked token there.
"""


def opaque_kernel(name: str, forward: Forward, backward: Backward, *, countable: bool = True) -> Kernel:
    """Register `contextpool::{name}` and its backward, and return the differentiable call.

    The FLOPs of a call depend on the widths of the Gaussians, so they are counted by running it once more. Without
    `countable`, for functions that are not made of torch's operators, it has no formula and counters list it.
    """

    @torch.library.custom_op(f"contextpool::{name}_backward", mutates_args=())
    def run_backward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        sigma: Tensor,
        scale: Tensor,
        normalized: bool,  # noqa: FBT001 - an operator's arguments are positional
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            x, weight, sigma = x.contiguous(), weight.contiguous(), sigma.contiguous()
            return backward(grad.contiguous(), x, weight, sigma, scale, normalized)

    @torch.library.custom_op(f"contextpool::{name}", mutates_args=())
    def run_forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.contiguous(), weight.contiguous(), sigma.contiguous(), normalized)

    def fake_forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG001, FBT001
        return x.new_empty(x.shape), sigma.new_empty(sigma.shape)

    def fake_backward(
        grad: Tensor,  # noqa: ARG001
        x: Tensor,
        weight: Tensor,
        sigma: Tensor,
        scale: Tensor,  # noqa: ARG001
        normalized: bool,  # noqa: ARG001, FBT001
    ) -> tuple[Tensor, Tensor, Tensor]:
        return x.new_empty(x.shape), weight.new_empty(weight.shape), sigma.new_empty(sigma.shape)

    def save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3], output[1])
        ctx.normalized = inputs[3]

    def differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *run_backward(grad, *ctx.saved_tensors, ctx.normalized), None

    run_forward.register_fake(fake_forward)
    run_backward.register_fake(fake_backward)
    run_forward.register_autograd(differentiate, setup_context=save)

    if countable:
        register_flop_formula(getattr(torch.ops.contextpool, name), get_raw=True)(_by_running(forward))
        register_flop_formula(getattr(torch.ops.contextpool, f"{name}_backward"), get_raw=True)(_by_running(backward))

    def kernel(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> Tensor:  # noqa: FBT001
        y: Tensor = run_forward(x, weight, sigma, normalized)[0]
        return y

    return kernel


def _by_running(function: Callable[..., Any]) -> Callable[..., int]:
    """Make the formula of an operator: the FLOPs of its function on the same arguments."""

    def formula(*arguments: Any, out_val: Any = None) -> int:  # noqa: ARG001 - a formula is told the result
        counter = FlopCounterMode(display=False)
        counter.flop_registry[aten.baddbmm_] = counter.flop_registry[aten.baddbmm]  # the counter's own copy
        with counter, torch.no_grad():
            function(*arguments)
        return counter.get_total_flops()

    return formula
