# SPDX-License-Identifier: Apache-2.0
"""Two-sided pooling in linear time: a Gaussian pyramid, and a narrow residual Gaussian for each token.

This is a multilevel method. A Gaussian of width sigma is a blur of width b followed by a Gaussian of width
a = sqrt(sigma^2 - b^2), and blurred sequences need fewer samples, so wide Gaussians are summed on coarse levels:

1. Level 0 holds the weighted tokens w x, with w itself as one more column. Each level above is the one below, blurred
   and sampled at every second node (restriction, in multigrid terms): `stencils`, `levels`.
2. Every token takes the level whose blur is a little narrower than its own sigma: `tiles`.
3. It sums the 48 nodes around it there with its residual Gaussian, in tiles of 16 tokens: `pool`. There is no way back
   down the levels; the residual Gaussian takes the place of interpolation.
4. The backward pass is the transpose of each step: nodes get their gradients from tokens, and each level hands its own
   to the level below.

The error is bounded in docs/appendix/contextpool-algorithms.md.
"""

from contextpool.backends.pyramid.pool import pyramid_pool

__all__ = ["pyramid_pool"]
