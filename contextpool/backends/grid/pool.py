# SPDX-License-Identifier: Apache-2.0
"""Adaptive pooling on a grid: the operator, its formula and its exact form in chunks of queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contextpool.backends.dense import queries_per_chunk
from contextpool.backends.grid.pyramid import pyramid_sums
from contextpool.backends.log_weights import SIGMA_MAX, exp_or_zero, plain_weights, reciprocal
from contextpool.reference import SIGMA_MIN

BACKENDS = ("auto", "reference", "dense", "pyramid")
DENSE_UP_TO = 4096
"""Positions of the largest grid for which `auto` takes the dense form.

Measured times cross between 56 by 56 (narrow Gaussians) and 80 by 80 (wide ones): `benchmarks/contextpool_grid.py`.
"""


def grid_pool(
    x: Tensor,
    log_weight: Tensor,
    sigma: Tensor,
    mask: Tensor | None = None,
    *,
    grid: tuple[int, int],
    normalized: bool = True,
    backend: str = "auto",
    stride: int = 1,
) -> Tensor:
    """Replace every position by a weighted mean of its neighbourhood, whose width is the position's own.

    With w_j = exp(log_weight_j), and i, j positions at distance dr in rows and dc in columns,

        g_ij = exp(-dr^2 / (2 sigma_i^2) - dc^2 / (2 (sigma_i columns / rows)^2)):

    isotropic in relative units, which is plainly isotropic where the grid is square. Otherwise as
    `contextpool.context_pool`.

    Args:
        x: (batch, rows * columns, dim), positions in row-major order.
        log_weight: (batch, rows * columns).
        sigma: (batch, rows * columns), in rows, clamped to at least 0.05.
        mask: (batch, rows * columns), bool, True = real position; None = all real.
        grid: (rows, columns).
        normalized: Divide by the sum of w_j g_ij (else by the number of real positions).
        backend: `reference` (the formula, quadratic memory), `dense` (the formula in chunks, quadratic time), `pyramid`
            (near linear time, accurate to about 2e-7; see `grid.pyramid`) or `auto`: `dense` on grids of up
            to `DENSE_UP_TO` positions, `pyramid` on larger ones.
        stride: Pool only at positions whose row and column are multiples of it.

    Returns:
        (batch, ceil(rows / stride) * ceil(columns / stride), dim); zeros at masked positions.

    Raises:
        ValueError: The grid does not hold the tokens, or the backend is unknown.
    """
    rows, columns = grid
    if rows * columns != x.shape[1]:
        raise ValueError(f"a grid of {rows} by {columns} does not hold {x.shape[1]} tokens")
    if stride < 1:
        raise ValueError(f"stride must be positive, got {stride}")
    chosen = resolve_grid_backend(grid, backend)
    # (queries,): positions to pool at. All positions are pooled from.
    centres = torch.arange(x.shape[1], device=x.device).view(grid)[::stride, ::stride].flatten()
    if x.numel() == 0:
        return x[:, centres] * 1.0
    dtype = torch.promote_types(x.dtype, torch.float32)  # of weights and sums
    weight, shift = plain_weights(log_weight.to(dtype), mask)
    width = _at_centres(sigma.to(dtype), grid, stride).clamp(SIGMA_MIN, SIGMA_MAX)
    visible = None if mask is None else _at_centres(mask, grid, stride)
    if visible is not None:
        width = width.masked_fill(~visible, 1.0)
    source = x if mask is None else x.masked_fill(~mask[:, :, None], 0.0)
    with torch.autocast(x.device.type, enabled=False):
        if chosen == "reference":
            y = _reference(source.to(dtype), weight, width, centres, grid, normalized=normalized)
        elif chosen == "dense":
            y = _GridPool.apply(source.to(dtype), weight, width, centres, grid, normalized)  # type: ignore[no-untyped-call]
        else:
            # The weights are one more feature, so that one pass gives numerator and denominator.
            source = torch.cat((source.to(dtype) * weight[:, :, None], weight[:, :, None]), dim=2)
            # Under torch.compile the call stays outside the graph: which windows it gathers depends on the widths.
            sums = torch.compiler.disable(pyramid_sums) if torch.compiler.is_compiling() else pyramid_sums
            y, total = sums(source, width, centres, visible, grid).split((x.shape[2], 1), dim=2)
            # A masked position has no total; a real one has at least its own weight.
            y = y / total.masked_fill(total <= 1e-30, 1.0) if normalized else y
    if not normalized:
        count = torch.full_like(shift, x.shape[1]) if mask is None else mask.sum(dim=1, keepdim=True).clamp_min(1)
        y = y * (shift.exp() / count)[:, :, None]  # `plain_weights` divided the weights by exp(shift)
    y = y.to(x.dtype)
    return y if visible is None else y.masked_fill(~visible[:, :, None], 0.0)


def _at_centres(values: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Return (batch, centres) of (batch, rows * columns), by slices: the gradient of an index would be sorted first."""
    return values.unflatten(1, grid)[:, ::stride, ::stride].flatten(1)


