"""Pooling in time and memory linear in the length: a Gaussian pyramid, and a narrow residual Gaussian for each token.

A Gaussian of width sigma is a blur of width b followed by a Gaussian of width a = sqrt(sigma^2 - b^2). So the sequence
is blurred once by each of b = 2.5, 5, 10, ... tokens, sampled every 2, 4, 8, ... tokens, and a token sums a few dozen
samples of the level whose b is a little narrower than its own sigma, whatever sigma is:

    sum_j g_ij z_j = C_i sum_k exp(-(i - k h)^2 / (2 a_i^2)) R_l[k],    C_i = h sigma_i / a_i

with R_l[k] the level's node at position k h. C_i cancels when the pooling is normalised: the weights w are carried along
as one more column of z. The sum over k is a trapezoid rule for a smooth function and errs by 2 exp(-(pi / BETA)^2) = 4e-7
of each g_ij; tokens further than 4.5 a_i may be cut off. Weights stay positive, so y is a convex combination of x.

The backward pass is the exact adjoint of what the forward computes. Features are handled in slabs, and the pyramid of a
slab is rebuilt in the backward pass, so nothing beyond the inputs and one number per token is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from contextpool.opaque import opaque_kernel
from contextpool.stencils import BLOCK, EXPONENT_MIN, down_stencil, reciprocal, up_stencil
from contextpool.tiles import LEFT, Layout, Tiles, make_tiles

SLAB = 128
"""Features handled at a time."""
CHUNK = 64
"""Tiles handled at a time: their nodes stay in the cache."""
WINDOW = 3 * BLOCK


def _forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Return the pooled tokens and the factor of each row: the reciprocal of its total weight, or C_i."""
    tiles = make_tiles(sigma)
    scale = tiles.spacing * sigma / tiles.residual.sqrt()
    scale = torch.where(tiles.blur > 0, scale, 1.0)
    y = torch.empty_like(x)
    for start, stop in _slabs(x.shape[2]):
        buffer = _build(tiles.layout, x[:, :, start:stop], weight)
        sums = buffer.new_empty(tiles.first.shape[0], BLOCK, buffer.shape[2])
        for part, nodes, kernel, _ in _chunks(tiles, buffer):
            torch.bmm(kernel, nodes, out=sums[part])
        pooled = sums.flatten(0, 1).index_select(0, tiles.slot).view(*sigma.shape, -1)
        if normalized and start == 0:
            scale = reciprocal(pooled[:, :, -1])
        y[:, :, start:stop] = pooled[:, :, :-1].mul_(scale[:, :, None])
    return y, scale


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    sigma: Tensor,
    scale: Tensor,
    normalized: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and sigma: see `dense._backward`, with the pyramid for the Gaussians.

    With A_ik the residual Gaussian, the gradient of sigma_i is sigma_i / a_i^4 sum_k A_ik (i - k h)^2 (V_i . R[k]), plus,
    when C_i does not cancel, (dC_i / dsigma_i) / C_i = -b^2 / (sigma_i a_i^2) times V_i . sum_k A_ik R[k].
    """
    tiles = make_tiles(sigma)
    grad_x, grad_weight, grad_sigma = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(sigma)
    tile_scale = torch.cat((scale.flatten(), scale.new_zeros(1)))[tiles.token].view(-1, BLOCK)
    for start, stop in _slabs(x.shape[2]):
        features = x[:, :, start:stop]
        buffer = _build(tiles.layout, features, weight)
        grad_buffer = torch.zeros_like(buffer)
        # One more row of zeros for the empty slots, and one more column for the gradient of the total weight.
        upstream = buffer.new_zeros(sigma.numel() + 1, buffer.shape[2])
        rows = upstream[:-1].view(*sigma.shape, -1)
        torch.mul(grad[:, :, start:stop], scale[:, :, None], out=rows[:, :, :-1])
        moment, total = (sigma.new_empty(tiles.first.shape[0], BLOCK) for _ in range(2))
        for part, nodes, kernel, square in _chunks(tiles, buffer):
            values = upstream.index_select(0, tiles.token.view(-1, BLOCK)[part].flatten()).view(-1, BLOCK, buffer.shape[2])
            product = values @ nodes.transpose(1, 2)
            torch.sum(product * kernel, dim=2, out=total[part])
            if normalized:
                normaliser = -total[part] * tile_scale[part]
                values[:, :, -1] = normaliser
                product.addcmul_(normaliser[:, :, None], nodes[:, None, :, -1])
            torch.sum(product.mul_(kernel).mul_(square), dim=2, out=moment[part])
            _scatter(grad_buffer, tiles.first[part], kernel.transpose(1, 2) @ values)
        grad_sigma += moment.flatten()[tiles.slot].view_as(sigma) * (sigma * (tiles.spacing / tiles.residual).square())
        if not normalized:
            grad_sigma -= total.flatten()[tiles.slot].view_as(sigma) * tiles.blur / (sigma * tiles.residual)
        grad_source = _collapse(tiles.layout, grad_buffer)
        grad_weight += (grad_source[:, :, :-1] * features).sum(dim=2) + grad_source[:, :, -1]
        grad_x[:, :, start:stop] = grad_source[:, :, :-1].mul_(weight[:, :, None])
    return grad_x, grad_weight, grad_sigma


def _slabs(dim: int) -> list[tuple[int, int]]:
    return [(start, min(start + SLAB, dim)) for start in range(0, dim, SLAB)]


def _build(layout: Layout, features: Tensor, weight: Tensor) -> Tensor:
    """Return the levels of [w x, w] as one buffer (blocks, 16, features + 1)."""
    columns = features.shape[2] + 1
    buffer = weight.new_zeros(layout.total, BLOCK, columns)
    source = layout.rows(buffer, 0)[:, LEFT * BLOCK : LEFT * BLOCK + layout.length]
    torch.mul(features, weight[:, :, None], out=source[:, :, :-1])
    source[:, :, -1] = weight
    for level in range(len(layout.blocks) - 1):
        below, above = layout.rows(buffer, level), layout.rows(buffer, level + 1)
        blocks = layout.blocks[level + 1] + 2
        stencil = up_stencil(level, buffer.dtype, buffer.device)
        windows = _windows(below, 0, blocks, step=2 * BLOCK, size=4 * BLOCK)
        target = above[:, (LEFT - 1) * BLOCK : (LEFT - 1 + blocks) * BLOCK]
        target.copy_(torch.bmm(stencil.expand(windows.shape[0], -1, -1), windows).view_as(target))
    return buffer


def _collapse(layout: Layout, buffer: Tensor) -> Tensor:
    """Apply the adjoint of `_build`'s levels: gradients of all nodes to gradients of level 0, (batch, length, columns)."""
    for level in range(len(layout.blocks) - 2, -1, -1):
        below, above = layout.rows(buffer, level), layout.rows(buffer, level + 1)
        pairs = (layout.blocks[level] + 1) // 2 + 2
        stencil = down_stencil(level, buffer.dtype, buffer.device)
        windows = _windows(above, (LEFT - 1) * BLOCK - BLOCK // 2, pairs, step=BLOCK, size=2 * BLOCK)
        target = below[:, (LEFT - 2) * BLOCK : (LEFT - 2 + 2 * pairs) * BLOCK]
        target += torch.bmm(stencil.expand(windows.shape[0], -1, -1), windows).view_as(target)
        # Nodes that the forward leaves at zero have no gradient.
        below[:, : (LEFT - 1) * BLOCK] = 0.0
        below[:, (LEFT + layout.blocks[level] + 1) * BLOCK :] = 0.0
    return layout.rows(buffer, 0)[:, LEFT * BLOCK : LEFT * BLOCK + layout.length]


def _windows(rows: Tensor, start: int, count: int, *, step: int, size: int) -> Tensor:
    """View overlapping windows of (batch, rows, columns) as (batch * count, size, columns); copied if batch > 1."""
    batch, _, columns = rows.shape
    strides = (rows.stride(0), step * columns, columns, 1)
    shape = (batch, count, size, columns)
    return rows.as_strided(shape, strides, rows.storage_offset() + start * columns).flatten(0, 1)


def _chunks(tiles: Tiles, buffer: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield slices of tiles with their nodes (tiles, 48, columns), residual Gaussians and squared distances in nodes."""
    columns = buffer.shape[2]
    windows = buffer.as_strided((tiles.layout.total - 2, WINDOW, columns), (BLOCK * columns, columns, 1))
    node = torch.arange(WINDOW, device=buffer.device, dtype=buffer.dtype)
    for start in range(0, tiles.first.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        square = (tiles.place[part] - node).square_()
        kernel = (square * tiles.slope[part]).clamp_min_(EXPONENT_MIN).exp_()
        yield part, windows.index_select(0, tiles.first[part]), kernel, square


def _scatter(buffer: Tensor, first: Tensor, values: Tensor) -> None:
    """Add (tiles, 48, columns) to the three blocks that each tile reads."""
    blocks = (first[:, None] + torch.arange(3, device=first.device)).flatten()
    buffer.index_add_(0, blocks, values.view(-1, BLOCK, buffer.shape[2]))


pyramid_pool = opaque_kernel("pyramid", _forward, _backward)
