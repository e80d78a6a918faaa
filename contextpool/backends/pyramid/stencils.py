# SPDX-License-Identifier: Apache-2.0
"""The constants of the Gaussian pyramid: its blurs, and the stencils between neighbouring levels as block matrices.

Level l has nodes at multiples of h = 2^l tokens and holds the sequence blurred by a Gaussian of width b = h / BETA,
sampled at the nodes. Level 0 is the sequence itself: h = 1, b = 0. Nodes are handled in blocks of 16.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

BETA = 0.8
"""Node spacing over blur, of this pyramid and of the one on grids.

The trapezoid rule over the nodes errs by 2 exp(-(pi / BETA)^2) = 4e-7 of each weight.
"""
BLOCK = 16
"""Nodes per block. A token reads its own block and one on either side."""
TAPS = 15
"""Half-width of a stencil: 6 standard deviations for the first level, 7 for the others."""


@lru_cache(maxsize=32)
def coarsen_stencil(level: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (16, 64) from nodes 32 q - 16 ... 32 q + 47 of `level` to block q of the next, coarser level.

    The first stencil blurs by 2 / BETA tokens. The others lift a blur of 1 / BETA nodes to 2 / BETA nodes, which is a
    blur by sqrt(3) / BETA. Each has unit mass.
    """
    # Node k of block q above stands over node 32 q + 2 k below, and columns begin 16 nodes before 32 q.
    node, source = torch.arange(BLOCK), torch.arange(-BLOCK, 3 * BLOCK)
    return _taps(level, source[None, :] - 2 * node[:, None]).to(device, dtype)


@lru_cache(maxsize=32)
def coarsen_adjoint_stencil(level: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the adjoint's matrix (32, 32), from nodes 16 q - 8 ... above to nodes 32 q ... 32 q + 31 of `level`.

    A node below is in the stencils of 16 nodes above at most, so 32 neighbours below share a window of 32 above. To
    gather this way gives the same sums as to scatter `coarsen_stencil` transposed, without overlapping writes.
    """
    node, target = torch.arange(-BLOCK // 2, 3 * BLOCK // 2), torch.arange(2 * BLOCK)
    return _taps(level, target[:, None] - 2 * node[None, :]).to(device, dtype)


def _taps(level: int, offset: Tensor) -> Tensor:
    """Sample the unit-mass Gaussian stencil that leads up from `level` at integer offsets, in nodes of `level`."""
    # Variances of blurs add: from 1 / BETA to 2 / BETA it takes (4 - 1) / BETA^2.
    width = (2.0 if level == 0 else math.sqrt(3.0)) / BETA
    taps = torch.exp(-offset.double().square() / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
    return taps.masked_fill(offset.abs() > TAPS, 0.0)
