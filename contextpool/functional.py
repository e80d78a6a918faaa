# SPDX-License-Identifier: Apache-2.0
"""Adaptive Gaussian pooling, the operator behind ContextPool, with a choice of exact backends."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, get_args

import torch
from torch import Tensor

from contextpool.backends.causal_dense import dense_causal_pool
from contextpool.backends.custom_op import Kernel
from contextpool.backends.dense import dense_pool
from contextpool.backends.grid import grid_pool
from contextpool.backends.log_weights import SIGMA_MAX, bounded_log_weights, plain_weights
from contextpool.backends.pyramid import pyramid_pool
from contextpool.backends.tree import tree_causal_pool
from contextpool.reference import SIGMA_MIN, reference_pool

Backend = Literal["auto", "reference", "dense", "pyramid", "tree", "triton"]
_BACKENDS = get_args(Backend)  # here, since torch.compile does not follow the call

DENSE_UP_TO = {"cpu": {False: 384, True: 768}, "cuda": {False: 2048, True: 4096}}
"""Longest sequence for which `auto` takes the dense form, by type of device and whether causal.

The figures for the CPU are where the measured times cross (`benchmarks/contextpool.py`); those for CUDA are estimates.
"""

_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None

_KERNELS: dict[str, dict[bool, Kernel]] = {
    "dense": {False: dense_pool, True: dense_causal_pool},
    "pyramid": {False: pyramid_pool},
    "tree": {True: tree_causal_pool},
}
"""Backend -> whether causal -> kernel. Causal ones take log-weights, the others plain weights."""


def context_pool(
    x: Tensor,
    log_weight: Tensor,
    sigma: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    grid: tuple[int, int] | None = None,
    normalized: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Replace every token by a weighted mean of its neighbourhood, whose width is the token's own.

    With w_j = exp(log_weight_j) and g_ij = exp(-(i - j)^2 / (2 sigma_i^2)), over real tokens j (and j <= i if causal):

        normalized:      y_i = sum_j w_j g_ij x_j / sum_j w_j g_ij
        not normalized:  y_i = sum_j w_j g_ij x_j / n,  n = number of real tokens of the sequence

    Differentiable in `x`, `log_weight` and `sigma`. Weights and sums are computed in float32 (float64 for float64 `x`),
    also under autocast; the result has the dtype of `x`. After C. Huang et al., "Efficient Representation Learning via
    Adaptive Context Pooling" (ICML 2022); the normalisation is this project's choice.

    Args:
        x: (batch, length, dim).
        log_weight: (batch, length); normalised, only differences within a sequence matter.
        sigma: (batch, length), in tokens, clamped to at least 0.05.
        mask: (batch, length), bool, True = real token, in any pattern; None = all real.
        causal: Whether token i sees only tokens j <= i.
        grid: (rows, columns) if the tokens are the pixels of a grid in row-major order; sigma is then in rows,
            and sigma * columns / rows across.
        normalized: See above.
        backend: `reference` (the formula, quadratic memory), `dense` (the formula in chunks, quadratic time), `pyramid`
            (linear time, not causal), `tree` (time n log n, causal only), `triton` (the formula in a fused kernel, CUDA
            only, not in float64; never yet run on a GPU, so only taken when asked for) or `auto`: `dense` up to the
            lengths of `DENSE_UP_TO`, beyond them `pyramid`, or `tree` if causal. The pyramid and the tree err by about
            3e-7 of the result, in float64 too. The pyramid cuts off tails, so where whole stretches of a sequence weigh
            10^5 times as much as the next stretch or more, the error near the border grows with that factor. In it and
            in the two-sided `dense`, no token weighs less than exp(-60) of the sequence's heaviest; in `triton` and in
            causal forms, where only the tokens up to it count, none less than exp(-1000). On a GPU the tree gives NaN
            where more than 64 tokens of a sequence have weights too far apart for it.

    Returns:
        (batch, length, dim); zeros at masked positions, whose gradients are zero too.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the backend is unknown or cannot do what is asked.
    """
    _check(x, log_weight, sigma, mask)
    if grid is not None:
        if causal:
            raise ValueError("a grid has no causal order: causal and grid exclude each other")
        return grid_pool(x, log_weight, sigma, mask, grid=grid, normalized=normalized, backend=backend)
    chosen = resolve_backend(x.shape[1], x.device, causal=causal, backend=backend, dtype=x.dtype)
    if x.numel() == 0:
        return x * 1.0  # a new tensor with a graph, as in all other cases
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    log_weight, sigma = log_weight.to(dtype), sigma.to(dtype)
    if chosen == "reference":
        with torch.autocast(x.device.type, enabled=False):
            y = reference_pool(x.to(dtype), log_weight, sigma, mask, causal=causal, normalized=normalized)
        return y.to(x.dtype)
    sigma = sigma.clamp(SIGMA_MIN, SIGMA_MAX)
    if mask is not None:
        sigma = sigma.masked_fill(~mask, 1.0)  # whatever a masked token's width is, it chooses no level and is no NaN
    kernel = _kernel(chosen, causal=causal)
    source = x if normalized else x.to(dtype)  # a sum, before its division by n, may be too large for float16
    if causal or chosen == "triton":
        # No common scale: the largest weight up to a token may be far below the largest of the sequence.
        y = kernel(source, bounded_log_weights(log_weight, mask, causal=causal), sigma, normalized)
        return y if normalized else (y / _count(x, mask)).to(x.dtype)
    weight, shift = plain_weights(log_weight, mask)  # exp(log_weight - shift)
    y = kernel(source, weight, sigma, normalized)
    return y if normalized else (y * (shift.exp()[:, :, None] / _count(x, mask))).to(x.dtype)


