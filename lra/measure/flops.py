# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a step, counted as it runs, with a list of what was not counted.

A multiplication and an addition count as two. Matrix products, convolutions and fused attention have formulas, and an
operator from elsewhere may bring one (`torch.utils.flop_counter.register_flop_formula`); all else (softmax, Fourier
transforms, sorting, everything element by element) counts as nothing and is listed by name instead, so that a low
number cannot hide what a variant does outside of matrix products.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop, sdpa_flop, shape_wrapper

from lra.config.schema import Section

_MOVES = frozenset((
    "_local_scalar_dense", "_reshape_alias", "_to_copy", "_unsafe_view", "arange", "cat", "clone", "constant_pad_nd",
    "contiguous", "copy", "copy_", "detach_", "empty", "empty_like", "empty_strided", "eye", "fill_", "full",
    "full_like", "linspace", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones",
    "ones_like", "promote_types", "repeat", "resize_", "scalar_tensor", "select_backward", "set_", "slice_backward",
    "split_with_sizes", "split_with_sizes_copy", "stack", "zero_", "zeros", "zeros_like",
))  # fmt: skip
"""Operators that allocate, fill or copy, and compute nothing."""


class FlopCount(Section):
    """What a step computes."""

    total: int
    """Operations of all operators that have a formula."""
    by_operator: dict[str, int]
    uncounted: dict[str, int]
    """Operators without a formula -> calls, without those that work element by element or only move data."""
    uncounted_pointwise: dict[str, int]
    """Operators without a formula that work element by element -> calls."""


def count_flops(run: Callable[[], None]) -> FlopCount:
    """Run something once and count what it computes, gradients included."""
    calls: Counter[OpOverload] = Counter()
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= _FORMULAS  # the counter's own copy
    with counter, _Executed(calls):
        run()
    rest = Counter[str]()
    pointwise = Counter[str]()
    for operator, number in calls.items():
        if operator.overloadpacket not in counter.flop_registry and not _only_moves(operator):
            (pointwise if torch.Tag.pointwise in operator.tags else rest)[_name(operator.overloadpacket)] += number
    by_operator = {_name(packet): int(flops) for packet, flops in counter.get_flop_counts().get("Global", {}).items()}
    return FlopCount(
        total=sum(by_operator.values()),
        by_operator=dict(sorted(by_operator.items())),
        uncounted=dict(sorted(rest.items())),
        uncounted_pointwise=dict(sorted(pointwise.items())),
    )


class _Executed(TorchDispatchMode):
    """Notes every operator that reaches the device."""

    def __init__(self, calls: Counter[OpOverload]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def _only_moves(operator: OpOverload) -> bool:
    if operator.namespace in ("prim", "prims", "profiler"):
        return True  # bookkeeping; an operator of anybody else may compute anything
    return operator.is_view or _name(operator.overloadpacket) in _MOVES


def _name(packet: Any) -> str:
    """Return `bmm` of `aten.bmm`, and the whole name of an operator that is not torch's own."""
    return str(packet).removeprefix("aten.")


def _convolution_backward(
    grad_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,  # noqa: FBT001 - the arguments are the operator's
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    out_shape: Any = None,  # noqa: ARG001
) -> int:
    """Count the gradients of a convolution: that of the input, and that of the weights, each as much as the forward.

    torch's own formula forgets the groups in the second, and charges a depth-wise convolution of c channels with c
    times as much.
    """
    places = math.prod((input_shape if transposed else grad_shape)[2:])
    forward = 2 * grad_shape[0] * places * math.prod(weight_shape)
    return forward * sum(output_mask[:2])


# torch has no formulas for products that add in place, and those of attention for its CUDA kernels only (pytorch issue
# 195460); the arguments are alike. Attention does not subtract what causality leaves out.
_FORMULAS: dict[Any, Any] = {
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
    torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
