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

from contextpool.backends.custom_op import opaque_kernel
from contextpool.backends.log_weights import exp_or_zero
from contextpool.backends.pyramid.levels import Nodes
from contextpool.backends.pyramid.stencils import BLOCK, reciprocal
from contextpool.backends.pyramid.tiles import Tiles, make_tiles

SLAB = 64
"""Features that one thread handles at a time. Wider slabs are no faster there, and their buffers cost page faults."""
CHUNK = {"cpu": 64, "cuda": 4096}
"""Tiles handled at a time: their nodes stay in the cache of a CPU; on a GPU (a guess) they are enough to fill it."""
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
    size = chunk_size(x.device)
    chunks = list(zip(kernel.split(size), tiles.groups.key.split(size), strict=True))
    # One more row of zeros, for the masked tokens.
    sums, nodes = weight.new_empty(0), None
    for start, stop in slabs(x.shape[2]):
        nodes = _filled(nodes, tiles, x[:, :, start:stop], weight)
        sums = sums.resize_(tiles.groups.token.numel() + 1, stop - start)
        sums[-1] = 0.0
        slots = sums[:-1].view(-1, BLOCK, stop - start).split(size)
        for (part, first), out in zip(chunks, slots, strict=True):
            torch.bmm(part, nodes.windows.index_select(0, first), out=out)
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
    size, key, token = chunk_size(x.device), tiles.groups.key, tiles.groups.token.view(-1)
    blocks = _blocks(key)
    chunks = list(
        zip(
            kernel.transpose(1, 2).split(size), product.split(size), key.split(size),
            blocks.split(3 * size), token.split(BLOCK * size), strict=True,
        )
    )  # fmt: skip
    nodes = grad_nodes = None
    for start, stop in slabs(x.shape[2]):
        features, columns = x[:, :, start:stop], stop - start
        nodes = _filled(nodes, tiles, features, weight)
        if grad_nodes is None or grad_nodes.columns != columns:
            grad_nodes = Nodes(tiles.levels, columns, weight)
        grad_nodes.buffer.zero_()
        grad_slab = grad_rows[:, start:stop]
        for adjoint, part, first, targets, tokens in chunks:
            upstream = grad_slab.index_select(0, tokens).to(weight.dtype).view(-1, BLOCK, columns)
            part.baddbmm_(upstream, nodes.windows.index_select(0, first).transpose(1, 2))
            grad_nodes.buffer.index_add_(0, targets, torch.bmm(adjoint, upstream).view(-1, BLOCK, columns))
        grad_nodes.collapse()
        grad_weight += (grad_nodes.tokens * features).sum(dim=2)
        torch.mul(grad_nodes.tokens, weight[:, :, None], out=grad_x[:, :, start:stop])

    dot = (kernel * product).sum(dim=2)
    if normalized:
        product -= dot[:, :, None] * _weight_nodes(tiles, weight)
        grad_column = Nodes(tiles.levels, 1, weight)
        grad_column.buffer.index_add_(0, blocks, -(kernel.transpose(1, 2) @ dot[:, :, None]).view(-1, BLOCK, 1))
        grad_column.collapse()
        grad_weight += grad_column.tokens[:, :, 0]
    moment = product.mul_(kernel).mul_(_squares(tiles)).sum(dim=2)
    grad_sigma = tiles.groups.untiled(moment).view_as(sigma) * sigma * (tiles.spacing / tiles.residual).square()
    if not normalized:
        grad_sigma -= tiles.groups.untiled(dot).view_as(sigma) * tiles.blur / (sigma * tiles.residual)
    return grad_x, grad_weight, grad_sigma


def chunk_size(device: torch.device) -> int:
    """Return how many tiles to handle at a time."""
    return CHUNK.get(device.type, CHUNK["cpu"])


def slabs(dim: int) -> list[tuple[int, int]]:
    """Cut the features into slabs of nearly equal width.

    Two threads or more get slabs twice as wide: fewer operators, each with enough work to share.
    """
    count = -(-dim // (SLAB if torch.get_num_threads() == 1 else 2 * SLAB))
    bounds = [dim * i // count for i in range(count + 1)]
    return list(pairwise(bounds))


def _filled(nodes: Nodes | None, tiles: Tiles, features: Tensor, weight: Tensor) -> Nodes:
    """Return the levels of w x, in the given nodes if they fit."""
    if nodes is None or nodes.columns != features.shape[2]:
        nodes = Nodes(tiles.levels, features.shape[2], weight)
    torch.mul(features, weight[:, :, None], out=nodes.tokens)
    if tiles.masked[0].numel() > 0:
        # Whatever stands at a masked position, even if it is not a number.
        nodes.tokens[tiles.masked] = 0.0
    nodes.build()
    return nodes


def _weight_nodes(tiles: Tiles, weight: Tensor) -> Tensor:
    """Return the weight column of the nodes that tiles read: (tiles, 1, 48)."""
    ones = torch.ones_like(weight)[:, :, None]
    return _filled(None, tiles, ones, weight).windows.index_select(0, tiles.groups.key).transpose(1, 2)


def _squares(tiles: Tiles) -> Tensor:
    """Return squared distances from tokens to nodes, in nodes: (tiles, 16, 48)."""
    node = torch.arange(WINDOW, device=tiles.place.device, dtype=tiles.place.dtype)
    return (tiles.place[:, :, None] - node).square_()


def _residual_gaussians(tiles: Tiles) -> Tensor:
    """Return (tiles, 16, 48)."""
    return exp_or_zero(_squares(tiles).mul_(tiles.slope[:, :, None]))


def _blocks(first: Tensor) -> Tensor:
    """Return the three blocks that each tile reads, (tiles * 3,)."""
    return (first[:, None] + torch.arange(3, device=first.device)).flatten()


pyramid_pool = opaque_kernel("pyramid", _forward, _backward)
