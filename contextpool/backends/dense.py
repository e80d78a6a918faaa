# SPDX-License-Identifier: Apache-2.0
"""Exact pooling by chunks of queries: quadratic time, but never a length-by-length tensor.

The backward pass recomputes each chunk's Gaussians, so nothing but the inputs and one number per token is saved. The
formulas are those of docs/contextpool.md, "The operator".
"""

from __future__ import annotations

import torch
from torch import Tensor

from contextpool.backends.custom_op import Gradients, Saved, register_custom_op
from contextpool.backends.log_weights import exp_or_zero, reciprocal

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
"""Elements of one chunk's (batch, queries, keys) tensor: a core's cache, or enough to fill a GPU."""


def _forward(x: Tensor, weight: Tensor, sigma: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """Return the pooled tokens and the factor of each row, 1 / N_i = 1 / sum_j w_j g_ij (1 if not normalised)."""
    y, scale = torch.empty_like(x), torch.ones_like(sigma)
    source = _source(x, weight)  # (batch, keys, dim)
    for start, stop in _chunks(x):
        kernel = _gaussians(sigma, start, stop)[0]  # (batch, queries, keys)
        pooled = kernel @ source  # (batch, queries, dim)
        if normalized:
            scale[:, start:stop] = reciprocal((kernel @ weight[:, :, None])[:, :, 0])
        # A masked query gives zero, although it may see real keys.
        scale[:, start:stop].masked_fill_(weight[:, start:stop] == 0.0, 0.0)
        y[:, start:stop] = pooled * scale[:, start:stop, None]
    return y, scale


def _backward(grad: Tensor, saved: Saved, *, normalized: bool) -> Gradients:
    """Return the gradients of x, weight and sigma.

    With V_i = scale_i grad_i and v_i = -V_i . y_i (0 if not normalised), over pairs (i, j):

        grad of w_j x_j  = sum_i g_ij V_i
        grad of w_j      = x_j . (grad of w_j x_j) + sum_i g_ij v_i
        grad of sigma_i  = sigma_i^-3 sum_j g_ij (i - j)^2 (V_i . w_j x_j + v_i w_j)
    """
    x, weight, sigma, scale = saved
    source = _source(x, weight)
    grad_source, grad_weight, grad_sigma = torch.zeros_like(source), torch.zeros_like(weight), torch.zeros_like(sigma)
    for start, stop in _chunks(x):
        kernel, square = _gaussians(sigma, start, stop)
        row = scale[:, start:stop, None]
        upstream = grad[:, start:stop].to(weight.dtype) * row  # V, (batch, queries, dim)
        grad_source += kernel.transpose(1, 2) @ upstream
        product = upstream @ source.transpose(1, 2)  # V_i . w_j x_j, (batch, queries, keys)
        if normalized:
            # v, (batch, queries, 1): sum_j g_ij (V_i . w_j x_j) is V_i . y_i times N_i, so it is divided by N_i.
            normaliser = -(kernel * product).sum(dim=2, keepdim=True) * row
            grad_weight += (kernel.transpose(1, 2) @ normaliser)[:, :, 0]
            product.addcmul_(normaliser, weight[:, None, :])
        moment = product.mul_(kernel).mul_(square).sum(dim=2)
        grad_sigma[:, start:stop] = moment / sigma[:, start:stop] ** 3
    grad_weight += (grad_source * x).sum(dim=2)
    return (grad_source * weight[:, :, None]).to(x.dtype), grad_weight, grad_sigma


def _source(x: Tensor, weight: Tensor) -> Tensor:
    """Return w x, (batch, length, dim), zero where the weight is, whatever stands there (0 times NaN is NaN)."""
    return (x * weight[:, :, None]).masked_fill_((weight == 0.0)[:, :, None], 0.0)


def queries_per_chunk(x: Tensor) -> int:
    """Return how many queries of (batch, length, dim) to handle at a time."""
    batch, length = x.shape[:2]
    return max(16, CHUNK_ELEMENTS.get(x.device.type, 2**18) // max(1, batch * length))


def _chunks(x: Tensor) -> list[tuple[int, int]]:
    """List (first query, end of queries)."""
    length, size = x.shape[1], queries_per_chunk(x)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _gaussians(sigma: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return g_ij (batch, queries, keys), and (i - j)^2 (queries, keys)."""
    query = torch.arange(start, stop, device=sigma.device)
    offset = query[:, None] - torch.arange(sigma.shape[1], device=sigma.device)
    square = offset.to(sigma.dtype).square_()
    return exp_or_zero(square * (-0.5 / sigma[:, start:stop, None].square())), square


dense_pool = register_custom_op("dense", _forward, _backward)
