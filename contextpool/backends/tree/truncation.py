# SPDX-License-Identifier: Apache-2.0
"""How much of a causal sum lies before a given position: a bound for every token, over shells of distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHELLS = 10
"""Ranges of distance from the cut on, each this factor longer than the one before; then everything that is left."""
FACTOR = math.sqrt(2.0)


def log_truncation_bound(log_weight: Tensor, sigma: Tensor, cut: Tensor) -> Tensor:
    """Bound log sum_{j < cut_i} w_j g_ij from above; -inf where there is no such token.

    The shell of distances d ... d FACTOR holds at most max w exp(-d^2 / (2 sigma^2)) (sigma^2 / d + 1), where the last
    factor bounds the sum of the Gaussian from d on by a geometric series; and so on outwards. The largest weight of
    each shell comes from a table of the largest weights of 1, 2, 4, 8, ... tokens.

    Args:
        log_weight: (batch, length).
        sigma: (batch, length), in tokens.
        cut: (batch, length), integer, at most the token's own position; may be negative.

    Returns:
        (batch, length), the largest of the shells' bounds plus log(SHELLS + 1).
    """
    length = log_weight.shape[1]
    table = [log_weight]
    while 1 << len(table) <= length:
        half = 1 << (len(table) - 1)
        table.append(torch.maximum(table[-1][:, half:], table[-1][:, :-half]))
    # Entry k, j: the largest of the 2^k tokens from j on; -inf where they do not fit. (batch, powers * length).
    largest = torch.stack([F.pad(row, (0, length - row.shape[1]), value=-torch.inf) for row in table], dim=1).flatten(1)
    position = torch.arange(length, device=log_weight.device)
    # A shell is the tokens start ... stop - 1, each (batch, length); the first one ends at the cut.
    stop = cut.clamp_min(0)
    nearest = position - cut + 1
    bound = torch.full_like(sigma, -torch.inf)
    for shell in range(SHELLS + 1):
        distance = nearest * FACTOR**shell
        if shell == SHELLS:
            start = torch.zeros_like(stop)  # all that is left
        else:
            start = (position + 1 - (distance * FACTOR).ceil().long()).clamp_min(0)
        start = start.minimum(stop)
        count = stop - start
        # Two ranges of 2^power tokens, which may overlap, cover the shell: the first and the last of it.
        power = count.clamp_min(1).to(sigma.dtype).log2().floor().long()
        left = largest.gather(1, (power * length + start).clamp_max(largest.shape[1] - 1))
        right = largest.gather(1, power * length + (stop - (1 << power)).clamp_min(0))
        heaviest = torch.maximum(left, right)
        term = heaviest - distance.square() / (2 * sigma.square()) + (sigma.square() / distance).log1p()
        bound = bound.maximum(term.masked_fill(count == 0, -torch.inf))
        stop = start
    # The sum of SHELLS + 1 terms is at most that many times the largest.
    return bound + math.log(SHELLS + 1)
