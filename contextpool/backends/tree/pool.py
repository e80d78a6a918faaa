"""Causal pooling in time and memory n log n: a binary tree of past blocks, each summed up at 8 Chebyshev nodes.

The pyramid's blur mixes both sides of a token, so it cannot be causal. Here the leaves are 16 tokens, and a block of
length m stands for its tokens by Lagrange weights at 8 Chebyshev nodes ("anterpolation"), accurate for Gaussians of
sigma >= m / 1.5. With l the highest level where that holds for sigma_i, and -1 standing for the tokens themselves,

    sum_{j <= i} g_ij z_j  =  the 64 nodes before the block of level l that holds i (8 blocks, or 4 leaves of tokens)
                            + for each lower level, the block before the one that holds i, if both have the same parent
                            + the tokens of i's own leaf up to i

cuts off only what is 6 sigma away, and never looks ahead. All three are batches of small matrix products.

Weights may be up to exp(1000) apart: a block is stored in units of its own total weight, and a row is summed relative
to the largest term that it reads, as in `backends.causal_dense`, whose L_i is kept. Unlike the pyramid's, the error
of interpolation is relative to the largest term in reach rather than to each. A row where that is more than its total
can bear, or where something heavy stands beyond 6 sigma (`tree.truncation`), is pooled by the formula instead.
Weights have to change by many powers of ten within a few sigma for that.

The backward pass is the exact adjoint. Features are handled in slabs, whose tree is rebuilt in the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.backends.causal_dense import clean, differentiate_rows, own_weight, pool_rows, row_factor, weigh
from contextpool.backends.custom_op import opaque_kernel
from contextpool.backends.pyramid.pool import chunk_size, slabs
from contextpool.backends.tiling import sort_into_tiles
from contextpool.backends.tree.interactions import Part, Regular, Windows
from contextpool.backends.tree.nodes import LEAF, NODES, WINDOW, Tree, chebyshev
from contextpool.backends.tree.truncation import log_tail

ETA = 1.5
"""Length of the longest block that a token reads by its nodes, over sigma."""
TOLERANCE = 1e-5
"""Most that the estimated error of interpolation may be, over the row's total."""
ROUNDING = 2e-7
"""Relative error of a node, over which its polynomials, of either sign, lose digits."""
LARGEST_TAIL = 1e-6
"""Most that may be cut off, over the row's total."""
ROW_CHUNK = 2**18
"""Elements of the (queries, keys) tensor of rows that are pooled by the formula together."""


@dataclass
class Plan:
    """How every token is summed."""

    tree: Tree
    merges: list[Tensor]
    parts: list[Part]
    tail: Tensor
    """Logarithm of a bound of what is cut off, relative to the token's own weight, (batch, length)."""
    error: Tensor
    """Logarithm of the largest error that a block's interpolation makes, likewise."""


