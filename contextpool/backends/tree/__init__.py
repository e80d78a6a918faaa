# SPDX-License-Identifier: Apache-2.0
"""Causal pooling in time and memory n log n: a binary tree of past blocks, each summed up at 8 Chebyshev nodes.

A pyramid's blur mixes both sides of a token, so it cannot be causal. This is the upward half of a fast multipole method
(FMM), also called a tree code, on a line and with one-sided interaction lists:

1. The leaves are 16 tokens. A block of length m stands for its tokens by Lagrange weights at 8 Chebyshev nodes
   ("anterpolation"): leaf tokens to nodes, then the nodes of two children to those of their parent: `nodes`.
2. A block is accurate for Gaussians of sigma >= m / 1.5. With l the highest level where that holds for sigma_i, token i
   sums the 64 nodes before its block of level l (far field), one sibling block on each lower level if it lies before
   the token, and the tokens of its own leaf up to itself (near field): `interactions`. -1 stands for the tokens alone.
3. All of it is batches of small matrix products, and nothing looks ahead. What lies further back is 6 sigma away at
   least, and its share is bounded: `truncation`.
4. A row is summed relative to its own largest term; one that would err by too much is pooled by the formula: `pool`.
5. The backward pass is the transpose of each step.

The error is described in docs/appendix/contextpool-algorithms.md.
"""

from contextpool.backends.tree.pool import tree_causal_pool

__all__ = ["tree_causal_pool"]
