"""Pooling in time and memory linear in the length: a Gaussian pyramid, and a narrow residual Gaussian for each token.

A Gaussian of width sigma is a blur of width b followed by a Gaussian of width a = sqrt(sigma^2 - b^2). So the
sequence is blurred once by each of b = 2.5, 5, 10, ... tokens, sampled every 2, 4, 8, ... tokens, and a token sums a
few dozen samples of the level whose b is a little narrower than its own sigma, whatever sigma is:

    sum_j g_ij z_j = C_i sum_k exp(-(i - k h)^2 / (2 a_i^2)) R_l[k],    C_i = h sigma_i / a_i

with R_l[k] the level's node at position k h. C_i cancels when the pooling is normalised: the weights w are carried
along as one more column of z. The sum over k is a trapezoid rule for a smooth function and errs by about
2 exp(-(pi / BETA)^2) = 4e-7 of each g_ij; tokens further than 4.6 a_i may be cut off. Weights stay positive, so y
stays a convex combination of x.

The backward pass is the exact adjoint of what the forward computes. Features are handled in slabs, and the pyramid of a
slab is rebuilt in the backward pass, so nothing beyond the inputs and one number per token is kept.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from contextpool.opaque import opaque_kernel
from contextpool.stencils import BLOCK, EXPONENT_MIN, reciprocal
from contextpool.tiles import Tiles, make_tiles

SLAB = 64
"""Features handled at a time. Wider slabs are no faster, and their buffers cost page faults."""
CHUNK = 64
"""Tiles handled at a time: their nodes stay in the cache."""
WINDOW = 3 * BLOCK


def _forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Return the pooled tokens and the factor of each row: the reciprocal of its total weight, or C_i."""
    tiles = make_tiles(sigma, weight)
    kernel = _residual_gaussians(tiles)
    if normalized:
        total = (kernel * _weight_nodes(tiles, weight)).sum(dim=2)
        scale = reciprocal(tiles.groups.untiled(total).view_as(sigma))
    else:
        scale = torch.where(tiles.blur > 0, tiles.spacing * sigma / tiles.residual.sqrt(), 1.0)
    kernel *= tiles.groups.tiled(scale)[:, :, None]

    y = torch.empty_like(x)
    rows = y.view(-1, x.shape[2])
    sums = buffer = weight.new_empty(0)
    for start, stop in slabs(x.shape[2]):
        buffer = _build(tiles, x[:, :, start:stop], weight, buffer)
        # One more row of zeros, for the masked tokens.
        sums = sums.resize_(tiles.groups.token.numel() + 1, stop - start)
        sums[-1] = 0.0
        slots = sums[:-1].view(-1, BLOCK, stop - start)
        for part in _chunks(tiles):
            torch.bmm(kernel[part], _nodes(buffer, tiles.groups.key[part]), out=slots[part])
        rows[:, start:stop] = sums.index_select(0, tiles.groups.slot)
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

    Let P_ik be the residual Gaussian times the row's factor, so that y_i = sum_k P_ik R[k], and S_ik = grad_i . R[k].
    The gradient of R[k] is sum_i P_ik grad_i. Normalised, that of its weight column r[k] is -sum_i P_ik (grad_i . y_i),
    and (grad_i . y_i) r[k] is taken off S_ik. The gradient of sigma_i is sigma_i / a_i^4 times
    sum_k P_ik (i - k h)^2 S_ik, plus, where C_i does not cancel, (dC_i / dsigma_i) / C_i = -b^2 / (sigma_i a_i^2) times
    grad_i . y_i.
    """
    tiles = make_tiles(sigma, weight)
    kernel = _residual_gaussians(tiles)
    kernel *= tiles.groups.tiled(scale)[:, :, None]
    grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
    product = torch.zeros_like(kernel)
    grad_rows = grad.reshape(-1, x.shape[2])
    buffer = grad_buffer = weight.new_empty(0)
    for start, stop in slabs(x.shape[2]):
        features = x[:, :, start:stop]
        buffer = _build(tiles, features, weight, buffer)
        grad_buffer = grad_buffer.resize_(buffer.shape).zero_()
        for part in _chunks(tiles):
            upstream = grad_rows[:, start:stop].index_select(0, tiles.groups.token[part].view(-1)).to(weight.dtype)
            upstream = upstream.view(-1, BLOCK, stop - start)
            product[part].baddbmm_(upstream, _nodes(buffer, tiles.groups.key[part]).transpose(1, 2))
            _scatter(grad_buffer, tiles.groups.key[part], torch.bmm(kernel[part].transpose(1, 2), upstream))
        tiles.levels.collapse(grad_buffer)
        grad_source = tiles.levels.tokens(grad_buffer)
        grad_weight += (grad_source * features).sum(dim=2)
        torch.mul(grad_source, weight[:, :, None], out=grad_x[:, :, start:stop])

    dot = (kernel * product).sum(dim=2)
    if normalized:
        product -= dot[:, :, None] * _weight_nodes(tiles, weight)
        grad_nodes = weight.new_zeros(tiles.levels.total, BLOCK, 1)
        _scatter(grad_nodes, tiles.groups.key, -(kernel.transpose(1, 2) @ dot[:, :, None]))
        tiles.levels.collapse(grad_nodes)
        grad_weight += tiles.levels.tokens(grad_nodes)[:, :, 0]
    moment = product.mul_(kernel).mul_(_squares(tiles)).sum(dim=2)
    grad_sigma = tiles.groups.untiled(moment).view_as(sigma) * sigma * (tiles.spacing / tiles.residual).square()
    if not normalized:
        grad_sigma -= tiles.groups.untiled(dot).view_as(sigma) * tiles.blur / (sigma * tiles.residual)
    return grad_x, grad_weight, grad_sigma


def slabs(dim: int) -> list[tuple[int, int]]:
    """Cut the features into slabs of nearly equal width."""
    count = -(-dim // SLAB)
    bounds = [dim * i // count for i in range(count + 1)]
    return list(pairwise(bounds))


def _chunks(tiles: Tiles) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, tiles.groups.key.shape[0], CHUNK)]


def _build(tiles: Tiles, features: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
    """Return the levels of w x, (blocks, 16, features), in the given buffer if it fits."""
    shape = (tiles.levels.total, BLOCK, features.shape[2])
    if buffer.shape != shape:
        buffer = weight.new_zeros(shape)
    source = tiles.levels.tokens(buffer)
    torch.mul(features, weight[:, :, None], out=source)
    # Whatever stands at a masked position, even if it is not a number.
    source[tiles.masked] = 0.0
    tiles.levels.build(buffer)
    return buffer


def _nodes(buffer: Tensor, first: Tensor) -> Tensor:
    """Copy the nodes that tiles read: (tiles, 48, columns)."""
    blocks, _, columns = buffer.shape
    windows = buffer.as_strided((blocks - 2, WINDOW, columns), (BLOCK * columns, columns, 1))
    return windows.index_select(0, first)


def _weight_nodes(tiles: Tiles, weight: Tensor) -> Tensor:
    """Return the weight column of the nodes that tiles read: (tiles, 1, 48)."""
    ones = torch.ones_like(weight)[:, :, None]
    return _nodes(_build(tiles, ones, weight, weight.new_empty(0)), tiles.groups.key).transpose(1, 2)


def _squares(tiles: Tiles) -> Tensor:
    """Return squared distances from tokens to nodes, in nodes: (tiles, 16, 48)."""
    node = torch.arange(WINDOW, device=tiles.place.device, dtype=tiles.place.dtype)
    return (tiles.place[:, :, None] - node).square_()


def _residual_gaussians(tiles: Tiles) -> Tensor:
    """Return (tiles, 16, 48)."""
    return _squares(tiles).mul_(tiles.slope[:, :, None]).clamp_min_(EXPONENT_MIN).exp_()


def _scatter(buffer: Tensor, first: Tensor, values: Tensor) -> None:
    """Add (tiles, 48, columns) to the three blocks that each tile reads."""
    blocks = (first[:, None] + torch.arange(3, device=first.device)).flatten()
    buffer.index_add_(0, blocks, values.view(-1, BLOCK, buffer.shape[2]))


pyramid_pool = opaque_kernel("pyramid", _forward, _backward)
