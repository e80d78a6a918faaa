"""Exact pooling by chunks of queries: quadratic time, but never a length-by-length tensor.

The backward pass recomputes each chunk's Gaussians, so nothing but the inputs and one number per token is saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contextpool.backends.custom_op import opaque_kernel
from contextpool.backends.log_weights import exp_or_zero
from contextpool.backends.pyramid.stencils import reciprocal

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
"""Elements of one chunk's (batch, queries, keys) tensor: a core's cache, or enough to fill a GPU."""


def _forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Return the pooled tokens and the factor of each row, 1 / sum_j w_j g_ij (1 if not normalised)."""
    y, scale = torch.empty_like(x), torch.ones_like(sigma)
    source = _source(x, weight)
    for start, stop in _chunks(x):
        kernel = _gaussians(sigma, start, stop)[0]
        pooled = kernel @ source
        if normalized:
            scale[:, start:stop] = reciprocal((kernel @ weight[:, :, None])[:, :, 0])
        scale[:, start:stop].masked_fill_(weight[:, start:stop] == 0.0, 0.0)
        y[:, start:stop] = pooled * scale[:, start:stop, None]
    return y, scale


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    sigma: Tensor,
    scale: Tensor,
    normalized: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and sigma.

    With V_i = scale_i grad_i and v_i = -V_i . y_i, the gradient of w_j x_j is sum_i g_ij V_i, that of w_j through the
    normaliser is sum_i g_ij v_i, and that of sigma_i is sigma_i^-3 sum_j g_ij (i - j)^2 (V_i . w_j x_j + v_i w_j).
    """
    source = _source(x, weight)
    grad_source, grad_weight, grad_sigma = torch.zeros_like(source), torch.zeros_like(weight), torch.zeros_like(sigma)
    for start, stop in _chunks(x):
        kernel, square = _gaussians(sigma, start, stop)
        row = scale[:, start:stop, None]
        upstream = grad[:, start:stop].to(weight.dtype) * row
        grad_source += kernel.transpose(1, 2) @ upstream
        product = upstream @ source.transpose(1, 2)
        if normalized:
            normaliser = -(kernel * product).sum(dim=2, keepdim=True) * row
            grad_weight += (kernel.transpose(1, 2) @ normaliser)[:, :, 0]
            product.addcmul_(normaliser, weight[:, None, :])
        moment = product.mul_(kernel).mul_(square).sum(dim=2)
        grad_sigma[:, start:stop] = moment / sigma[:, start:stop] ** 3
    grad_weight += (grad_source * x).sum(dim=2)
    return (grad_source * weight[:, :, None]).to(x.dtype), grad_weight, grad_sigma


def _source(x: Tensor, weight: Tensor) -> Tensor:
    """Return w x, zero where the weight is, whatever stands there."""
    return (x * weight[:, :, None]).masked_fill_((weight == 0.0)[:, :, None], 0.0)


def chunk_size(x: Tensor) -> int:
    """Return how many queries of (batch, length, dim) to handle at a time."""
    batch, length = x.shape[:2]
    return max(16, CHUNK_ELEMENTS.get(x.device.type, 2**18) // max(1, batch * length))


def _chunks(x: Tensor) -> list[tuple[int, int]]:
    """List (first query, end of queries)."""
    length, size = x.shape[1], chunk_size(x)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _gaussians(sigma: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return g_ij (batch, queries, keys), and (i - j)^2 (queries, keys)."""
    query = torch.arange(start, stop, device=sigma.device)
    offset = query[:, None] - torch.arange(sigma.shape[1], device=sigma.device)
    square = offset.to(sigma.dtype).square_()
    return exp_or_zero(square * (-0.5 / sigma[:, start:stop, None].square())), square


dense_pool = opaque_kernel("dense", _forward, _backward)
