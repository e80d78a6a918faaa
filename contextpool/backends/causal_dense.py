# SPDX-License-Identifier: Apache-2.0
"""Exact causal pooling by chunks of queries: quadratic time, never a length-by-length tensor.

Weights may be up to exp(1000) apart.

A causal mean has no common scale: weights that rise along a sequence leave its first tokens with nothing if they are
divided by the largest of all. So everything stands in logarithms here, relative to the query's own weight:

    e_ij = log w_j - log w_i - (i - j)^2 / (2 sigma_i^2),    p_ij = exp(e_ij - L_i),    L_i = log sum_j exp(e_ij)

and differences of log-weights, which lose no digits where they matter, are the only use made of them. p is the softmax
of e over the keys j <= i, so p_ij = w_j g_ij / N_i in docs/appendix/contextpool-algorithms.md.

The functions for some rows at a time serve `backends.tree` too, which pools a few rows by the formula.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from contextpool.backends.custom_op import Gradients, Saved, register_custom_op
from contextpool.backends.dense import queries_per_chunk
from contextpool.backends.log_weights import exp_or_zero


def _forward(x: Tensor, log_weight: Tensor, sigma: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """Return the pooled tokens and L_i, (batch, length), infinite for masked tokens."""
    y, log_total = torch.empty_like(x), torch.empty_like(sigma)
    source = clean(x, log_weight)
    for query, rows in _chunks(x):
        pooled, log_total[:, rows] = pool_rows(source, log_weight, sigma, query, rows.stop)
        y[:, rows] = pooled * row_factor(log_weight[:, rows], log_total[:, rows], normalized=normalized)[:, :, None]
    return y, log_total


def _backward(grad: Tensor, saved: Saved, *, normalized: bool) -> Gradients:
    """Return the gradients of x, log_weight and sigma.

    With u_i = grad_i, times exp(log w_i + L_i) if not normalised, and delta_i = sum_j p_ij (u_i . x_j), or 0 if not:

        grad x_j     = sum_i p_ij u_i
        grad log w_j = x_j . grad x_j - sum_i p_ij delta_i
        grad sigma_i = sigma_i^-3 sum_j p_ij (i - j)^2 (u_i . x_j - delta_i)

    These are the formulas of the docs with p in place of w g / N: u = V N and delta = -v N.
    """
    x, log_weight, sigma, log_total = saved
    source = clean(x, log_weight)
    upstream = grad * row_factor(log_weight, log_total, normalized=normalized)[:, :, None]  # u, (batch, length, dim)
    # `spread` is sum_i p_ij delta_i, (batch, keys); `moment` is sigma_i^3 times the gradient of sigma_i.
    grad_x, spread, moment = torch.zeros_like(source), torch.zeros_like(sigma), torch.zeros_like(sigma)
    for query, rows in _chunks(x):
        moment[:, rows] = differentiate_rows(
            upstream[:, rows], source, log_weight, sigma, log_total[:, rows], query, rows.stop,
            (grad_x, spread), normalized=normalized,
        )  # fmt: skip
    return grad_x.to(x.dtype), (grad_x * source).sum(dim=2) - spread, moment / sigma**3


def clean(x: Tensor, log_weight: Tensor) -> Tensor:
    """Return x in the dtype of the sums, (batch, length, dim), zero at masked tokens, whatever stands there."""
    return x.to(log_weight.dtype).masked_fill((log_weight == -torch.inf)[:, :, None], 0.0)


def row_factor(log_weight: Tensor, log_total: Tensor, *, normalized: bool) -> Tensor:
    """Return what a row of p is multiplied by, (batch, length): 1, or its total; 0 for masked tokens."""
    masked = log_weight == -torch.inf
    if normalized:
        return (~masked).to(log_weight.dtype)
    return (log_weight + log_total).masked_fill(masked, -torch.inf).exp()


def pool_rows(x: Tensor, log_weight: Tensor, sigma: Tensor, query: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Pool some positions of each sequence, normalised.

    Args:
        x: (batch, length, dim), from `clean`.
        log_weight: (batch, length).
        sigma: (batch, length).
        query: Positions, (batch, queries).
        reach: More than any of them. Keys from there on are in no row's past and are not read.

    Returns:
        Their means, (batch, queries, dim), and L_i, (batch, queries).
    """
    exponent, _ = _exponents(log_weight, sigma, query, reach)  # (batch, queries, keys)
    row_max = exponent.amax(dim=2, keepdim=True)  # (batch, queries, 1)
    masked = log_weight.gather(1, query)[:, :, None] == -torch.inf
    # Shifted by the row's maximum, the largest term is 1. A masked row is shifted by infinity, which makes it zero.
    kernel = exp_shifted_(exponent, row_max.masked_fill(masked, torch.inf))
    total = kernel.sum(dim=2, keepdim=True).masked_fill(masked, 1.0)
    log_total = (row_max + total.log()).masked_fill(masked, torch.inf)
    return kernel @ x[:, :reach] / total, log_total[:, :, 0]


