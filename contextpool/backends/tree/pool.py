# SPDX-License-Identifier: Apache-2.0
"""Pools with the tree: weighs nodes for tokens, sums them, and falls back to the formula where a row asks for it.

Token i of level l, the highest level whose blocks are at most ETA sigma_i long, sums

    sum_{j <= i} g_ij z_j  =  the 64 nodes before the block of level l that holds i (8 blocks, or 4 leaves of tokens)
                            + for each lower level, the block before the one that holds i, if both have the same parent
                            + the tokens of i's own leaf up to i

Weights may be up to exp(1000) apart: a block is stored in units of its own total weight, and a row is summed relative
to the largest term that it reads, as in `backends.causal_dense`, whose L_i is kept. Unlike the pyramid's, the error
of interpolation is relative to the largest term in reach rather than to each. A row where that is more than its total
can bear, or where something heavy stands beyond 6 sigma (`tree.truncation`), is pooled by the formula instead.
Weights have to change by many powers of ten within a few sigma for that.

Features are handled in slabs, whose tree is rebuilt in the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contextpool.backends.causal_dense import (
    clean,
    differentiate_rows,
    exp_shifted_,
    pool_rows,
    row_factor,
    self_log_weight,
)
from contextpool.backends.custom_op import Gradients, Saved, register_custom_op
from contextpool.backends.tiling import readable, slabs, sort_into_tiles, tiles_per_chunk
from contextpool.backends.tree.interactions import FarField, Interaction, NearField, Sibling
from contextpool.backends.tree.nodes import LEAF, NODES, WINDOW, Tree, chebyshev
from contextpool.backends.tree.truncation import log_truncation_bound

ETA = 1.5
"""Length of the longest block that a token reads by its nodes, over sigma."""
TOLERANCE = 1e-5
"""Most that the estimated error of interpolation may be, over the row's total."""
ROUNDING = 2e-7
"""Relative error of a node, over which its polynomials, of either sign, lose digits."""
LARGEST_TRUNCATION = 1e-6
"""Most that may be cut off, over the row's total."""
ROWS = 64
"""Most rows of a sequence that are pooled by the formula on a GPU, whose host must know the number beforehand.

Any others that need it become NaN, since what the tree gives may be far off.
"""
ROW_CHUNK = 2**18
"""Elements of the (queries, keys) tensor of rows that are pooled by the formula together."""


@dataclass
class Plan:
    """How every token is summed."""

    tree: Tree
    merges: list[Tensor]
    """Per level, (blocks, 8, 16): from `Tree.merges`."""
    interactions: list[Interaction]
    """The near field, the siblings of each lower level, then the far field in chunks of tiles."""
    truncation: Tensor
    """Logarithm of a bound of what is cut off, relative to the token's own weight, (batch, length)."""
    error: Tensor
    """Logarithm of the largest error that a block's interpolation makes, likewise."""


