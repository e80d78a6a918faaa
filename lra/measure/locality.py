# SPDX-License-Identifier: Apache-2.0
"""How far a model mixes, and what it answers when it sees no farther.

Mixing is which tokens the final state of a token depends on, by vector-Jacobian products.

The influence of token j on token i is the squared Frobenius norm of the Jacobian of the final state of i with respect
to the embedding of j. Hutchinson's estimate of it takes random signs u: the mean of |u J|^2 is |J|^2. One product gives
the influence of all tokens on one, so memory grows as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lra.models.padding import hide_padding
from lra.models.transformer import Classifier

Change = Literal["hide", "shuffle"]
PLACES = 64
"""Tokens whose views go through a model at a time."""


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
    within: tuple[float, ...]
    """(reach + 1,), the share of the influence that comes from each distance or nearer."""


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
        within=tuple(up_to.tolist()),
    )


def logits_within(
    model: Classifier, tokens: Tensor, mask: Tensor | None, radius: int, change: Change, generator: torch.Generator
) -> Tensor:
    """Classify one example with every state that the head reads taken from a view of its own.

    In the view of a token, those farther from it than the radius are hidden, as padding is, or shuffled among
    themselves. A head that reads the first token, or a CLS token, has the view of the first token; any other head has
    one for each token.

    Args:
        model: In evaluation mode.
        tokens: (1, length).
        mask: (1, length), True = real token, or None.
        radius: In tokens; from the length on nothing changes.
        change: What is done to the tokens beyond it.
        generator: The source of the orders.

    Returns:
        (1, classes).
    """
    tokens, mask = hide_padding(tokens, mask, zero_is_padding=model.embedding.zero_is_padding)
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    prefix = int(model.embedding.cls is not None)
    reads_cls, reads_first = model.head.pooling == "cls", model.head.pooling in ("cls", "first")
    places = torch.zeros(1, dtype=torch.long) if reads_first else real[0].nonzero()[:, 0]
    states = []
    for part in places.split(PLACES):
        far = real & ((torch.arange(tokens.shape[1]) - part[:, None]).abs() > radius)  # (places, length)
        views = tokens.repeat(len(part), 1)
        if change == "shuffle":
            for row, beyond in enumerate(far):
                old = beyond.nonzero()[:, 0]
                views[row, old] = views[row, old[torch.randperm(len(old), generator=generator)]]
            far = torch.zeros_like(far)
        x, seen = model.embedding(views, real & ~far)  # (places, length [+ 1], dim)
        for block in model.blocks:
            x = block(x, seen)
        states.append(x[torch.arange(len(part)), torch.zeros_like(part) if reads_cls else part + prefix])
    logits: Tensor = model.head(torch.cat(states).unsqueeze(0), None)
    return logits
