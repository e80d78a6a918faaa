# SPDX-License-Identifier: Apache-2.0
"""Pools with the pyramid: sums over the nodes that each tile of tokens reads, and their exact adjoint.

With b, a and h the blur, the residual width and the node spacing of the level that token i reads, and R[k] the level's
node at position k h,

    sum_j g_ij z_j = C_i sum_k exp(-(i - k h)^2 / (2 a_i^2)) R[k],    C_i = h sigma_i / a_i

C_i cancels when the pooling is normalised: the weights w are carried along as one more column of z. The sum over k is a
trapezoid rule for a smooth function and errs by about 2 exp(-(pi / BETA)^2) = 4e-7 of each g_ij; tokens further than
4.6 a_i may be cut off. Weights stay positive, so y stays a convex combination of x.

Features are handled in slabs, and the pyramid of a slab is rebuilt in the backward pass, so nothing beyond the inputs
and one number per token is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contextpool.backends.custom_op import Gradients, Saved, register_custom_op
from contextpool.backends.log_weights import exp_or_zero, reciprocal
from contextpool.backends.pyramid.levels import WINDOW, Nodes, targets
from contextpool.backends.pyramid.tiles import Tiles, make_tiles
from contextpool.backends.tiling import TILE, slabs, tiles_per_chunk


def _forward(x: Tensor, weight: Tensor, sigma: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """Return the pooled tokens and the factor of each row: the reciprocal of its total weight, or C_i."""
    tiles = make_tiles(sigma, weight)
    kernel = _residual_gaussians(tiles)  # (tiles, 16, 48)
    if normalized:
        # sum_k exp(...) r[k], with r the weight column. C_i would stand in the numerator too, and is left out.
        total = (kernel * _weight_nodes(tiles, weight)).sum(dim=2)  # (tiles, 16)
        scale = reciprocal(tiles.tokens.untiled(total).view_as(sigma))
    else:
        # C_i; level 0 has no blur, so nothing to make up for.
        scale = torch.where(tiles.blur > 0, tiles.spacing * sigma / tiles.residual.sqrt(), 1.0)
    # From here on the kernel is P, and zero in empty slots.
    kernel *= tiles.tokens.tiled(scale)[:, :, None]

    y = torch.empty_like(x)
    rows = y.view(-1, x.shape[2])  # (batch * length, dim)
    bounds = slabs(x.shape[2], x.device)
    size = tiles_per_chunk(x.device, bounds[-1][1] - bounds[-1][0])
    chunks = list(zip(kernel.split(size), tiles.first.split(size), strict=True))
    # `sums` holds the results in the order of the slots, (tiles * 16 + 1, features of the slab). Its last row stays
    # zero: masked tokens point there. Both buffers are used again for the next slab.
    sums, nodes = weight.new_empty(0), None
    for start, stop in bounds:
        nodes = _filled(nodes, tiles, x[:, :, start:stop], weight)
        sums = sums.resize_(tiles.tokens.token.numel() + 1, stop - start)
        sums[-1] = 0.0
        slots = sums[:-1].view(-1, TILE, stop - start).split(size)
        for (part, first), out in zip(chunks, slots, strict=True):
            # (tiles, 16, 48) @ (tiles, 48, features)
            torch.bmm(part, nodes.windows.index_select(0, first), out=out)
        rows[:, start:stop] = sums.index_select(0, tiles.tokens.slot)
    return y, scale


def _backward(grad: Tensor, saved: Saved, *, normalized: bool) -> Gradients:
    """Return the gradients of x, weight and sigma.

    Let P_ik be the residual Gaussian times the row's factor, so that y_i = sum_k P_ik R[k], and S_ik = grad_i . R[k].
    The gradient of R[k] is sum_i P_ik grad_i. Normalised, that of its weight column r[k] is -sum_i P_ik (grad_i . y_i),
    and (grad_i . y_i) r[k] is taken off S_ik. The gradient of sigma_i is sigma_i / a_i^4 times
    sum_k P_ik (i - k h)^2 S_ik, plus, where C_i does not cancel, (dC_i / dsigma_i) / C_i = -b^2 / (sigma_i a_i^2) times
    grad_i . y_i.
    """
    x, weight, sigma, scale = saved
    tiles = make_tiles(sigma, weight)
    kernel = _residual_gaussians(tiles)
    kernel *= tiles.tokens.tiled(scale)[:, :, None]
    grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
    product = torch.zeros_like(kernel)  # S, (tiles, 16, 48), summed up slab by slab
    grad_rows = grad.reshape(-1, x.shape[2])  # (batch * length, dim)
    bounds = slabs(x.shape[2], x.device)
    size, token = tiles_per_chunk(x.device, bounds[-1][1] - bounds[-1][0]), tiles.tokens.token.view(-1)
    target = targets(tiles.levels, tiles.first)
    # Per chunk: P transposed, S, the first node of each tile, where its gradients go, and its tokens.
    chunks = list(
        zip(
            kernel.transpose(1, 2).split(size), product.split(size), tiles.first.split(size),
            target.split(target.numel() // max(1, len(kernel)) * size), token.split(TILE * size), strict=True,
        )
    )  # fmt: skip
    nodes = grad_nodes = None
    for start, stop in bounds:
        features, columns = x[:, :, start:stop], stop - start
        nodes = _filled(nodes, tiles, features, weight)
        if grad_nodes is None or grad_nodes.columns != columns:
            grad_nodes = Nodes(tiles.levels, columns, weight)
        grad_nodes.buffer.zero_()
        grad_slab = grad_rows[:, start:stop]
        for adjoint, part, first, windows, tokens in chunks:
            # (tiles, 16, features). An empty slot repeats token 0, which its zero row of P makes harmless.
            upstream = grad_slab.index_select(0, tokens).to(weight.dtype).view(-1, TILE, columns)
            part.baddbmm_(upstream, nodes.windows.index_select(0, first).transpose(1, 2))
            # Tiles read overlapping windows, so their gradients are added up.
            grad_nodes.add_(windows, torch.bmm(adjoint, upstream))
        grad_nodes.collapse()
        # Level 0 is w x: its gradient goes to both factors.
        grad_weight += (grad_nodes.tokens * features).sum(dim=2)
        torch.mul(grad_nodes.tokens, weight[:, :, None], out=grad_x[:, :, start:stop])

    dot = (kernel * product).sum(dim=2)  # grad_i . y_i, (tiles, 16)
    if normalized:
        # Through the normaliser: the weight column is a pyramid of its own, with one feature.
        product -= dot[:, :, None] * _weight_nodes(tiles, weight)
        grad_column = Nodes(tiles.levels, 1, weight)
        grad_column.add_(target, -(kernel.transpose(1, 2) @ dot[:, :, None]))
        grad_column.collapse()
        grad_weight += grad_column.tokens[:, :, 0]
    # (i - k h)^2 is in nodes here: h^2 sum_k P S (place - k)^2 sigma / a^4, since `residual` is a^2.
    moment = product.mul_(kernel).mul_(_squares(tiles)).sum(dim=2)
    grad_sigma = tiles.tokens.untiled(moment).view_as(sigma) * sigma * (tiles.spacing / tiles.residual).square()
    if not normalized:
        grad_sigma -= tiles.tokens.untiled(dot).view_as(sigma) * tiles.blur / (sigma * tiles.residual)
    return grad_x, grad_weight, grad_sigma


def _filled(nodes: Nodes | None, tiles: Tiles, features: Tensor, weight: Tensor) -> Nodes:
    """Return the levels of w x, in the given nodes if they fit."""
    if nodes is None or nodes.columns != features.shape[2]:
        nodes = Nodes(tiles.levels, features.shape[2], weight)
    torch.mul(features, weight[:, :, None], out=nodes.tokens)
    # Whatever stands at a masked position, even if it is not a number.
    nodes.buffer.index_fill_(0, tiles.masked, 0.0)
    nodes.build()
    return nodes


def _weight_nodes(tiles: Tiles, weight: Tensor) -> Tensor:
    """Return the weight column of the nodes that tiles read: (tiles, 1, 48)."""
    nodes = Nodes(tiles.levels, 1, weight)
    nodes.tokens.copy_(weight[:, :, None])
    nodes.build()
    return nodes.windows.index_select(0, tiles.first).transpose(1, 2)


def _squares(tiles: Tiles) -> Tensor:
    """Return squared distances from tokens to nodes, in nodes: (tiles, 16, 48)."""
    node = torch.arange(WINDOW, device=tiles.place.device, dtype=tiles.place.dtype)
    return (tiles.place[:, :, None] - node).square_()


def _residual_gaussians(tiles: Tiles) -> Tensor:
    """Return (tiles, 16, 48)."""
    return exp_or_zero(_squares(tiles).mul_(tiles.slope[:, :, None]))


pyramid_pool = register_custom_op("pyramid", _forward, _backward)
