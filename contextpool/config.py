# SPDX-License-Identifier: Apache-2.0
"""The options of the pooling module: whatever the paper leaves open is an option, with our choice as its default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from attention_zoo.base import LayerDims, VariantConfig, option
from contextpool.functional import Backend


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorConfig(VariantConfig):
    """Options of the two convolutions that look at a token's neighbours."""

    hidden: int = option(0, "width between the two convolutions; 0: an eighth of dim, at least 16", least=0)
    kernel_size: int = option(
        3, "positions that each convolution sees, itself in the middle (causal: last); odd", least=1, parity="odd"
    )
    input_norm: bool = option(True, "normalise the predictor's input (LayerNorm), for streams that grow with depth")

    def hidden_of(self, dim: int) -> int:
        """Return the width between the convolutions for a stream of a width."""
        return self.hidden or max(16, dim // 8)

    def resolved(self, dims: LayerDims) -> Self:
        """Return the options with the width that 0 means."""
        return replace(self, hidden=self.hidden_of(dims.dim))


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig(PredictorConfig):
    """Options of adaptive context pooling; see `contextpool.module.ContextPool` for the formulas."""

    weights: Literal["exp", "sigmoid", "softmax", "uniform"] = option(
        "exp", "how a token's predicted logit becomes its weight; normalised, exp and softmax are the same function"
    )
    sigma: Literal["learned", "fixed"] = option("learned", "whether each token predicts its width")
    normalized: bool = option(True, "divide by the sum of the weights in reach, not by the number of tokens")
    initial_sigma: float = option(
        1.0,
        "width at the start of training, in tokens (on a grid: rows), at most half the widest; if fixed, the width",
        above=0.0,
    )
    initial_length: int = option(
        0,
        "length at which the width starts at initial_sigma, in proportion at others; 0: starts there at every length",
        least=0,
    )
    sigma_fraction: float = option(0.1, "widest learned sigma as a fraction of the reference length (r)", above=0.0)
    sigma_min: float = option(0.3, "narrowest learned sigma, in tokens", above=0.0)
    reference_length: int = option(
        0,
        "length that sigma_fraction refers to; 0: each sequence's number of real tokens, if causal the longest length",
        least=0,
    )
    backend: Backend = option("auto", "implementation of the pooling, see `contextpool.context_pool`")

    def reference_of(self, grid: tuple[int, int] | None, longest: int = 0) -> int:
        """Return the length that `sigma_fraction` refers to; 0 for the number of real tokens of each sequence.

        Args:
            grid: (rows, columns) if tokens are the pixels of a grid.
            longest: The longest length of a causal form, otherwise 0.
        """
        return self.reference_length or (grid[0] if grid else longest)