def _forward(x: Tensor, log_weight: Tensor, sigma: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:  # noqa: FBT001
    """Return the pooled tokens and L_i: infinite for masked tokens, and -1 - L_i for those pooled by the formula."""
    plan = _plan(log_weight, sigma)
    tree, masked = plan.tree, log_weight == -torch.inf
    peak = _pad(tree, torch.zeros_like(sigma)[:, :, None])
    for part in plan.parts:
        part.raise_rows(peak, part.kernel.amax(dim=2, keepdim=True))
    for part in plan.parts:
        part.kernel = weigh(part.kernel, part.rows(peak))
    source = clean(x, log_weight)
    total = _sum(plan, _fill(plan, (~masked).to(sigma.dtype)[:, :, None]))[:, :, 0]
    log_total = _unpad(tree, peak) + total.log()
    formula = (total < ROUNDING / TOLERANCE) | (plan.error > log_total + math.log(TOLERANCE))
    formula = (formula | (plan.tail > log_total + math.log(LARGEST_TAIL))) & ~masked
    log_total = log_total.masked_fill(masked, torch.inf)
    scale = row_factor(log_weight, log_total, normalized=normalized) / total.masked_fill(masked, 1.0)
    y = torch.empty_like(x)
    for start, stop in slabs(x.shape[2]):
        y[:, :, start:stop] = _sum(plan, _fill(plan, source[:, :, start:stop])) * scale[:, :, None]
    for batch, query in _rows(formula):
        one = slice(batch, batch + 1)
        pooled, log_total[one, query] = pool_rows(source[one], log_weight[one], sigma[one], query)
        factor = row_factor(log_weight[one, query], log_total[one, query], normalized=normalized)
        y[one, query] = (pooled * factor[:, :, None]).to(x.dtype)
    return y, torch.where(formula, -1.0 - log_total, log_total)


def _backward(
    grad: Tensor,
    x: Tensor,
    log_weight: Tensor,
    sigma: Tensor,
    log_total: Tensor,
    normalized: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, log_weight and sigma: those of `causal_dense`, part by part."""
    plan = _plan(log_weight, sigma)
    tree, formula = plan.tree, log_total < -0.5
    log_total = torch.where(formula, -1.0 - log_total, log_total)
    base = _pad(tree, log_total.masked_fill(formula, torch.inf)[:, :, None], fill=torch.inf)
    for part in plan.parts:
        part.kernel = weigh(part.kernel, part.rows(base))
        part.product = torch.zeros_like(part.kernel)
    source = clean(x, log_weight)
    upstream = grad * row_factor(log_weight, log_total, normalized=normalized)[:, :, None]
    grad_x, spread, moment = torch.empty_like(source), torch.zeros_like(sigma), torch.zeros_like(sigma)
    for start, stop in slabs(x.shape[2]):
        buffer = _fill(plan, source[:, :, start:stop])
        rows = _pad(tree, upstream[:, :, start:stop])
        for part in plan.parts:
            part.product += part.rows(rows) @ part.nodes(buffer).transpose(1, 2)
        grad_x[:, :, start:stop] = _spread(plan, rows)
    if normalized:
        delta = _pad(tree, torch.zeros_like(sigma)[:, :, None])
        for part in plan.parts:
            part.add_rows(delta, (part.kernel * part.product).sum(dim=2, keepdim=True))
        ones = _fill(plan, (log_weight != -torch.inf).to(sigma.dtype)[:, :, None])
        for part in plan.parts:
            part.product -= part.rows(delta) * part.nodes(ones).transpose(1, 2)
        spread += _spread(plan, delta)[:, :, 0]
    sums = _pad(tree, torch.zeros_like(sigma)[:, :, None])
    for part in plan.parts:
        part.add_rows(sums, part.product.mul_(part.kernel).mul_(part.square).sum(dim=2, keepdim=True))
    moment += _unpad(tree, sums)
    for batch, query in _rows(formula):
        one = slice(batch, batch + 1)
        moment[one, query] = differentiate_rows(
            upstream[one, query], source[one], log_weight[one], sigma[one], log_total[one, query], query,
            (grad_x[one], spread[one]), normalized=normalized,
        )  # fmt: skip
    return grad_x.to(x.dtype), (grad_x * source).sum(dim=2) - spread, moment / sigma**3


def _plan(log_weight: Tensor, sigma: Tensor) -> Plan:
    """Choose a level for each token and make the parts."""
    batch, length = sigma.shape
    device, dtype = sigma.device, sigma.dtype
    cap = max(-1, math.ceil(math.log2(length / (LEAF * WINDOW // NODES)))) if length > WINDOW else -1
    level = torch.log2(sigma * (ETA / LEAF)).floor().clamp(-1, cap).nan_to_num(-1.0).long()
    level = level.masked_fill(log_weight == -torch.inf, -1)
    tree = Tree.of(batch, length, int(level.max()))
    scale = tree.scales(log_weight)
    own = own_weight(log_weight)
    slopes, owns = _pad(tree, _slope(sigma)[:, :, None]), _pad(tree, own[:, :, None])
    levels = _pad(tree, level[:, :, None], fill=-1)
    none = sigma.new_empty(0)

    place = torch.arange(LEAF, device=device, dtype=dtype)
    leaf = Regular(none, (place[:, None] - place).square(), none, tree, -1)
    parts: list[Part] = [leaf]
    ahead = place[:, None] < place
    leaf.kernel = _exponents(leaf, scale, leaf.rows(owns), leaf.rows(slopes)).masked_fill_(ahead, -torch.inf)
    for lower in range(len(tree.blocks) - 1):
        longer = LEAF << lower
        nodes = longer * (chebyshev(dtype, device) / 2 - 0.5) - 0.5
        square = (torch.arange(longer, device=device, dtype=dtype)[:, None] - nodes).square()
        sibling = Regular(none, square, none, tree, lower)
        kernel = _exponents(sibling, scale, sibling.rows(owns), sibling.rows(slopes))
        sibling.kernel = kernel.masked_fill_(sibling.rows(levels) <= lower, -torch.inf)
        parts.append(sibling)

    size = LEAF << level.clamp_min(0)
    block = torch.arange(length, device=device) // size
    window = torch.where(level < 0, WINDOW, WINDOW // NODES * size)
    tail = log_tail(log_weight, sigma, block * size - window) - own
    parts += _windows(tree, level, block, scale, own, sigma)
    error = _pad(tree, torch.full_like(sigma, -torch.inf)[:, :, None])
    for part in parts[1:]:
        part.raise_rows(error, _log_error(part.kernel))
    error = _unpad(tree, error).masked_fill(level < 0, -torch.inf)
    return Plan(tree, tree.merges(scale), parts, tail, error)


def _windows(tree: Tree, level: Tensor, block: Tensor, scale: Tensor, own: Tensor, sigma: Tensor) -> list[Part]:
    """Make the parts that read 64 nodes before each token's block, some tiles at a time."""
    device, dtype = sigma.device, sigma.dtype
    size = LEAF << level.clamp_min(0)
    position = torch.arange(tree.length, device=device)
    sequence = torch.arange(tree.batch, device=device)[:, None]
    rows_per_block = torch.where(level < 0, LEAF, NODES)
    # The window ends where the block's own nodes begin.
    first_row = (sequence * (tree.padded // size) + block) * rows_per_block - WINDOW
    first = (torch.tensor(tree.offset, device=device)[level + 1] + first_row) // NODES
    # A token in the first block of its sequence has nothing before it, and a masked one, of weight 0, sums nothing.
    real = tree.tokens(scale)[:, : tree.length, 0] != -torch.inf
    groups = sort_into_tiles(first, real & (block > 0), dtype)

    raw = torch.arange(WINDOW, device=device, dtype=dtype) - WINDOW
    eighth = torch.arange(-WINDOW // NODES, 0, device=device, dtype=dtype)[:, None]
    unit = (eighth + (chebyshev(dtype, device) + 1) / 2).flatten()
    tables = torch.stack([raw, *((LEAF << i) * unit - 0.5 for i in range(len(tree.blocks)))])
    token = groups.token + groups.token // tree.length * (tree.padded - tree.length)
    offset = (position - block * size).flatten()
    start = (block * size).flatten()
    slope = _slope(sigma).flatten()
    parts: list[Part] = []
    tiles = chunk_size(device)
    for begin in range(0, groups.key.shape[0], tiles):
        chunk = slice(begin, begin + tiles)
        tokens = groups.token[chunk]
        nodes = tables[level.flatten()[tokens[:, 0]] + 1][:, None, :]
        square = (offset[tokens].to(dtype)[:, :, None] - nodes).square_()
        none = sigma.new_empty(0)
        part = Windows(none, square, none, groups.key[chunk], token[chunk].flatten())
        part.kernel = _exponents(part, scale, own.flatten()[tokens][:, :, None], slope[tokens][:, :, None])
        before = nodes < -0.5 - start[tokens[:, :1]][:, :, None]
        part.kernel.masked_fill_(before | (groups.filled[chunk][:, :, None] == 0.0), -torch.inf)
        parts.append(part)
    return parts


def _slope(sigma: Tensor) -> Tensor:
    return 0.5 / sigma.square()


def _exponents(part: Part, scale: Tensor, own: Tensor, slope: Tensor) -> Tensor:
    """Return the logarithm of what nodes weigh for tokens over their own weight: (groups, tokens, nodes)."""
    return (part.nodes(scale).transpose(1, 2) - own).addcmul_(part.square, slope, value=-1.0)


def _log_error(exponent: Tensor) -> Tensor:
    """Estimate the logarithm of the largest error among blocks of 8 nodes, (groups, tokens, 1).

    Over a block, a Gaussian is nearly its middle value times exp(a u), -1 < u < 1. Interpolation at 8 Chebyshev nodes
    errs there by at most a^8 / (2^7 8!) times the middle value, to first order.
    """
    blocks = exponent.unflatten(2, (-1, NODES))
    middle = 0.5 * (blocks[..., NODES // 2 - 1] + blocks[..., NODES // 2])
    error = middle + 8.0 * (0.5 * (blocks[..., -1] - blocks[..., 0])).abs().log()
    error = error.masked_fill(middle == -torch.inf, -torch.inf) - math.log(2**7 * math.factorial(8))
    return error.amax(dim=2, keepdim=True)


def _fill(plan: Plan, source: Tensor) -> Tensor:
    """Return the tree of (batch, length, columns), zero at masked tokens."""
    tree = plan.tree
    buffer = source.new_zeros(tree.total, source.shape[2])
    tree.tokens(buffer)[:, : tree.length].copy_(source)
    tree.build(buffer, plan.merges)
    return buffer


def _sum(plan: Plan, buffer: Tensor) -> Tensor:
    """Apply all parts to a tree: (batch, length, columns)."""
    rows = buffer.new_zeros(plan.tree.batch * plan.tree.padded, buffer.shape[1])
    for part in plan.parts:
        part.add_rows(rows, part.kernel @ part.nodes(buffer))
    return rows.view(plan.tree.batch, plan.tree.padded, -1)[:, : plan.tree.length]


def _spread(plan: Plan, rows: Tensor) -> Tensor:
    """Apply the adjoint of all parts and of the tree to padded rows: (batch, length, columns)."""
    buffer = rows.new_zeros(plan.tree.total, rows.shape[1])
    for part in plan.parts:
        part.add_nodes(buffer, part.kernel.transpose(1, 2) @ part.rows(rows))
    plan.tree.collapse(buffer, plan.merges)
    return plan.tree.tokens(buffer)[:, : plan.tree.length]


def _rows(formula: Tensor) -> list[tuple[int, Tensor]]:
    """List sequences and ascending positions to be pooled by the formula, some at a time."""
    rows = max(16, ROW_CHUNK // formula.shape[1])
    return [
        (batch, query)
        for batch in formula.any(dim=1).nonzero()[:, 0].tolist()
        for query in formula[batch].nonzero()[:, 0].split(rows)
    ]


def _pad(tree: Tree, values: Tensor, *, fill: float = 0.0) -> Tensor:
    """Copy (batch, length, columns) to (batch * padded, columns)."""
    rows = values.new_full((tree.batch, tree.padded, values.shape[2]), fill)
    rows[:, : tree.length] = values
    return rows.flatten(0, 1)


def _unpad(tree: Tree, rows: Tensor) -> Tensor:
    """View (batch * padded, 1) as (batch, length)."""
    return rows.view(tree.batch, tree.padded)[:, : tree.length]


tree_causal_pool = opaque_kernel("tree_causal", _forward, _backward)
