"""How much of a causal sum lies before a given position: a bound for every token, by ranges of distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RINGS = 10
"""Ranges of distance from the cut on, each this factor longer than the one before; then everything that is left."""
FACTOR = math.sqrt(2.0)


def log_tail(log_weight: Tensor, sigma: Tensor, cut: Tensor) -> Tensor:
    """Bound log sum_{j < cut_i} w_j g_ij from above; -inf where there is no such token.

    The distances d ... d FACTOR hold at most max w exp(-d^2 / (2 sigma^2)) (sigma^2 / d + 1), and so on outwards. The
    largest weight of each range comes from a table of the largest weights of 1, 2, 4, 8, ... tokens.

    Args:
        log_weight: (batch, length).
        sigma: (batch, length), in tokens.
        cut: (batch, length), integer, at most the token's own position; may be negative.

    Returns:
        (batch, length), the largest of the ranges' bounds plus log(RINGS + 1).
    """
    length = log_weight.shape[1]
    table = [log_weight]
    while 1 << len(table) <= length:
        half = 1 << (len(table) - 1)
        table.append(torch.maximum(table[-1][:, half:], table[-1][:, :-half]))
    # Entry k, j: the largest of the 2^k tokens from j on; -inf where they do not fit.
    largest = torch.stack(
        [torch.nn.functional.pad(row, (0, length - row.shape[1]), value=-torch.inf) for row in table], dim=1
    ).flatten(1)
    position = torch.arange(length, device=log_weight.device)
    stop = cut.clamp_min(0)
    nearest = position - cut + 1
    bound = torch.full_like(sigma, -torch.inf)
    for ring in range(RINGS + 1):
        distance = nearest * FACTOR**ring
        start = (
            torch.zeros_like(stop) if ring == RINGS else (position + 1 - (distance * FACTOR).ceil().long()).clamp_min(0)
        )
        start = start.minimum(stop)
        count = stop - start
        power = count.clamp_min(1).to(sigma.dtype).log2().floor().long()
        left = largest.gather(1, (power * length + start).clamp_max(largest.shape[1] - 1))
        right = largest.gather(1, power * length + (stop - (1 << power)).clamp_min(0))
        term = (
            torch.maximum(left, right) - distance.square() / (2 * sigma.square()) + (sigma.square() / distance).log1p()
        )
        bound = bound.maximum(term.masked_fill(count == 0, -torch.inf))
        stop = start
    return bound + math.log(RINGS + 1)
