# SPDX-License-Identifier: Apache-2.0
"""Implementations of the pooling operator: one formula, several ways to sum it.

`contextpool.functional.context_pool` checks and prepares the inputs, then calls one of these kernels. All of them are
tested against `contextpool.reference`.

- `dense`, `causal_dense`: the formula in chunks of queries; exact, quadratic time.
- `pyramid`: a Gaussian pyramid with a narrow residual Gaussian per token; two-sided, linear time.
- `tree`: a binary tree of past blocks, as in a fast multipole method (FMM); causal, n log n time.
- `grid`: Gaussians over the rows and columns of an image; dense, or a pyramid in two axes.
- `triton_kernels`: the formula in fused CUDA kernels. Importing it imports Triton, so it is not imported here.

What several of them share is in `custom_op`, `log_weights` and `tiling`.
"""

from contextpool.backends.causal_dense import dense_causal_pool
from contextpool.backends.custom_op import Kernel
from contextpool.backends.dense import dense_pool
from contextpool.backends.grid import grid_pool
from contextpool.backends.pyramid import pyramid_pool
from contextpool.backends.tree import tree_causal_pool

__all__ = ["Kernel", "dense_causal_pool", "dense_pool", "grid_pool", "pyramid_pool", "tree_causal_pool"]
