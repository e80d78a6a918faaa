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
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from contextpool.backends.log_weights import exp_or_zero
from contextpool.backends.pyramid.stencils import BETA
from contextpool.backends.tiling import TiledTokens, readable, sort_into_tiles

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
_CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}
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

    # Raster by raster: the sums of its points, (points, features), and where they belong, (points,) each.
    parts, sequences, queries = [columns.new_zeros(0, columns.shape[2])], [centres[:0]], [centres[:0]]
    sums = columns.new_zeros(*sigma.shape, columns.shape[2])
    for number in range(top + 1):
        raster, here = _Raster(image, number, last=number == top), chosen & (level == number)
        if readable(columns.device):
            sequence, query = here.nonzero(as_tuple=True)
            if len(query) > 0:
                parts.append(raster.sums(sequence, coordinates[:, query], widths[:, sequence, query], None))
                sequences.append(sequence)
                queries.append(query)
        else:
            # Every centre is a point of every raster, but valid in one. Other widths might be too narrow for it.
            sequence = torch.arange(len(sigma), device=sigma.device)[:, None].expand_as(level).flatten()
            place = coordinates[:, None].expand_as(widths).flatten(1)
            wide = widths.masked_fill(~here, raster.spacing * _KAPPA / BETA).flatten(1)
            sums = sums + raster.sums(sequence, place, wide, here.flatten()).view_as(sums)
    if not readable(columns.device):
        return sums
    return sums.index_put((torch.cat(sequences), torch.cat(queries)), torch.cat(parts))