def differentiate_rows(
    upstream: Tensor,
    x: Tensor,
    log_weight: Tensor,
    sigma: Tensor,
    log_total: Tensor,
    query: Tensor,
    reach: int,
    sums: tuple[Tensor, Tensor],
    *,
    normalized: bool,
) -> Tensor:
    """Add what some positions contribute to the gradients; the formulas are those of `_backward`.

    Args:
        upstream: u at the positions, (batch, queries, dim).
        x: (batch, length, dim), from `clean`.
        log_weight: (batch, length).
        sigma: (batch, length).
        log_total: L_i at the positions, (batch, queries); where it is infinite, they contribute nothing.
        query: Positions, (batch, queries).
        reach: More than any of them.
        sums: The gradient of x, (batch, length, dim), and sum_i p_ij delta_i, (batch, length); both are added to.
        normalized: Whether there is a delta.

    Returns:
        sigma^3 times the gradient of sigma at the positions, (batch, queries).
    """
    grad_x, spread = sums
    exponent, square = _exponents(log_weight, sigma, query, reach)
    kernel = exp_shifted_(exponent, log_total[:, :, None])  # p, (batch, queries, keys)
    grad_x[:, :reach] += kernel.transpose(1, 2) @ upstream
    product = upstream @ x[:, :reach].transpose(1, 2)  # u_i . x_j, (batch, queries, keys)
    if normalized:
        delta = (kernel * product).sum(dim=2, keepdim=True)  # (batch, queries, 1)
        spread[:, :reach] += (kernel.transpose(1, 2) @ delta)[:, :, 0]
        product -= delta
    return product.mul_(kernel).mul_(square).sum(dim=2)


def exp_shifted_(exponent: Tensor, shift: Tensor) -> Tensor:
    """Return exp(exponent - shift) in place of the exponents, and 0 for less than exp(-60).

    Such terms add nothing to a row whose largest term is about 1, and subnormal numbers would be slow.
    """
    return exp_or_zero(exponent.sub_(shift), -60.0)


def self_log_weight(log_weight: Tensor) -> Tensor:
    """Return each query's own log-weight, (batch, queries), 0 for masked ones: -inf - (-inf) would be NaN."""
    return log_weight.masked_fill(log_weight == -torch.inf, 0.0)


def _exponents(log_weight: Tensor, sigma: Tensor, query: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Return e_ij, -inf for masked and future keys, and (i - j)^2; both (batch, queries, keys)."""
    offset = query[:, :, None] - torch.arange(reach, device=sigma.device)
    square = offset.to(sigma.dtype).square_()
    slope = 0.5 / sigma.gather(1, query)[:, :, None].square()
    # The difference of log-weights comes first: equal ones cancel exactly, whatever their size.
    exponent = log_weight[:, None, :reach] - self_log_weight(log_weight.gather(1, query))[:, :, None]
    return exponent.addcmul_(square, slope, value=-1.0).masked_fill_(offset < 0, -torch.inf), square


def _chunks(x: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """List the positions of the sequences in chunks, as (batch, queries) and as a slice."""
    batch, length = x.shape[:2]
    size = queries_per_chunk(x)
    position = torch.arange(length, device=x.device).expand(batch, -1)
    for start in range(0, length, size):
        rows = slice(start, min(start + size, length))
        yield position[:, rows], rows


dense_causal_pool = register_custom_op("dense_causal", _forward, _backward)
