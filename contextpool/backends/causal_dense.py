"""Exact causal pooling by chunks of queries: quadratic time, never a length-by-length tensor.

Weights may be up to exp(1000) apart.

A causal mean has no common scale: weights that rise along a sequence leave its first tokens with nothing if they are
divided by the largest of all. So everything stands in logarithms here, relative to the query's own weight:

    e_ij = log w_j - log w_i - (i - j)^2 / (2 sigma_i^2),    p_ij = exp(e_ij - L_i),    L_i = log sum_j exp(e_ij)

and differences of log-weights, which lose no digits where they matter, are the only use made of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from contextpool.backends.custom_op import opaque_kernel
from contextpool.backends.dense import chunk_size
from contextpool.backends.log_weights import exp_or_zero


def _forward(x: Tensor, log_weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Return the pooled tokens and L_i, infinite for masked tokens."""
    y, log_total = torch.empty_like(x), torch.empty_like(sigma)
    source = clean(x, log_weight)
    for query in _chunks(x):
        pooled, log_total[:, query] = pool_rows(source, log_weight, sigma, query)
        y[:, query] = (pooled * row_factor(log_weight, log_total, normalized=normalized)[:, query, None]).to(x.dtype)
    return y, log_total


def _backward(
    grad: Tensor,
    x: Tensor,
    log_weight: Tensor,
    sigma: Tensor,
    log_total: Tensor,
    normalized: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, log_weight and sigma.

    With u_i = grad_i, times exp(log w_i + L_i) if not normalised, and delta_i = sum_j p_ij (u_i . x_j), or 0 if not:

        grad x_j     = sum_i p_ij u_i
        grad log w_j = x_j . grad x_j - sum_i p_ij delta_i
        grad sigma_i = sigma_i^-3 sum_j p_ij (i - j)^2 (u_i . x_j - delta_i)
    """
    source = clean(x, log_weight)
    upstream = grad * row_factor(log_weight, log_total, normalized=normalized)[:, :, None]
    grad_x, spread, moment = torch.zeros_like(source), torch.zeros_like(sigma), torch.zeros_like(sigma)
    for query in _chunks(x):
        moment[:, query] = differentiate_rows(
            upstream[:, query],
            source,
            log_weight,
            sigma,
            log_total[:, query],
            query,
            (grad_x, spread),
            normalized=normalized,
        )
    return grad_x.to(x.dtype), (grad_x * source).sum(dim=2) - spread, moment / sigma**3


def clean(x: Tensor, log_weight: Tensor) -> Tensor:
    """Return x in the dtype of the sums, zero at masked tokens, whatever stands there."""
    return x.to(log_weight.dtype).masked_fill((log_weight == -torch.inf)[:, :, None], 0.0)


def row_factor(log_weight: Tensor, log_total: Tensor, *, normalized: bool) -> Tensor:
    """Return what a row of p is multiplied by, (batch, length): 1, or its total; 0 for masked tokens."""
    masked = log_weight == -torch.inf
    if normalized:
        return (~masked).to(log_weight.dtype)
    return (log_weight + log_total).masked_fill(masked, -torch.inf).exp()


def pool_rows(x: Tensor, log_weight: Tensor, sigma: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Pool some positions, ascending (queries,), of (batch, length, dim), clean; return their means and L_i."""
    exponent, _ = _exponents(log_weight, sigma, query)
    peak = exponent.amax(dim=2, keepdim=True)
    masked = log_weight[:, query, None] == -torch.inf
    kernel = weigh(exponent, peak.masked_fill(masked, torch.inf))
    total = kernel.sum(dim=2, keepdim=True).masked_fill(masked, 1.0)
    log_total = (peak + total.log()).masked_fill(masked, torch.inf)
    return kernel @ x[:, : kernel.shape[2]] / total, log_total[:, :, 0]


def differentiate_rows(
    upstream: Tensor,
    x: Tensor,
    log_weight: Tensor,
    sigma: Tensor,
    log_total: Tensor,
    query: Tensor,
    sums: tuple[Tensor, Tensor],
    *,
    normalized: bool,
) -> Tensor:
    """Add what some positions contribute to `sums`, the gradients of x and what is taken off those of log w.

    `upstream` and `log_total` are those of the positions only. Returns sigma^3 times the gradient of their sigma.
    """
    grad_x, spread = sums
    exponent, square = _exponents(log_weight, sigma, query)
    reach = exponent.shape[2]
    kernel = weigh(exponent, log_total[:, :, None])
    grad_x[:, :reach] += kernel.transpose(1, 2) @ upstream
    product = upstream @ x[:, :reach].transpose(1, 2)
    if normalized:
        delta = (kernel * product).sum(dim=2, keepdim=True)
        spread[:, :reach] += (kernel.transpose(1, 2) @ delta)[:, :, 0]
        product -= delta
    return product.mul_(kernel).mul_(square).sum(dim=2)


def weigh(exponent: Tensor, base: Tensor) -> Tensor:
    """Return exp(exponent - base) in place of the exponents, and 0 instead of numbers that are slow and add nothing."""
    return exp_or_zero(exponent.sub_(base), -60.0)


def own_weight(log_weight: Tensor) -> Tensor:
    """Return each query's log-weight, 0 for masked ones."""
    return log_weight.masked_fill(log_weight == -torch.inf, 0.0)


def _exponents(log_weight: Tensor, sigma: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Return e_ij (batch, queries, keys), -inf for masked and future keys, and (i - j)^2 (queries, keys)."""
    reach = int(query[-1]) + 1
    offset = query[:, None] - torch.arange(reach, device=sigma.device)
    square = offset.to(sigma.dtype).square_()
    slope = 0.5 / sigma[:, query, None].square()
    exponent = log_weight[:, None, :reach] - own_weight(log_weight[:, query])[:, :, None]
    return exponent.addcmul_(square, slope, value=-1.0).masked_fill_(offset < 0, -torch.inf), square


def _chunks(x: Tensor) -> Iterator[Tensor]:
    yield from torch.arange(x.shape[1], device=x.device).split(chunk_size(x))


dense_causal_pool = opaque_kernel("dense_causal", _forward, _backward)
