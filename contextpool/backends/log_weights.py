# SPDX-License-Identifier: Apache-2.0
"""Weights as the kernels take them: limits, the shift that keeps exp in range, and safe exp and reciprocal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIGMA_MAX = 1e8
"""Widest Gaussian: uniform for every length that fits a machine, and safe to raise to the fourth power in float32."""
WEIGHT_RANGE = 60.0
"""What plain weights can hold: log-weights further than this below the sequence's largest count as this far below.

Their weight is 9e-27 of it.
"""
LOG_WEIGHT_RANGE = 1000.0
"""What kernels of logarithms can hold: less than this below the largest (so far, if causal) counts as this far below.

They add exponents to log-weights relative to the query's own, and 1,000 leaves these four decimals in float32.
"""
LOWEST_LOG_WEIGHT = -1e30
"""Stands for minus infinity, the mark of a masked token, where nothing before weighs more."""
SMALLEST_EXPONENT = -87.0
"""exp of less is subnormal in float32, which costs up to 1.5 times the time."""


def reciprocal(total: Tensor) -> Tensor:
    """Return 1 / total, and 0 where the total of the weights is too small to divide by (no token in reach)."""
    return total.reciprocal().masked_fill_(total <= 1e-30, 0.0)


def exp_or_zero(exponent: Tensor, smallest: float = SMALLEST_EXPONENT) -> Tensor:
    """Return exp(exponent) in its place, and 0 where the exponent is `smallest` or less.

    Zero, not exp(smallest): a token of weight exp(-60) would otherwise drown in what heavy tokens add from far away.
    """
    # The exponent becomes -inf first, whose exp is an exact 0, so that one pass of exp serves all.
    return F.threshold(exponent, smallest, -torch.inf, inplace=True).exp_()


def plain_weights(log_weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weights whose largest in each sequence is 1, 0 where masked, and the log-weight of that largest.

    Args:
        log_weight: (batch, length).
        mask: (batch, length), bool, True = real; None = all real.

    Returns:
        The weights, (batch, length), and the shift, (batch, 1), without a gradient; 0 where nothing is real.
    """
    if mask is not None:
        log_weight = log_weight.masked_fill(~mask, -torch.inf)
    shift = log_weight.detach().amax(dim=1, keepdim=True)
    # A sequence without real tokens has no largest: -inf - (-inf) would be NaN.
    shift = torch.where(shift == -torch.inf, 0.0, shift)
    # A constant for autograd: it cancels in the quotient; not normalised, the caller multiplies by exp(shift) again.
    weight = (log_weight - shift).clamp_min(-WEIGHT_RANGE).exp()
    return (weight if mask is None else weight.masked_fill(~mask, 0.0)), shift


def bounded_log_weights(log_weight: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Return log-weights at most `LOG_WEIGHT_RANGE` below the largest real one, minus infinity where masked.

    If causal, below the largest up to each token: what comes later has no say.

    Args:
        log_weight: (batch, length).
        mask: (batch, length), bool, True = real; None = all real.
        causal: Whether token i sees only tokens j <= i.

    Returns:
        (batch, length).
    """
    real = log_weight if mask is None else log_weight.masked_fill(~mask, -torch.inf)
    largest = real.detach().cummax(dim=1).values if causal else real.detach().amax(dim=1, keepdim=True)
    floor = (largest - LOG_WEIGHT_RANGE).clamp_min(LOWEST_LOG_WEIGHT)  # (batch, length), or (batch, 1) if not causal
    bounded = torch.where(log_weight < floor, floor, log_weight)
    return bounded if mask is None else bounded.masked_fill(~mask, -torch.inf)