def resolve_backend(
    length: int,
    device: torch.device,
    *,
    causal: bool = False,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> str:
    """Name the backend that `context_pool` uses for sequences of a length.

    Raises:
        ValueError: The backend is unknown or cannot do what is asked.
    """
    check_backend(backend, causal=causal)
    if backend == "auto":
        if length <= DENSE_UP_TO.get(device.type, DENSE_UP_TO["cpu"])[causal]:
            return "dense"
        return "tree" if causal else "pyramid"
    if backend == "triton":
        _check_triton(device, dtype)
    return backend


def check_backend(backend: str, *, causal: bool) -> None:
    """Refuse a backend that cannot do what is asked on any device.

    Raises:
        ValueError: It is unknown or has no such form.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(_BACKENDS)}")
    if backend in _KERNELS and causal not in _KERNELS[backend]:
        possible = ", ".join(["reference", *(name for name, forms in _KERNELS.items() if causal in forms), "triton"])
        raise ValueError(f"backend {backend!r} has no {'' if causal else 'non-'}causal form; possible: {possible}")


def _kernel(backend: str, *, causal: bool) -> Kernel:
    if backend == "triton":
        from contextpool.backends.triton_kernels import triton_causal_pool, triton_pool

        return triton_causal_pool if causal else triton_pool
    return _KERNELS[backend][causal]


def _check_triton(device: torch.device, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        raise ValueError("backend 'triton' sums in float32 and takes no float64 tokens; use 'dense'")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' needs tensors on a CUDA device, got {device.type!r}")
    if not _TRITON_INSTALLED:
        raise ValueError("backend 'triton' needs the package triton, which PyTorch's CUDA builds bring along")


def _count(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the number of real tokens, at least 1, (batch, 1, 1), in the dtype of the sums."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return torch.full((x.shape[0], 1, 1), x.shape[1], dtype=dtype, device=x.device)
    return mask.sum(dim=1).clamp_min(1).to(dtype)[:, None, None]


def _check(x: Tensor, log_weight: Tensor, sigma: Tensor, mask: Tensor | None) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x must be (batch, length, dim) and floating, got {x.dtype} of {tuple(x.shape)}")
    for name, value in (("log_weight", log_weight), ("sigma", sigma)):
        if value.shape != x.shape[:2] or not value.is_floating_point():
            raise ValueError(
                f"{name} must be floating and of shape {tuple(x.shape[:2])}, got {value.dtype} of {tuple(value.shape)}"
            )
    if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool of shape {tuple(x.shape[:2])}, got {mask.dtype} of {tuple(mask.shape)}")
