"""Causal pooling in time and memory n log n: a binary tree of past blocks, each summed up at 8 Chebyshev nodes.

The pyramid's blur mixes both sides of a token, so it cannot be causal. Here the leaves are 16 tokens, and a block of
length m stands for its tokens by Lagrange weights at 8 Chebyshev nodes ("anterpolation"), accurate for Gaussians of
sigma >= m / 1.5. With l the highest level where that holds for sigma_i, and -1 standing for the tokens themselves,

    sum_{j <= i} g_ij z_j  =  the 64 nodes before the block of level l that holds i (8 blocks, or 4 leaves of tokens)
                            + for each lower level, the block before the one that holds i, if both have the same parent
                            + the tokens of i's own leaf up to i

cuts off only what is 6 sigma away, and never looks ahead. All three are batches of small matrix products. Unlike the
pyramid's, the error of interpolation is relative to the largest weight in reach rather than to each weight.

The backward pass is the exact adjoint. Features are handled in slabs, whose tree is rebuilt in the backward pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contextpool.opaque import opaque_kernel
from contextpool.parts import Part, Regular, Windows
from contextpool.pyramid import CHUNK, slabs
from contextpool.stencils import gaussian, reciprocal
from contextpool.tiles import sort_into_tiles
from contextpool.tree import LEAF, NODES, WINDOW, Tree, chebyshev

ETA = 1.5
"""Length of the longest block that a token reads by its nodes, over sigma."""


def _forward(x: Tensor, weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Return the pooled tokens and the factor of each row, 1 / sum_j w_j g_ij (1 if not normalised)."""
    tree, parts = _plan(weight, sigma)
    scale = torch.ones_like(sigma)
    if normalized:
        total = _sum(tree, parts, _fill(tree, weight[:, :, None], weight))
        scale = reciprocal(total[:, :, 0])
    scale.masked_fill_(weight == 0.0, 0.0)
    y = torch.empty_like(x)
    for start, stop in slabs(x.shape[2]):
        buffer = _fill(tree, x[:, :, start:stop] * weight[:, :, None], weight)
        y[:, :, start:stop] = _sum(tree, parts, buffer) * scale[:, :, None]
    return y, scale


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    sigma: Tensor,
    scale: Tensor,
    normalized: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and sigma: those of `dense._backward`, part by part."""
    tree, parts = _plan(weight, sigma)
    grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
    for part in parts:
        part.product = torch.zeros_like(part.kernel)
    for start, stop in slabs(x.shape[2]):
        features = x[:, :, start:stop]
        buffer = _fill(tree, features * weight[:, :, None], weight)
        upstream = _pad(tree, grad[:, :, start:stop] * scale[:, :, None])
        for part in parts:
            part.product += part.rows(upstream) @ part.nodes(buffer).transpose(1, 2)
        grad_source = _spread(tree, parts, upstream)
        grad_weight += (grad_source * features).sum(dim=2)
        torch.mul(grad_source, weight[:, :, None], out=grad_x[:, :, start:stop])
    if normalized:
        dot = _pad(tree, torch.zeros_like(weight)[:, :, None])
        for part in parts:
            part.add_rows(dot, (part.kernel * part.product).sum(dim=2, keepdim=True))
        normaliser = -dot * _pad(tree, scale[:, :, None])
        buffer = _fill(tree, weight[:, :, None], weight)
        for part in parts:
            part.product += part.rows(normaliser) * part.nodes(buffer).transpose(1, 2)
        grad_weight += _spread(tree, parts, normaliser)[:, :, 0]
    moment = _pad(tree, torch.zeros_like(weight)[:, :, None])
    for part in parts:
        part.add_rows(moment, part.product.mul_(part.kernel).mul_(part.square).sum(dim=2, keepdim=True))
    return grad_x, grad_weight, moment.view(tree.batch, tree.padded)[:, : tree.length] / sigma**3


def _plan(weight: Tensor, sigma: Tensor) -> tuple[Tree, list[Part]]:
    """Choose a level for each token and make the parts."""
    batch, length = sigma.shape
    cap = max(-1, math.ceil(math.log2(length / (LEAF * WINDOW // NODES)))) if length > WINDOW else -1
    level = torch.log2(sigma * (ETA / LEAF)).floor().clamp(-1, cap).nan_to_num(-1.0).long()
    level = level.masked_fill(weight == 0.0, -1)
    tree = Tree.of(batch, length, int(level.max()))
    variance = _pad(tree, sigma[:, :, None].square(), fill=1.0)
    levels = _pad(tree, level[:, :, None], fill=-1)
    none = sigma.new_empty(0)

    place = torch.arange(LEAF, device=sigma.device, dtype=sigma.dtype)
    square = (place[:, None] - place).square()
    leaf = Regular(none, square, none, tree, -1)
    leaf.kernel = gaussian(square, leaf.rows(variance)).tril_()
    parts: list[Part] = [leaf]
    for lower in range(len(tree.blocks) - 1):
        size = LEAF << lower
        nodes = size * (chebyshev(sigma.dtype, sigma.device) / 2 - 0.5) - 0.5
        square = (torch.arange(size, device=sigma.device, dtype=sigma.dtype)[:, None] - nodes).square()
        sibling = Regular(none, square, none, tree, lower)
        sibling.kernel = gaussian(square, sibling.rows(variance)).masked_fill_(sibling.rows(levels) <= lower, 0.0)
        parts.append(sibling)
    return tree, parts + _windows(tree, level, weight, sigma)


def _windows(tree: Tree, level: Tensor, weight: Tensor, sigma: Tensor) -> list[Part]:
    """Make the parts that read 64 nodes before each token's block, some tiles at a time."""
    device, dtype = sigma.device, sigma.dtype
    size = LEAF << level.clamp_min(0)
    position = torch.arange(tree.length, device=device)
    sequence = torch.arange(tree.batch, device=device)[:, None]
    block = position // size
    rows_per_block = torch.where(level < 0, LEAF, NODES)
    # The window ends where the block's own nodes begin.
    first_row = (sequence * (tree.padded // size) + block) * rows_per_block - WINDOW
    first = (torch.tensor(tree.offset, device=device)[level + 1] + first_row) // NODES
    # A token in the first block of its sequence has nothing before it.
    groups = sort_into_tiles(first, (weight != 0.0) & (block > 0), dtype)

    raw = torch.arange(WINDOW, device=device, dtype=dtype) - WINDOW
    eighth = torch.arange(-WINDOW // NODES, 0, device=device, dtype=dtype)[:, None]
    unit = (eighth + (chebyshev(dtype, device) + 1) / 2).flatten()
    tables = torch.stack([raw, *((LEAF << i) * unit - 0.5 for i in range(len(tree.blocks)))])
    token = groups.token + groups.token // tree.length * (tree.padded - tree.length)
    offset = (position - block * size).expand_as(level).flatten()
    start = (block * size).expand_as(level).flatten()
    parts: list[Part] = []
    for begin in range(0, groups.key.shape[0], CHUNK):
        chunk = slice(begin, begin + CHUNK)
        tokens = groups.token[chunk]
        nodes = tables[level.flatten()[tokens[:, 0]] + 1][:, None, :]
        square = (offset[tokens].to(dtype)[:, :, None] - nodes).square_()
        kernel = gaussian(square, sigma.flatten()[tokens][:, :, None].square())
        before = nodes < -0.5 - start[tokens[:, :1]][:, :, None]
        kernel.masked_fill_(before, 0.0).mul_(groups.filled[chunk][:, :, None])
        parts.append(Windows(kernel, square, sigma.new_empty(0), groups.key[chunk], token[chunk].flatten()))
    return parts


def _fill(tree: Tree, source: Tensor, weight: Tensor) -> Tensor:
    """Return the tree of (batch, length, columns), taken as zero where the weight is."""
    buffer = weight.new_zeros(tree.total, source.shape[2])
    tokens = tree.tokens(buffer)[:, : tree.length]
    tokens.copy_(source)
    tokens[weight == 0.0] = 0.0
    tree.build(buffer)
    return buffer


def _sum(tree: Tree, parts: list[Part], buffer: Tensor) -> Tensor:
    """Apply all parts to a tree: (batch, length, columns)."""
    rows = buffer.new_zeros(tree.batch * tree.padded, buffer.shape[1])
    for part in parts:
        part.add_rows(rows, part.kernel @ part.nodes(buffer))
    return rows.view(tree.batch, tree.padded, -1)[:, : tree.length]


def _spread(tree: Tree, parts: list[Part], rows: Tensor) -> Tensor:
    """Apply the adjoint of all parts and of the tree to padded rows: (batch, length, columns)."""
    buffer = rows.new_zeros(tree.total, rows.shape[1])
    for part in parts:
        part.add_nodes(buffer, part.kernel.transpose(1, 2) @ part.rows(rows))
    tree.collapse(buffer)
    return tree.tokens(buffer)[:, : tree.length]


def _pad(tree: Tree, values: Tensor, *, fill: float = 0.0) -> Tensor:
    """Copy (batch, length, columns) to (batch * padded, columns)."""
    rows = values.new_full((tree.batch, tree.padded, values.shape[2]), fill)
    rows[:, : tree.length] = values
    return rows.flatten(0, 1)


tree_causal_pool = opaque_kernel("tree_causal", _forward, _backward)
