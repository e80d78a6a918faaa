# SPDX-License-Identifier: Apache-2.0
"""How far a model mixes: which tokens the final state of a token depends on, by vector-Jacobian products.

The influence of token j on token i is the squared Frobenius norm of the Jacobian of the final state of i with respect
to the embedding of j. Hutchinson's estimate of it takes random signs u: the mean of |u J|^2 is |J|^2. One product gives
the influence of all tokens on one, so memory grows as in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lra.models.transformer import Classifier


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """The distances from which the tokens of some examples get what they hold."""

    mean: float
    """Mean distance, in tokens, weighted by influence; a token's influence on itself counts, at distance 0."""
    median: int
    """Half of the influence comes from this distance or nearer,"""
    most: int
    """and 90 % from this one or nearer."""
    farthest: int
    """The largest distance with any influence at all."""
    reach: int
    """The largest distance that the examples have between a token that was read and another."""


def influence(
    model: Classifier, tokens: Tensor, mask: Tensor | None, place: int, probes: int, generator: torch.Generator
) -> Tensor:
    """Estimate the influence of every token on one.

    Args:
        model: In evaluation mode.
        tokens: (1, length).
        mask: (1, length), True = real token, or None.
        place: The token that is influenced, after a CLS token if the model has one.
        probes: Random vectors; the estimate is exact in which influences are zero.
        generator: The source of the signs.

    Returns:
        (length [+ 1 with CLS],), not negative.
    """
    with torch.no_grad():
        x, mask = model.embedding(tokens, mask)
    x = x.requires_grad_()
    state = x
    for block in model.blocks:
        state = block(state, mask)
    total = torch.zeros(x.shape[1])
    for _ in range(probes):
        signs = torch.randint(0, 2, (x.shape[2],), generator=generator).to(x) * 2 - 1
        (gradient,) = torch.autograd.grad((state[0, place] * signs).sum(), x, retain_graph=True)
        total += gradient[0].square().sum(dim=1).cpu()
    return total / probes


def mixing(distances: Tensor, weights: Tensor) -> Mixing:
    """Summarise influences by distance.

    Args:
        distances: (pairs,), int64.
        weights: (pairs,), influences.
    """
    by_distance = torch.zeros(int(distances.max()) + 1, dtype=torch.float64)
    by_distance.index_add_(0, distances, weights.double())
    share = by_distance / by_distance.sum()
    up_to = share.cumsum(0)
    places = torch.arange(len(share), dtype=torch.float64)
    return Mixing(
        mean=float((share * places).sum()),
        median=int((up_to < 0.5).sum()),
        most=int((up_to < 0.9).sum()),
        farthest=int(share.nonzero().max()),
        reach=len(share) - 1,
    )
