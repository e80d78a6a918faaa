# SPDX-License-Identifier: Apache-2.0
"""Pooling on a grid of pixels: a round Gaussian per position.

Positions are the pixels of an image in row-major order, and `sigma` is in rows.

- A Gaussian on a grid is the product of one over rows and one over columns, so a position needs rows + columns
  exponentials instead of rows x columns: `pool`, which also holds the entry point `grid_pool`.
- On large grids the image is blurred and sampled on coarser rasters, each position reads the raster whose blur is a
  little narrower than its own Gaussian, and sums the nodes around it with the residual Gaussian: `pyramid`. This is
  `backends.pyramid` in two axes, except that rasters are made from the image at once instead of level by level, and
  that the window read is as large as the residual Gaussian asks for.

The formulas are in docs/appendix/contextpool-algorithms.md.
"""

from contextpool.backends.grid.pool import grid_pool, resolve_grid_backend

__all__ = ["grid_pool", "resolve_grid_backend"]