@dataclass(frozen=True)
class _Raster:
    """An image, blurred and sampled; made when its first points are summed."""

    image: Tensor
    """(batch, rows, columns, features)."""
    level: int
    """0 for the image itself."""
    last: bool
    """Whether it is the coarsest, which all wider Gaussians read."""

    @property
    def spacing(self) -> int:
        """Rows or columns of the image from node to node: h."""
        return 1 << self.level

    def sums(self, sequence: Tensor, place: Tensor, wide: Tensor, valid: Tensor | None) -> Tensor:
        """Sum what points read here.

        Args:
            sequence: (points,), index into the batch.
            place: (2, points), row and column of the image.
            wide: (2, points), widths along rows and columns, in rows and columns.
            valid: (points,), bool: which points there are, the others get zero; None = all.

        Returns:
            (points, features).
        """
        if self.level == 0:
            # Without a blur.
            points = _Points.plan(self.image, self, sequence, place, wide.detach(), valid)
            return cast(Tensor, _Sample.apply(self.image, wide, points))  # type: ignore[no-untyped-call]
        nodes = _coarsen(self.image, self.level)
        # In nodes, as are the places; node _MARGIN stands over row or column 0.
        residual = (wide.square() - (self.spacing / BETA) ** 2).sqrt() / self.spacing
        points = _Points.plan(nodes, self, sequence, place / self.spacing + _MARGIN, residual.detach(), valid)
        factor = (wide / residual).prod(dim=0)[:, None]  # C_i: h / a is 1 / residual here
        return factor * cast(Tensor, _Sample.apply(nodes, residual, points))  # type: ignore[no-untyped-call]

    def largest_window(self, nodes: Tensor) -> tuple[int, int]:
        """Return side and reach of windows that serve all points; those of all nodes, if these are no larger."""
        rows, columns = self.image.shape[1:3]
        # A width is below twice the least of its level, times the grid's proportion along the longer side.
        width = 2.0 * _KAPPA / BETA * max(rows / columns, columns / rows)
        residual = math.sqrt(width**2 - (BETA**-2 if self.level else 0.0))
        reach, whole = math.ceil(REACH * residual * (1.0 + 1e-5)), max(nodes.shape[1:3])
        return (whole, 0) if self.last or whole <= _TILE + 2 * reach else (_TILE, reach)


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
    """Scattered points on a raster, grouped by the size of their windows."""

    place: Tensor
    """(2, points): row and column, in nodes."""
    kinds: list[_Kind]

    @classmethod
    def plan(
        cls,
        nodes: Tensor,
        raster: _Raster,
        sequence: Tensor,
        place: Tensor,
        residual: Tensor,
        valid: Tensor | None,
    ) -> _Points:
        """Group points by sequence, square and reach; on a GPU, all have the largest reach that the level allows.

        Args:
            nodes: Those of the raster, (batch, rows, columns, features).
            raster: The raster.
            sequence: (points,), index into the batch.
            place: (2, points), in nodes.
            residual: (2, points), in nodes.
            valid: (points,), bool, which points there are; None = all.
        """
        valid = torch.ones_like(sequence, dtype=torch.bool) if valid is None else valid
        if not readable(nodes.device):
            return cls(place, [_Kind.of(nodes, sequence, place, valid, *raster.largest_window(nodes))])
        reach = (residual.amax(dim=0) * REACH).ceil().nan_to_num(0.0).clamp(1, max(nodes.shape[1:3])).long()
        # Reaches are rounded up in steps of a quarter or less, so that there are few sizes of windows.
        step = (2 ** (reach.clamp_min(4).to(place.dtype).log2().floor() - 2)).long()
        reach = -(-reach // step) * step
        sizes = [int(size) for size in reach.unique().tolist()]
        return cls(place, [_Kind.of(nodes, sequence, place, valid & (reach == size), _TILE, size) for size in sizes])


@dataclass(frozen=True)
class _Kind:
    """Tiles of 16 points whose windows have one size: a square of `side` nodes, and `reach` nodes around it."""

    side: int
    reach: int
    tiles: TiledTokens
    sequence: Tensor
    """(tiles,)."""
    corner: Tensor
    """(tiles, 2): first row and column of the square."""

    @classmethod
    def of(cls, raster: Tensor, sequence: Tensor, place: Tensor, valid: Tensor, side: int, reach: int) -> _Kind:
        """Group the valid points, (points,), by sequence and square."""
        squares = -(-max(raster.shape[1:3]) // side)
        square = (place / side).floor().long()
        # One number for (sequence, row of the square, column of the square), taken apart again below.
        key = (sequence * squares + square[0]) * squares + square[1]
        tiles = sort_into_tiles(key[None], valid[None], len(raster) * squares**2)
        corner = torch.stack((tiles.key // squares % squares, tiles.key % squares), dim=1) * side
        return cls(side, reach, tiles, tiles.key // squares**2, corner)

    @property
    def window(self) -> int:
        """Side of the window."""
        return self.side + 2 * self.reach

    def padding(self, raster: Tensor) -> list[int]:
        """Return what `F.pad` needs for windows to stay inside (batch, rows, columns, features)."""
        rows, columns = raster.shape[1:3]
        # From the last axis backwards, (before, after) each; squares at the far edges are made whole.
        before, after = self.reach, [self.reach + -size % self.side for size in (columns, rows)]
        return [0, 0, before, after[0], before, after[1]]

    def chunks(self, raster: Tensor) -> list[slice]:
        """Cut the tiles so that the windows gathered at a time have about `_CHUNK_ELEMENTS`."""
        elements = _CHUNK_ELEMENTS.get(raster.device.type, _CHUNK_ELEMENTS["cuda"])
        size = max(1, elements // (self.window**2 * raster.shape[3]))
        return [slice(start, start + size) for start in range(0, len(self.tiles.key), size)]


class _Sample(torch.autograd.Function):
    """Sum a raster (batch, rows, columns, features) around each point with the point's own Gaussian."""

    @staticmethod
    def forward(ctx: Any, raster: Tensor, residual: Tensor, points: _Points) -> Tensor:
        # (points + 1, features): the last row takes what empty slots sum, and is dropped.
        out = raster.new_zeros(points.place.shape[1] + 1, raster.shape[3])
        for kind in points.kinds:
            padded = F.pad(raster, kind.padding(raster))  # a corner of the raster is now the corner of its window
            for part in kind.chunks(raster):
                token = kind.tiles.token[part]
                kernel = _kernel(points.place, residual, kind, part)[0]  # (tiles, 16, window * window)
                # (tiles, window * window, features)
                window = padded.flatten(0, 2)[_rows(padded, kind, part)]
                sums = torch.bmm(kernel, window)
                target = torch.where(kind.tiles.filled[part], token, len(out) - 1)
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
        for kind in points.kinds:
            padding = kind.padding(raster)
            padded = F.pad(raster, padding)
            grad_padded = padded.new_zeros(padded.shape)  # contiguous, whatever the raster is: added to as rows
            for part in kind.chunks(raster):
                token, filled = kind.tiles.token[part], kind.tiles.filled[part]
                kernel, *squares = _kernel(points.place, residual, kind, part)
                rows = _rows(padded, kind, part)
                upstream = grad[token] * filled[:, :, None]  # (tiles, 16, features)
                # Windows overlap, so their gradients are added node by node.
                grad_padded.flatten(0, 2).index_add_(
                    0, rows.flatten(), torch.bmm(kernel.transpose(1, 2), upstream).flatten(0, 1)
                )
                product = torch.bmm(upstream, padded.flatten(0, 2)[rows].transpose(1, 2)).mul_(kernel)
                # Per axis: a^-3 sum_k (distance along the axis)^2 product_ik, summed over the other axis first.
                table = product.unflatten(2, (kind.window, kind.window))
                for axis, square in enumerate(squares):
                    moment = (table.sum(dim=3 - axis) * square).sum(dim=2) / residual[axis, token] ** 3
                    grad_residual[axis].index_add_(0, token.flatten(), (moment * filled).flatten())
            grad_raster += F.pad(grad_padded, [-amount for amount in padding])
        return grad_raster, grad_residual, None


def _rows(padded: Tensor, kind: _Kind, part: slice) -> Tensor:
    """Return the rows (tiles, window * window) of tiles' nodes in the padded raster, its first axes flattened."""
    rows, columns = padded.shape[1:3]
    step, corner = torch.arange(kind.window, device=padded.device), kind.corner[part]
    first = (kind.sequence[part] * rows + corner[:, 0]) * columns + corner[:, 1]
    return (first[:, None, None] + step[:, None] * columns + step).flatten(1)


def _kernel(place: Tensor, residual: Tensor, kind: _Kind, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Return Gaussians (tiles, 16, window * window) and squared distances along each axis (tiles, 16, window)."""
    token, corner = kind.tiles.token[part], kind.corner[part]
    # (window,): nodes of the window from the corner on.
    step = torch.arange(-kind.reach, kind.side + kind.reach, device=place.device)
    squares = [(place[axis, token][:, :, None] - corner[:, axis, None, None] - step).square() for axis in (0, 1)]
    row, column = (
        exp_or_zero(square * (-0.5 / residual[axis, token].square())[:, :, None], _SMALLEST_EXPONENT)
        for axis, square in enumerate(squares)
    )
    return (row[:, :, :, None] * column[:, :, None, :]).flatten(2), squares[0], squares[1]
