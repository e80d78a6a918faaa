# SPDX-License-Identifier: Apache-2.0
"""ContextPool for ConvNets: a layer in place of a pooling or strided layer."""

from __future__ import annotations

from torch import Tensor, nn

from contextpool.backends.grid import grid_pool, resolve_grid_backend
from contextpool.config import PoolConfig
from contextpool.module import describe_sigma, make_predictor, weights_and_sigma


class ContextPool2d(nn.Module):
    """Pool a feature map around the centres of a stride, with weights and widths predicted at full resolution.

    Centres are the pixels whose row and column are multiples of the stride, as those of a 3 x 3 convolution with
    padding 1, so the layer stands wherever such a layer, or a pooling of that stride, stood. Sigma is in rows, the
    reference length is the number of rows, and the formulas are those of `contextpool.ContextPool` on a grid.

    Args:
        channels: Features of a pixel.
        stride: Rows and columns between two outputs.
        config: Every choice; see `PoolConfig`.

    Raises:
        ValueError: The stride is not positive, or the backend is not for grids.
    """

    def __init__(self, channels: int, stride: int = 2, config: PoolConfig | None = None) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride must be positive, got {stride}")
        self.stride = stride
        self.config = PoolConfig() if config is None else config
        resolve_grid_backend((1, 1), self.config.backend)  # refuses one that is not for grids
        self.predictor = make_predictor(channels, self.config, planar=True)
        self._last_sigma: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, rows, columns) to (batch, channels, ceil(rows / stride), ceil(columns / stride))."""
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2)
        logits = () if self.predictor is None else self.predictor(tokens, None, grid)
        reference_length = self.config.reference_of(grid)
        log_weight, sigma = weights_and_sigma(self.config, logits, tokens, None, reference_length)
        self._last_sigma = sigma.detach().unflatten(1, grid)
        y = grid_pool(
            tokens,
            log_weight,
            sigma,
            grid=grid,
            normalized=self.config.normalized,
            backend=self.config.backend,
            stride=self.stride,
        )
        rows, columns = (-(-size // self.stride) for size in grid)
        return y.transpose(1, 2).unflatten(2, (rows, columns))

    @property
    def last_sigma(self) -> Tensor | None:
        """Sigma in the last `forward`, (batch, rows, columns), in rows, detached; None before."""
        return self._last_sigma

    def statistics(self) -> dict[str, Tensor]:
        """Describe sigma in the last `forward`: mean and quantiles, scalars on the device."""
        return {} if self._last_sigma is None else describe_sigma(self._last_sigma.flatten(1), None)