def _forward(x: Tensor, log_weight: Tensor, sigma: Tensor, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """Return the pooled tokens and L_i: infinite for masked tokens, and -1 - L_i for those pooled by the formula."""
    bounds = slabs(x.shape[2], x.device)
    plan = _plan(log_weight, sigma, bounds[0][1])
    tree, masked = plan.tree, log_weight == -torch.inf
    # The largest exponent of each row over all that it reads, (batch * padded, 1). Every real token reads itself, whose
    # exponent is 0, so it is never less.
    row_max = _pad(tree, torch.zeros_like(sigma)[:, :, None])
    for part in plan.interactions:
        part.maximum_rows_(row_max, part.kernel.amax(dim=2, keepdim=True))
    for part in plan.interactions:
        part.kernel = exp_shifted_(part.kernel, part.rows(row_max))
    source = clean(x, log_weight)
    # Weights are in the units of the tree, so the total is the sum over a tree of ones; (batch, length).
    total = _sum(plan, _fill(plan, (~masked).to(sigma.dtype)[:, :, None]))[:, :, 0]
    log_total = _unpad(tree, row_max) + total.log()
    # Rows for the formula: the terms cancel, interpolation errs too much, or too much is cut off.
    formula = (total < ROUNDING / TOLERANCE) | (plan.error > log_total + math.log(TOLERANCE))
    formula = (formula | (plan.truncation > log_total + math.log(LARGEST_TRUNCATION))) & ~masked
    if not readable(x.device):
        excess = (plan.error - math.log(TOLERANCE)).maximum(plan.truncation - math.log(LARGEST_TRUNCATION)) - log_total
        needed, formula = formula, _worst(formula, excess)
        total = total.masked_fill(needed & ~formula, torch.nan)
    log_total = log_total.masked_fill(masked, torch.inf)
    scale = row_factor(log_weight, log_total, normalized=normalized) / total.masked_fill(masked, 1.0)
    y = torch.empty_like(x)
    for start, stop in bounds:
        y[:, :, start:stop] = _sum(plan, _fill(plan, source[:, :, start:stop])) * scale[:, :, None]
    for some, query, reach in _rows(formula):
        pooled, totals = pool_rows(source[some], log_weight[some], sigma[some], query, reach)
        factor = row_factor(log_weight[some].gather(1, query), totals, normalized=normalized)
        chosen = formula[some].gather(1, query)
        log_total[some].scatter_(1, query, totals.where(chosen, log_total[some].gather(1, query)))
        index = query[:, :, None].expand(-1, -1, x.shape[2])
        pooled = (pooled * factor[:, :, None]).to(x.dtype)
        y[some].scatter_(1, index, pooled.where(chosen[:, :, None], y[some].gather(1, index)))
    # L_i is 0 or more, so that a negative number can mark the rows of the formula for the backward pass.
    return y, torch.where(formula, -1.0 - log_total, log_total)


def _backward(grad: Tensor, saved: Saved, *, normalized: bool) -> Gradients:
    """Return the gradients of x, log_weight and sigma: those of `causal_dense`, interaction by interaction.

    What is there a sum over keys j is here one over nodes k, and the gradients of nodes are handed down the tree.
    """
    x, log_weight, sigma, log_total = saved
    bounds = slabs(x.shape[2], x.device)
    plan = _plan(log_weight, sigma, bounds[0][1])
    tree, formula = plan.tree, log_total < -0.5
    log_total = torch.where(formula, -1.0 - log_total, log_total)
    # A shift of infinity makes a row of the kernel zero: masked rows, those of the formula, and padding.
    shift = _pad(tree, log_total.masked_fill(formula, torch.inf)[:, :, None], fill=torch.inf)
    for part in plan.interactions:
        part.kernel = exp_shifted_(part.kernel, part.rows(shift))  # p_ik
        part.product = torch.zeros_like(part.kernel)
    source = clean(x, log_weight)
    upstream = grad * row_factor(log_weight, log_total, normalized=normalized)[:, :, None]  # u, (batch, length, dim)
    # `spread` is sum_i p_ij delta_i, (batch, length); `moment` is sigma_i^3 times the gradient of sigma_i.
    grad_x, spread, moment = torch.empty_like(source), torch.zeros_like(sigma), torch.zeros_like(sigma)
    for start, stop in bounds:
        buffer = _fill(plan, source[:, :, start:stop])
        rows = _pad(tree, upstream[:, :, start:stop])
        for part in plan.interactions:
            # u_i . Z_k, (groups, tokens, nodes), over the features of this slab.
            part.product += part.rows(rows) @ part.nodes(buffer).transpose(1, 2)
        grad_x[:, :, start:stop] = _spread(plan, rows)
    if normalized:
        delta = _pad(tree, torch.zeros_like(sigma)[:, :, None])  # (batch * padded, 1)
        for part in plan.interactions:
            part.add_rows_(delta, (part.kernel * part.product).sum(dim=2, keepdim=True))
        # A tree of ones holds the weight of each node, in its unit: delta_i is taken off once for each token in it.
        ones = _fill(plan, (log_weight != -torch.inf).to(sigma.dtype)[:, :, None])
        for part in plan.interactions:
            part.product -= part.rows(delta) * part.nodes(ones).transpose(1, 2)
        spread += _spread(plan, delta)[:, :, 0]
    sums = _pad(tree, torch.zeros_like(sigma)[:, :, None])
    for part in plan.interactions:
        part.add_rows_(sums, part.product.mul_(part.kernel).mul_(part.square).sum(dim=2, keepdim=True))
    moment += _unpad(tree, sums)
    for some, query, reach in _rows(formula):
        chosen = formula[some].gather(1, query)
        moments = differentiate_rows(
            upstream[some].gather(1, query[:, :, None].expand(-1, -1, x.shape[2])), source[some], log_weight[some],
            sigma[some], log_total[some].gather(1, query).masked_fill_(~chosen, torch.inf), query, reach,
            (grad_x[some], spread[some]), normalized=normalized,
        )  # fmt: skip
        moment[some].scatter_(1, query, moments.where(chosen, moment[some].gather(1, query)))
    return grad_x.to(x.dtype), (grad_x * source).sum(dim=2) - spread, moment / sigma**3


def _plan(log_weight: Tensor, sigma: Tensor, columns: int) -> Plan:
    """Choose a level for each token and make the interactions, for sums of so many features at a time."""
    batch, length = sigma.shape
    device, dtype = sigma.device, sigma.dtype
    # A window of 8 blocks of the level `cap` spans the sequence; wider Gaussians need no longer blocks.
    cap = max(-1, math.ceil(math.log2(length / (LEAF * WINDOW // NODES)))) if length > WINDOW else -1
    # (batch, length). A width that is not a number must not give an index out of range.
    level = torch.log2(sigma * (ETA / LEAF)).floor().clamp(-1, cap).nan_to_num(-1.0).long()
    level = level.masked_fill(log_weight == -torch.inf, -1)
    tree = Tree.of(batch, length, int(level.max()) if readable(device) else cap)
    scale = tree.scales(log_weight)  # (rows of the tree, 1)
    self_weight = self_log_weight(log_weight)
    # As padded rows, (batch * padded, 1).
    slopes, self_weights = _pad(tree, _slope(sigma)[:, :, None]), _pad(tree, self_weight[:, :, None])
    levels = _pad(tree, level[:, :, None], fill=-1)

    place = torch.arange(LEAF, device=device, dtype=dtype)
    leaf = NearField((place[:, None] - place).square(), tree)  # (16, 16), the same for every leaf
    future = place[:, None] < place
    exponents = _exponents(leaf, scale, leaf.rows(self_weights), leaf.rows(slopes))
    leaf.kernel = exponents.masked_fill_(future, -torch.inf)
    interactions: list[Interaction] = [leaf]
    for lower in range(len(tree.blocks) - 1):
        longer = LEAF << lower
        # The nodes of the sibling, counted from the first token of the block itself: between -longer and 0.
        nodes = longer * (chebyshev(dtype, device) / 2 - 0.5) - 0.5
        square = (torch.arange(longer, device=device, dtype=dtype)[:, None] - nodes).square()  # (tokens, 8)
        sibling = Sibling(square, tree, lower)
        exponents = _exponents(sibling, scale, sibling.rows(self_weights), sibling.rows(slopes))
        # Tokens of this level or lower are too narrow for it, and read it otherwise.
        sibling.kernel = exponents.masked_fill_(sibling.rows(levels) <= lower, -torch.inf)
        interactions.append(sibling)

    size = LEAF << level.clamp_min(0)  # tokens in the block of the token's own level, (batch, length)
    block = torch.arange(length, device=device) // size
    window = torch.where(level < 0, WINDOW, WINDOW // NODES * size)  # tokens that 64 nodes stand for
    truncation = log_truncation_bound(log_weight, sigma, block * size - window) - self_weight
    interactions += _far_field(tree, level, block, scale, self_weight, sigma, columns)
    error = _pad(tree, torch.full_like(sigma, -torch.inf)[:, :, None])
    for part in interactions[1:]:  # the near field interpolates nothing
        part.maximum_rows_(error, _log_error(part.kernel))
    error = _unpad(tree, error).masked_fill(level < 0, -torch.inf)  # nor do tokens that read only tokens
    return Plan(tree, tree.merges(scale), interactions, truncation, error)


def _far_field(
    tree: Tree, level: Tensor, block: Tensor, scale: Tensor, self_weight: Tensor, sigma: Tensor, columns: int
) -> list[Interaction]:
    """Make the interactions that read 64 nodes before each token's block, some tiles at a time.

    Args:
        tree: The tree.
        level: (batch, length): each token's level, -1 for one that reads tokens only.
        block: (batch, length): the block of that level, or the leaf, that holds the token, counted in its sequence.
        scale: (rows of the tree, 1): the units of the nodes.
        self_weight: (batch, length): the tokens' own log-weights.
        sigma: (batch, length).
        columns: Features that are summed at a time.
    """
    device, dtype = sigma.device, sigma.dtype
    size = LEAF << level.clamp_min(0)
    position = torch.arange(tree.length, device=device)
    sequence = torch.arange(tree.batch, device=device)[:, None]
    # The block's number in its level, and the blocks of all levels one after the other: leaves as tokens come first.
    leaves = tree.batch * tree.padded // LEAF
    number = sequence * (tree.padded // size) + block
    key = number + torch.where(level < 0, 0, 3 * leaves - (2 * leaves >> level.clamp_min(0)))
    # The window ends where the block's own nodes begin. Counted in rows of the buffer, then in eights.
    first = (tree.first_row(level) + number * torch.where(level < 0, LEAF, NODES) - WINDOW) // NODES
    # A token in the first block of its sequence has nothing before it, and a masked one, of weight 0, sums nothing.
    real = tree.tokens(scale)[:, : tree.length, 0] != -torch.inf
    tiled = sort_into_tiles(key, real & (block > 0), 3 * leaves)

    # Where the 64 nodes stand, counted from the first token of the block: (1 + levels, 64), first for tokens as nodes.
    raw = torch.arange(WINDOW, device=device, dtype=dtype) - WINDOW
    eighth = torch.arange(-WINDOW // NODES, 0, device=device, dtype=dtype)[:, None]
    unit = (eighth + (chebyshev(dtype, device) + 1) / 2).flatten()  # 8 blocks of length 1, from -8 to 0
    tables = torch.stack([raw, *((LEAF << i) * unit - 0.5 for i in range(len(tree.blocks)))])
    # Rows of padded tokens, and per token: its place in the block, the block's place in the sequence, its slope.
    token = tiled.token + tiled.token // tree.length * (tree.padded - tree.length)
    offset = (position - block * size).flatten()
    start = (block * size).flatten()
    slope = _slope(sigma).flatten()
    interactions: list[Interaction] = []
    tiles = tiles_per_chunk(device, columns)
    for begin in range(0, tiled.key.shape[0], tiles):
        chunk = slice(begin, begin + tiles)
        tokens = tiled.token[chunk]  # (tiles, 16)
        # All tokens of a tile have one level and one block, so the first speaks for them.
        speaker = tokens[:, 0]
        nodes = tables[level.flatten()[speaker] + 1][:, None, :]  # (tiles, 1, 64)
        square = (offset[tokens].to(dtype)[:, :, None] - nodes).square_()  # (tiles, 16, 64)
        far = FarField(square, first.flatten()[speaker], token[chunk].flatten())
        exponents = _exponents(far, scale, self_weight.flatten()[tokens][:, :, None], slope[tokens][:, :, None])
        # A window may begin before its sequence; what stands there belongs to another one, or is empty.
        before = nodes < -0.5 - start[speaker][:, None, None]
        far.kernel = exponents.masked_fill_(before | ~tiled.filled[chunk][:, :, None], -torch.inf)
        interactions.append(far)
    return interactions


def _slope(sigma: Tensor) -> Tensor:
    """Return what multiplies (i - j)^2 in the exponent, without its sign."""
    return 0.5 / sigma.square()


def _exponents(part: Interaction, scale: Tensor, self_weight: Tensor, slope: Tensor) -> Tensor:
    """Return the logarithm of what nodes weigh for tokens over their own weight: (groups, tokens, nodes)."""
    return (part.nodes(scale).transpose(1, 2) - self_weight).addcmul_(part.square, slope, value=-1.0)


def _log_error(exponent: Tensor) -> Tensor:
    """Estimate the logarithm of the largest error among blocks of 8 nodes, (groups, tokens, 1).

    Over a block, a Gaussian is nearly its middle value times exp(a u), -1 < u < 1. Interpolation at 8 Chebyshev nodes
    errs there by at most a^8 / (2^7 8!) times the middle value, to first order.
    """
    blocks = exponent.unflatten(2, (-1, NODES))  # (groups, tokens, blocks, 8)
    # The exponent in the middle of the block, and a: half of its rise from the first node to the last.
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
    """Apply all interactions to a tree: (batch, length, columns)."""
    rows = buffer.new_zeros(plan.tree.batch * plan.tree.padded, buffer.shape[1])
    for part in plan.interactions:
        part.add_rows_(rows, part.kernel @ part.nodes(buffer))
    return rows.view(plan.tree.batch, plan.tree.padded, -1)[:, : plan.tree.length]


def _spread(plan: Plan, rows: Tensor) -> Tensor:
    """Apply the transpose of all interactions and of the tree to padded rows: (batch, length, columns)."""
    buffer = rows.new_zeros(plan.tree.total, rows.shape[1])
    for part in plan.interactions:
        part.add_nodes_(buffer, part.kernel.transpose(1, 2) @ part.rows(rows))
    plan.tree.collapse(buffer, plan.merges)
    return plan.tree.tokens(buffer)[:, : plan.tree.length]


def _worst(formula: Tensor, excess: Tensor) -> Tensor:
    """Keep at most `ROWS` positions (batch, length) of each sequence, those of the largest excess."""
    worst = excess.nan_to_num(torch.inf).masked_fill(~formula, -torch.inf).topk(min(ROWS, formula.shape[1])).indices
    return torch.zeros_like(formula).scatter_(1, worst, formula.gather(1, worst))


def _rows(formula: Tensor) -> list[tuple[slice, Tensor, int]]:
    """List what is to be pooled by the formula: sequences, positions (sequences, queries), and more than any of them.

    On a GPU, `ROWS` positions of each sequence, those of the formula among them.
    """
    batch, length = formula.shape
    if not readable(formula.device):
        return [(slice(0, batch), formula.float().topk(min(ROWS, length)).indices, length)]
    rows = max(16, ROW_CHUNK // length)
    return [
        (slice(i, i + 1), query[None], int(query[-1]) + 1)
        for i in formula.any(dim=1).nonzero()[:, 0].tolist()
        for query in formula[i].nonzero()[:, 0].split(rows)
    ]


def _pad(tree: Tree, values: Tensor, *, fill: float = 0.0) -> Tensor:
    """Copy (batch, length, columns) to (batch * padded, columns)."""
    rows = values.new_full((tree.batch, tree.padded, values.shape[2]), fill)
    rows[:, : tree.length] = values
    return rows.flatten(0, 1)


def _unpad(tree: Tree, rows: Tensor) -> Tensor:
    """View (batch * padded, 1) as (batch, length)."""
    return rows.view(tree.batch, tree.padded)[:, : tree.length]


tree_causal_pool = register_custom_op("tree_causal", _forward, _backward)
