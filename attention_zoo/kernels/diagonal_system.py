# SPDX-License-Identifier: Apache-2.0
"""Linear system with a diagonal complex matrix, many inputs and many outputs, run from one end or from both.

    h_t = λ h_{t-1} + B u_t,    y_t = Re(C h_t),    and with h'_t = λ h'_{t+1} + B u_t from the other end,
    y_t = Re(C h_t + C' h'_t).

Complex parameters are pairs of real numbers on the last axis, because a cast of a module to a real dtype would drop the
imaginary part. The maps into and out of the states are products of real matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.kernels.scan import linear_scan


def diagonal_system(u: Tensor, factor: Tensor, drive: Tensor, *readouts: Tensor) -> Tensor:
    """Compute y from u by a scan.

    Args:
        u: (batch, length, dim), float32 or float64.
        factor: λ, (states,), complex, of absolute value at most 1.
        drive: B, (states, dim, 2).
        readouts: C of the past and, to run from both ends, C' of the future, each (dim, states, 2).

    Returns:
        (batch, length, dim).
    """
    # B u as (batch, length, states, 2), which is complex (batch, length, states)
    driven = torch.view_as_complex((u @ drive.permute(1, 0, 2).flatten(1)).unflatten(2, (-1, 2)))
    states, weights = [], []
    for direction, readout in enumerate(readouts):
        states.append(torch.view_as_real(linear_scan(factor, driven, reverse=direction == 1)).flatten(2))
        # Re(C h) = Re C Re h - Im C Im h: the numbers of the conjugate of C
        weights.append(torch.view_as_real(torch.view_as_complex(readout).conj_physical()).flatten(1))
    return torch.cat(states, dim=2) @ torch.cat(weights, dim=1).T
