# SPDX-License-Identifier: Apache-2.0
"""Pooling on large grids in time near linear in the number of positions: the pyramid in two axes.

A position whose Gaussian is wide reads the grid after a blur, on a coarser raster, with the residual Gaussian that is
left. With h the spacing of the raster, b = h / BETA the blur and a = sqrt(sigma^2 - b^2) on each axis,

    sum_j g_ij z_j = C_i sum_k exp(-dr_ik^2 / (2 a_r^2) - dc_ik^2 / (2 a_c^2)) R[k]
               C_i = h^2 sigma_r sigma_c / (a_r a_c)

up to a relative error of 2 exp(-(pi / BETA)^2) = 4e-7 of each g_ij and axis. The sum is cut off REACH residual widths
away. The backward pass is the exact adjoint; nothing but the rasters and the widths is kept for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from contextpool.backends.log_weights import exp_or_zero
from contextpool.backends.pyramid.stencils import BETA
from contextpool.backends.tiling import TiledTokens, sort_into_tiles

REACH = 4.7
"""Residual widths at least that are summed over: erfc(REACH / sqrt(2)) = 3e-6 of the mass of an axis."""
_KAPPA = math.sqrt(2.0)
"""A position reads the coarsest raster whose blur is at most its width / KAPPA."""
_UNIFORM = 1e4
"""A Gaussian this many times as wide as the grid has rows is flat: its weights differ by 5e-9."""
_MARGIN = 8
"""Nodes of a coarse raster beyond each edge of the grid: 6.4 blurs."""
_TILE = 16
"""Side, in nodes, of the squares whose positions read the same window."""
_CHUNK_ELEMENTS = 2**20
"""Elements of the windows that are gathered at a time."""
_SMALLEST_EXPONENT = -43.0
"""Of an axis: the product of two stays a normal number (2e-19 squared)."""


def pyramid_sums(
    columns: Tensor, sigma: Tensor, centres: Tensor, visible: Tensor | None, grid: tuple[int, int]
) -> Tensor:
    """Sum g_ij z_j over all positions j, for the positions `centres`.

    Args:
        columns: z, (batch, rows * columns, features).
        sigma: (batch, centres), in rows.
        centres: (centres,), indices of positions.
        visible: (batch, centres), bool: which sums are wanted, the others are 0; None = all.
        grid: (rows, columns).

    Returns:
        (batch, centres, features).
    """
    rows, width = grid
    image = columns.unflatten(1, grid)  # (batch, rows, columns, features)
    # Wider than this is uniform over the grid.
    widths = sigma.clamp_max(_UNIFORM * rows)
    # Each axis in its own unit: rows, and columns. (2, batch, centres).
    widths = torch.stack((widths, widths * (width / rows)))
    # On the coarsest raster, the shorter side is one tile.
    top = max(0, math.ceil(math.log2(min(rows, width) / _TILE)))
    # Both axes take the same raster, so the narrower width decides; (batch, centres).
    level = torch.log2(widths.detach().amin(dim=0) * (BETA / _KAPPA)).floor()
    # A width that is not a number gives a result that is not a number; it must not give an index out of range.
    level = level.clamp(0, top).nan_to_num(0.0).long()
    coordinates = torch.stack((centres // width, centres % width)).to(sigma.dtype)  # (2, centres): row and column
    chosen = torch.ones_like(level, dtype=torch.bool) if visible is None else visible

    # Level by level: the sums of its points, (points, features), and where they belong, (points,) each.
    parts, sequences, queries = [columns.new_zeros(0, columns.shape[2])], [centres[:0]], [centres[:0]]
    for number in range(top + 1):
        sequence, query = (chosen & (level == number)).nonzero(as_tuple=True)
        if len(query) == 0:
            continue
        full, place = widths[:, sequence, query], coordinates[:, query]  # (2, points) each
        if number == 0:
            # The image itself, without a blur.
            points = _Points.plan(image, sequence, place, full.detach())
            part = _Sample.apply(image, full, points)  # type: ignore[no-untyped-call]
        else:
            spacing = 2**number
            raster = _coarsen(image, number)
            # In nodes of the raster, as are the places; node _MARGIN stands over row or column 0.
            residual = (full.square() - (spacing / BETA) ** 2).sqrt() / spacing
            points = _Points.plan(raster, sequence, place / spacing + _MARGIN, residual.detach())
            factor = (full / residual).prod(dim=0)[:, None]  # C_i: h / a is 1 / residual here
            part = factor * _Sample.apply(raster, residual, points)  # type: ignore[no-untyped-call]
        parts.append(part)
        sequences.append(sequence)
        queries.append(query)
    sums = columns.new_zeros(*sigma.shape, columns.shape[2])
    return sums.index_put((torch.cat(sequences), torch.cat(queries)), torch.cat(parts))


def _coarsen(image: Tensor, level: int) -> Tensor:
    """Blur (batch, rows, columns, features) and sample it every 2^level pixels, `_MARGIN` nodes beyond each edge too.

    A Gaussian blur is separable: rows first, then columns. Each is one matrix from pixels to nodes, of unit mass.
    """
    for axis in (1, 2):
        size, spacing = image.shape[axis], 2**level
        node = torch.arange(-_MARGIN, (size - 1) // spacing + 2 + _MARGIN, device=image.device, dtype=image.dtype)
        # (nodes, pixels of this axis)
        offset = node[:, None] * spacing - torch.arange(size, device=image.device)
        blur = spacing / BETA
        taps = torch.exp(-offset.square() / (2 * blur**2)) / (blur * math.sqrt(2 * math.pi))
        image = torch.tensordot(taps, image, dims=([1], [axis])).movedim(0, axis)
    return image


@dataclass(frozen=True)
class _Points:
    """Scattered points on a raster, grouped into tiles that read the same window, by the size of their windows."""

    place: Tensor
    """(2, points): row and column, in nodes."""
    kinds: list[tuple[int, TiledTokens, Tensor, Tensor]]
    """Per reach in nodes: the reach, tiles of 16 points, and per tile its sequence, (tiles,), and the first row
    and column of its square, (tiles, 2). The window that a tile reads is its square and `reach` nodes on each side."""

    @classmethod
    def plan(cls, raster: Tensor, sequence: Tensor, place: Tensor, residual: Tensor) -> _Points:
        """Group points by sequence, square of `_TILE` nodes and reach.

        Args:
            raster: (batch, rows, columns, features).
            sequence: (points,), index into the batch.
            place: (2, points), in nodes.
            residual: (2, points), in nodes.
        """
        most = max(raster.shape[1:3])
        square = (place / _TILE).floor().long()
        reach = (residual.amax(dim=0) * REACH).ceil().nan_to_num(0.0).clamp(1, most).long()
        # Reaches are rounded up in steps of a quarter or less, so that there are few sizes of windows.
        step = (2 ** (reach.clamp_min(4).to(place.dtype).log2().floor() - 2)).long()
        reach = -(-reach // step) * step
        # One number for (sequence, row of the square, column of the square), taken apart again below.
        key = (sequence * most + square[0]) * most + square[1]
        kinds = []
        for size in reach.unique().tolist():
            tiles = sort_into_tiles(key[None], (reach == size)[None], place.dtype)
            corner = torch.stack((tiles.key // most % most, tiles.key % most), dim=1) * _TILE
            kinds.append((int(size), tiles, tiles.key // most**2, corner))
        return cls(place, kinds)


class _Sample(torch.autograd.Function):
    """Sum a raster (batch, rows, columns, features) around each point with the point's own Gaussian."""

    @staticmethod
    def forward(ctx: Any, raster: Tensor, residual: Tensor, points: _Points) -> Tensor:
        # (points + 1, features): the last row takes what empty slots sum, and is dropped.
        out = raster.new_zeros(points.place.shape[1] + 1, raster.shape[3])
        for size, tiles, sequence, corner in points.kinds:
            side = _TILE + 2 * size
            padded = F.pad(raster, _padding(raster, size))  # a corner of the raster is now the corner of its window
            for part in _chunks(len(tiles.key), side**2 * raster.shape[3]):
                token = tiles.token[part]
                kernel = _kernel(points.place, residual, token, corner[part], size)[0]  # (tiles, 16, side * side)
                # (tiles, side * side, features)
                window = padded.flatten(0, 2)[_rows(padded, sequence[part], corner[part], side)]
                sums = torch.bmm(kernel, window)
                target = torch.where(tiles.filled[part] > 0, token, len(out) - 1)
                out[target.flatten()] = sums.flatten(0, 1)
        ctx.save_for_backward(raster, residual)
        ctx.points = points
        return out[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        raster, residual = ctx.saved_tensors
        points: _Points = ctx.points
        grad_raster, grad_residual = torch.zeros_like(raster), torch.zeros_like(residual)
        for size, tiles, sequence, corner in points.kinds:
            side, padding = _TILE + 2 * size, _padding(raster, size)
            padded = F.pad(raster, padding)
            grad_padded = torch.zeros_like(padded)
            for part in _chunks(len(tiles.key), side**2 * raster.shape[3]):
                token, filled = tiles.token[part], tiles.filled[part]
                kernel, *squares = _kernel(points.place, residual, token, corner[part], size)
                rows = _rows(padded, sequence[part], corner[part], side)
                upstream = grad[token] * filled[:, :, None]  # (tiles, 16, features)
                # Windows overlap, so their gradients are added node by node.
                grad_padded.flatten(0, 2).index_add_(
                    0, rows.flatten(), torch.bmm(kernel.transpose(1, 2), upstream).flatten(0, 1)
                )
                product = torch.bmm(upstream, padded.flatten(0, 2)[rows].transpose(1, 2)).mul_(kernel)
                # Per axis: a^-3 sum_k (distance along the axis)^2 product_ik, summed over the other axis first.
                table = product.unflatten(2, (side, side))
                for axis, square in enumerate(squares):
                    moment = (table.sum(dim=3 - axis) * square).sum(dim=2) / residual[axis, token] ** 3
                    grad_residual[axis].index_add_(0, token.flatten(), (moment * filled).flatten())
            grad_raster += F.pad(grad_padded, [-amount for amount in padding])
        return grad_raster, grad_residual, None


def _padding(raster: Tensor, size: int) -> list[int]:
    """Return what `F.pad` needs for windows to stay inside (batch, rows, columns, features)."""
    rows, columns = raster.shape[1:3]
    # From the last axis backwards, (before, after) each; squares at the far edges are made whole.
    return [0, 0, size, size + -columns % _TILE, size, size + -rows % _TILE]


def _rows(padded: Tensor, sequence: Tensor, corner: Tensor, side: int) -> Tensor:
    """Return the rows (tiles, side * side) of each tile's nodes in the padded raster, its first axes flattened."""
    rows, columns = padded.shape[1:3]
    step = torch.arange(side, device=padded.device)
    first = (sequence * rows + corner[:, 0]) * columns + corner[:, 1]
    return (first[:, None, None] + step[:, None] * columns + step).flatten(1)


def _kernel(place: Tensor, residual: Tensor, token: Tensor, corner: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return Gaussians (tiles, 16, side * side) and squared distances along each axis (tiles, 16, side)."""
    step = torch.arange(-size, _TILE + size, device=place.device)  # (side,): nodes of the window from the corner on
    squares = [(place[axis, token][:, :, None] - corner[:, axis, None, None] - step).square() for axis in (0, 1)]
    row, column = (
        exp_or_zero(square * (-0.5 / residual[axis, token].square())[:, :, None], _SMALLEST_EXPONENT)
        for axis, square in enumerate(squares)
    )
    return (row[:, :, :, None] * column[:, :, None, :]).flatten(2), squares[0], squares[1]


def _chunks(tiles: int, elements: int) -> list[slice]:
    """Cut tiles so that the windows gathered at a time have about `_CHUNK_ELEMENTS`."""
    size = max(1, _CHUNK_ELEMENTS // elements)
    return [slice(start, start + size) for start in range(0, tiles, size)]
