# SPDX-License-Identifier: Apache-2.0
"""ContextPool as a module: predict a weight and a width for every token, then pool (Huang et al., ICML 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.masking import zero_masked
from contextpool.backends.grid import resolve_grid_backend
from contextpool.config import PoolConfig
from contextpool.functional import check_backend, context_pool
from contextpool.predictor import Predictor

QUANTILES = (0.1, 0.5, 0.9)
"""Quantiles of sigma among the statistics."""


class ContextPool(nn.Module):
    """Replace each token by a weighted mean of its neighbourhood, with weights and neighbourhood predicted per token.

    A predictor m of two convolutions gives each token two logits, a and b = m(x). With n the reference length:

        w_i     = exp(a_i)                                              (or sigmoid, softmax, uniform)
        sigma_i = max(sigma_min, sigma_fraction n sigmoid(b_i + c(n)))
        y_i     = sum_j w_j g_ij x_j / sum_j w_j g_ij,   g_ij = exp(-(i - j)^2 / (2 sigma_i^2))

    over real tokens j. The offset c(n) = logit(initial_sigma / (sigma_fraction n)), at most 0, lets sigma start at
    `initial_sigma` tokens, or at half the widest, `sigma_fraction n / 2`, where that is less, since m starts near zero.
    A constant offset would start sequences much shorter than the one it is made for below `sigma_min`, where sigma has
    no gradient; `initial_length` asks for it nevertheless. With the default sigma_fraction a sequence of five tokens or
    fewer stays there in any case. The offset is added in float32, so b keeps its resolution in bfloat16.

    What follows the paper and what is this project's choice is listed in docs/contextpool.md.

    Args:
        dim: Features of a token.
        config: Every choice; see `PoolConfig`.
        causal: Whether token i sees only tokens j <= i, in the convolutions too. n is then a constant, because a causal
            result may not depend on a length that it has not seen.
        max_length: Longest sequence, the reference length of the causal form if the configuration gives none.
        num_prefix: Leading tokens without a position, such as CLS: left as they are, and seen by no other token.
        grid: (rows, columns) if tokens are the pixels of a grid in row-major order. Convolutions and Gaussians are then
            two-dimensional, n is the number of rows, and so sigma is in rows.

    Raises:
        ValueError: The options exclude one another, or a causal module has no reference length.
    """

    def __init__(
        self,
        dim: int,
        config: PoolConfig | None = None,
        *,
        causal: bool = False,
        max_length: int | None = None,
        num_prefix: int = 0,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = PoolConfig() if config is None else config
        self.causal, self.num_prefix, self.grid = causal, num_prefix, grid
        self.reference_length = self.config.reference_of(grid, (max_length or 0) if causal else 0)
        if causal and not self.reference_length:
            raise ValueError("a causal ContextPool needs reference_length or max_length")
        if causal and grid:
            raise ValueError("a grid has no causal order: causal and grid exclude each other")
        if grid:
            resolve_grid_backend(grid, self.config.backend)  # refuses one that is not for grids
        else:
            check_backend(self.config.backend, causal=causal)
        if causal and self.config.weights == "softmax" and not self.config.normalized:
            raise ValueError("softmax weights over the whole sequence, not normalised again, would look ahead")
        self.predictor = make_predictor(dim, self.config, causal=causal, planar=grid is not None)
        self._last: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            x: (batch, length, dim).
            mask: (batch, length), bool, True = real token, in any pattern; None = all real.

        Returns:
            (batch, length, dim); zeros at masked positions, prefix tokens as they are.
        """
        log_weight, sigma = self.predict(x, mask)
        prefix, x = x[:, : self.num_prefix], x[:, self.num_prefix :]
        if mask is not None:
            prefix, mask = zero_masked(prefix, mask[:, : self.num_prefix]), mask[:, self.num_prefix :]
        self._last = (sigma.detach(), mask) if sigma.numel() else None
        config = self.config
        y = context_pool(
            x,
            log_weight,
            sigma,
            mask,
            causal=self.causal,
            grid=self.grid,
            normalized=config.normalized,
            backend=config.backend,
        )
        if self.causal and not config.normalized:
            # The bare sum is divided by the number of tokens, which a causal result may not depend on.
            count = torch.full_like(sigma[:, :1], x.shape[1]) if mask is None else mask.sum(dim=1, keepdim=True)
            y = y * (count / self.reference_length).to(y.dtype)[:, :, None]
        return torch.cat((prefix, y), dim=1) if self.num_prefix else y

    def predict(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict what `forward` pools with.

        Args:
            x: (batch, length, dim), prefix tokens included.
            mask: (batch, length), bool; None = all real.

        Returns:
            Log-weights and sigma in tokens (rows on a grid), each (batch, length - num_prefix), in float32 or float64.
        """
        x = x[:, self.num_prefix :]
        mask = None if mask is None else mask[:, self.num_prefix :]
        logits = () if self.predictor is None else self.predictor(x, mask, self.grid)
        return weights_and_sigma(self.config, logits, x, mask, self.reference_length)

    @property
    def last_sigma(self) -> Tensor | None:
        """Sigma in the last `forward`, (batch, length - num_prefix), detached, zero at masked tokens; None before."""
        if self._last is None:
            return None
        sigma, mask = self._last
        return sigma if mask is None else sigma.masked_fill(~mask, 0.0)

    def statistics(self) -> dict[str, Tensor]:
        """Describe sigma over the real tokens of the last `forward`: mean and quantiles, scalars on the device.

        Only sigma itself is kept between the passes, one number per token; the rest is computed here.
        """
        return {} if self._last is None else describe_sigma(*self._last)


def make_predictor(dim: int, config: PoolConfig, *, causal: bool = False, planar: bool = False) -> Predictor | None:
    """Build the predictor of the logits that the configuration asks for: of weights, then of widths.

    Normalised weights do not change when all their logits do, except for sigmoid, so a bias there would be dead.
    """
    weighted, learned = config.weights != "uniform", config.sigma == "learned"
    bias_counts = config.weights == "sigmoid" or (config.weights == "exp" and not config.normalized)
    if not weighted and not learned:
        return None
    biases = int(weighted and bias_counts) + int(learned)
    return Predictor(dim, config, outputs=weighted + learned, num_biases=biases, causal=causal, planar=planar)


def weights_and_sigma(
    config: PoolConfig, logits: tuple[Tensor, ...], x: Tensor, mask: Tensor | None, reference_length: int
) -> tuple[Tensor, Tensor]:
    """Turn the predictor's outputs, each (batch, length), into log-weights and sigma of the same shape.

    A `reference_length` of 0 takes each sequence's number of real tokens.
    """
    shape, dtype = x.shape[:2], torch.promote_types(x.dtype, torch.float32)
    remaining = list(logits)
    if config.weights == "uniform":
        log_weight = torch.zeros(shape, dtype=dtype, device=x.device)
    else:
        log_weight = _log_weight(config, remaining.pop(0), mask)
    length: Tensor = torch.full((shape[0], 1), reference_length or shape[1], dtype=dtype, device=x.device)
    if mask is not None and not reference_length:
        length = mask.sum(dim=1, keepdim=True).clamp_min(1).to(dtype)
    start = config.initial_sigma * (length / config.initial_length if config.initial_length else 1.0)
    if config.sigma == "fixed":
        return log_weight, torch.zeros(shape, dtype=dtype, device=x.device) + start
    widest = config.sigma_fraction * length
    offset = torch.logit((start / widest).clamp_max(0.5))
    return log_weight, (widest * torch.sigmoid(remaining.pop(0) + offset)).clamp_min(config.sigma_min)


def _log_weight(config: PoolConfig, logit: Tensor, mask: Tensor | None) -> Tensor:
    """Return the logarithm of the weights; a softmax is scaled to a mean weight of one over the real tokens."""
    if config.weights == "sigmoid":
        return F.logsigmoid(logit)
    if config.weights == "exp" or config.normalized:
        return logit
    if mask is None:
        return logit - logit.logsumexp(dim=1, keepdim=True) + torch.full_like(logit[:, :1], logit.shape[1]).log()
    real = logit.masked_fill(~mask, torch.finfo(logit.dtype).min)
    count = mask.sum(dim=1, keepdim=True).clamp_min(1).to(logit.dtype)
    return real - real.logsumexp(dim=1, keepdim=True) + count.log()


def describe_sigma(sigma: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Return mean and quantiles of detached widths (batch, length) over real tokens, without waiting for the device."""
    real = torch.ones_like(sigma, dtype=torch.bool) if mask is None else mask
    count = real.sum()
    mean = sigma.masked_fill(~real, 0.0).sum() / count.clamp_min(1)
    ordered = sigma.masked_fill(~real, torch.inf).flatten().sort().values
    values = {"sigma_mean": mean}
    for quantile in QUANTILES:
        index = ((count - 1).clamp_min(0) * quantile).round().long()
        values[f"sigma_p{round(100 * quantile)}"] = ordered.take(index).masked_fill(count == 0, 0.0)
    return values
