"""Exact pooling by chunks of queries: quadratic time, but never a length-by-length tensor.

The backward pass recomputes each chunk's Gaussians, so nothing but the inputs and one number per token is saved.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from contextpool.opaque import opaque_kernel
from contextpool.stencils import gaussian, reciprocal

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
"""Elements of one chunk's (batch, queries, keys) tensor: a core's cache, or enough to fill a GPU."""


def _forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool, *, causal: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Return the pooled tokens and the factor of each row, 1 / sum_j w_j g_ij (1 if not normalised)."""
    y, scale = torch.empty_like(x), torch.ones_like(sigma)
    source = _source(x, weight)
    for start, stop, reach in _chunks(x, causal=causal):
        kernel = _gaussians(sigma, start, stop, reach, causal=causal)[0]
        pooled = kernel @ source[:, :reach]
        if normalized:
            scale[:, start:stop] = reciprocal((kernel @ weight[:, :reach, None])[:, :, 0])
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
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and sigma.

    With V_i = scale_i grad_i and v_i = -V_i . y_i, the gradient of w_j x_j is sum_i g_ij V_i, that of w_j through the
    normaliser is sum_i g_ij v_i, and that of sigma_i is sigma_i^-3 sum_j g_ij (i - j)^2 (V_i . w_j x_j + v_i w_j).
    """
    source = _source(x, weight)
    grad_source, grad_weight, grad_sigma = torch.zeros_like(source), torch.zeros_like(weight), torch.zeros_like(sigma)
    for start, stop, reach in _chunks(x, causal=causal):
        kernel, square = _gaussians(sigma, start, stop, reach, causal=causal)
        row = scale[:, start:stop, None]
        upstream = grad[:, start:stop].to(weight.dtype) * row
        grad_source[:, :reach] += kernel.transpose(1, 2) @ upstream
        product = upstream @ source[:, :reach].transpose(1, 2)
        if normalized:
            normaliser = -(kernel * product).sum(dim=2, keepdim=True) * row
            grad_weight[:, :reach] += (kernel.transpose(1, 2) @ normaliser)[:, :, 0]
            product.addcmul_(normaliser, weight[:, None, :reach])
        moment = product.mul_(kernel).mul_(square).sum(dim=2)
        grad_sigma[:, start:stop] = moment / sigma[:, start:stop] ** 3
    grad_weight += (grad_source * x).sum(dim=2)
    return (grad_source * weight[:, :, None]).to(x.dtype), grad_weight, grad_sigma


def _source(x: Tensor, weight: Tensor) -> Tensor:
    """Return w x, zero where the weight is, whatever stands there."""
    return (x * weight[:, :, None]).masked_fill_((weight == 0.0)[:, :, None], 0.0)


def _chunks(x: Tensor, *, causal: bool) -> list[tuple[int, int, int]]:
    """List (first query, end of queries, number of keys they can see)."""
    batch, length = x.shape[:2]
    size = max(16, CHUNK_ELEMENTS.get(x.device.type, 2**18) // max(1, batch * length))
    bounds = [(start, min(start + size, length)) for start in range(0, length, size)]
    return [(start, stop, stop if causal else length) for start, stop in bounds]


def _gaussians(sigma: Tensor, start: int, stop: int, reach: int, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Return g_ij (batch, queries, keys), zero for j > i if causal, and (i - j)^2 (queries, keys)."""
    query = torch.arange(start, stop, device=sigma.device)
    offset = query[:, None] - torch.arange(reach, device=sigma.device)
    square = offset.to(sigma.dtype).square_()
    kernel = gaussian(square, sigma[:, start:stop, None].square())
    return kernel.masked_fill_(offset < 0, 0.0) if causal else kernel, square


dense_pool = opaque_kernel("dense", partial(_forward, causal=False), partial(_backward, causal=False))
dense_causal_pool = opaque_kernel("dense_causal", partial(_forward, causal=True), partial(_backward, causal=True))
