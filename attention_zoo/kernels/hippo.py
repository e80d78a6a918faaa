# SPDX-License-Identifier: Apache-2.0
"""The diagonal form of the HiPPO-LegS matrix, from which state spaces start.

HiPPO-LegS is A_nk = -sqrt((2 n + 1)(2 k + 1)) below the diagonal, -(n + 1) on it, and 0 above. With
p_n = sqrt(n + 1/2), A + p pᵀ is -1/2 on the diagonal and antisymmetric beside it, so that it has orthogonal
eigenvectors. It is called HiPPO-N (S5; Smith et al. 2023, arXiv:2208.04933), and S4D-LegS starts from its eigenvalues
(Gu et al. 2022, arXiv:2206.11893).
"""

from __future__ import annotations

import torch
from torch import Tensor


def hippo_normal(size: int) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of HiPPO-N whose imaginary part is positive, in rising order.

    The other half are their conjugates.

    Args:
        size: Rows of the matrix, even.

    Returns:
        Eigenvalues, (size / 2,), and eigenvectors of length 1 as columns, (size, size / 2); complex128.
    """
    root = (2.0 * torch.arange(size, dtype=torch.float64) + 1.0).sqrt()
    upper = 0.5 * torch.outer(root, root).triu(1)
    # An antisymmetric matrix divided by i is Hermitian.
    frequency, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(upper), upper.T - upper))
    half = size // 2
    return torch.complex(torch.full((half,), -0.5, dtype=torch.float64), frequency[half:]), vectors[:, half:]