def resolve_grid_backend(grid: tuple[int, int], backend: str) -> str:
    """Name the backend that `grid_pool` uses.

    Raises:
        ValueError: It is unknown, or not for grids.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} does not pool on a grid; known: {', '.join(BACKENDS)}")
    if backend == "auto":
        return "dense" if grid[0] * grid[1] <= DENSE_UP_TO else "pyramid"
    return backend


def _axes(positions: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return squared distances from positions to each row, (queries, rows), and column, (queries, columns), in rows."""
    rows, columns = grid
    row = positions[:, None] // columns - torch.arange(rows, device=positions.device)
    column = positions[:, None] % columns - torch.arange(columns, device=positions.device)
    return row.to(dtype).square(), (column.to(dtype) * (rows / columns)).square()


def _reference(
    x: Tensor, weight: Tensor, sigma: Tensor, centres: Tensor, grid: tuple[int, int], *, normalized: bool
) -> Tensor:
    """Pool by the formula, with a (batch, queries, positions) tensor."""
    over_rows, over_columns = _axes(centres, grid, x.dtype)
    # Distances in rows, so one sigma serves both axes: (queries, positions).
    square = (over_rows[:, :, None] + over_columns[:, None, :]).flatten(1)
    kernel = torch.exp(-square / (2 * sigma[:, :, None].square())) * weight[:, None, :]
    if normalized:
        # A masked query may see nothing at all; what it gives is replaced by the caller.
        kernel = kernel / kernel.sum(dim=2, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return kernel @ x


class _GridPool(torch.autograd.Function):
    """Pool in chunks of queries; the backward pass recomputes each chunk's Gaussians (formulas in `backends.dense`)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        sigma: Tensor,
        centres: Tensor,
        grid: tuple[int, int],
        normalized: bool,  # noqa: FBT001 - `apply` takes no keywords
    ) -> Tensor:
        source = x * weight[:, :, None]  # (batch, positions, dim)
        # `scale` is the factor of each row, 1 / N_i, or 1 if not normalised; (batch, queries).
        y, scale = x.new_empty(len(x), len(centres), x.shape[2]), torch.ones_like(sigma)
        for chunk in _chunks(x, centres):
            kernel = _kernel(sigma[:, chunk], centres[chunk], grid)[0]
            if normalized:
                scale[:, chunk] = reciprocal((kernel @ weight[:, :, None])[:, :, 0])
            y[:, chunk] = (kernel @ source) * scale[:, chunk, None]
        ctx.save_for_backward(x, weight, sigma, centres, scale)
        ctx.grid, ctx.normalized = grid, normalized
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, sigma, centres, scale = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            source = x * weight[:, :, None]
            grad_source, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
            grad_sigma = torch.zeros_like(sigma)
            for chunk in _chunks(x, centres):
                kernel, over_rows, over_columns = _kernel(sigma[:, chunk], centres[chunk], ctx.grid)
                row = scale[:, chunk, None]
                upstream = grad[:, chunk] * row  # V, (batch, queries, dim)
                grad_source += kernel.transpose(1, 2) @ upstream
                # g_ij (V_i . w_j x_j), (batch, queries, positions)
                product = (upstream @ source.transpose(1, 2)).mul_(kernel)
                if ctx.normalized:
                    normaliser = -product.sum(dim=2, keepdim=True) * row  # v, (batch, queries, 1)
                    grad_weight += (kernel.transpose(1, 2) @ normaliser)[:, :, 0]
                    product.addcmul_(kernel * weight[:, None, :], normaliser)
                # sigma_i^-3 sum_j (dr^2 + dc^2) product_ij: each axis needs the sums over the other one only.
                table = product.unflatten(2, ctx.grid)
                moment = (table.sum(dim=3) * over_rows).sum(dim=2) + (table.sum(dim=2) * over_columns).sum(dim=2)
                grad_sigma[:, chunk] = moment / sigma[:, chunk] ** 3
            grad_weight += (grad_source * x).sum(dim=2)
        return grad_source * weight[:, :, None], grad_weight, grad_sigma, None, None, None


def _chunks(x: Tensor, centres: Tensor) -> list[slice]:
    """Cut the queries so that a chunk's kernel stays in the cache of a CPU, or fills a GPU."""
    size = queries_per_chunk(x)
    return [slice(start, start + size) for start in range(0, len(centres), size)]


def _kernel(sigma: Tensor, queries: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return g_ij (batch, queries, positions) and the squared distances over rows and over columns, as `_axes`."""
    over_rows, over_columns = _axes(queries, grid, sigma.dtype)
    slope = -0.5 / sigma[:, :, None].square()
    row, column = (exp_or_zero(square * slope) for square in (over_rows, over_columns))
    # (batch, queries, rows) and (batch, queries, columns): their outer product is the two-dimensional Gaussian.
    return (row[:, :, :, None] * column[:, :, None, :]).flatten(2), over_rows, over_columns
