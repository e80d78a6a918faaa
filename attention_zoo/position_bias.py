# SPDX-License-Identifier: Apache-2.0
"""Position biases: a number for each distance between query and key, which is added to the scores before the softmax.

- ALiBi (Press et al. 2022, arXiv:2108.12409): -m |j - i|, with the slopes m = 2^(-8 h / num_heads) for the heads h = 1,
  2, ... The paper is causal; for both sides this is its symmetric form.
- T5 (Raffel et al. 2020, arXiv:1910.10683, section 2.1): a learned number for each head and each of 32 buckets of
  distances. Half of the buckets of a side hold one distance each, and the rest grow on a logarithmic scale up to 128,
  beyond which all distances share the last one. Bidirectional attention has 16 buckets for each side; causal attention
  has all 32 for the past.

Positions are places in the sequence, masked and prefix tokens included, as for rotary positions.

Departures: every layer has its own T5 table, where the paper has one for all layers, and scores keep their factor
1 / √head_dim, which T5 does without. ALiBi's slopes follow its formula for every number of heads, not only powers of
two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, option
from attention_zoo.kernels.softmax import BACKEND_HELP, Backend
from attention_zoo.projections import QkvConfig

Bias = Literal["none", "alibi", "t5"]

_BUCKETS = 32
_FARTHEST = 128
"""Distances from here on share one bucket."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionBiasConfig(QkvConfig):
    """Options of the variants whose scores can take a position bias."""

    bias: Bias = option(
        "none", "add to each score a number that depends on the distance: ALiBi or T5's learned buckets"
    )


@dataclass(frozen=True, kw_only=True)  # no slots: torch 2.6 compiles no read of a slot that a subclass inherits
class BiasAndBackendConfig(PositionBiasConfig):
    """Options of those that have a choice of backends, too.

    Raises:
        ValueError: The bias is asked of a backend that has none.
    """

    backend: Backend = option("auto", f"{BACKEND_HELP}; with a bias, auto is blockwise")

    def __post_init__(self) -> None:
        """Refuse the fused kernel, which would need the biases of all pairs written out."""
        QkvConfig.__post_init__(self)
        if self.bias != "none" and self.backend == "fused":
            raise ValueError(f"backend: the fused kernel takes no bias ({self.bias}); leave it at auto")


class PositionBias(nn.Module):
    """The biases of one layer."""

    slopes: Tensor

    def __init__(self, kind: Literal["alibi", "t5"], dims: LayerDims) -> None:
        super().__init__()
        self.causal = dims.causal
        self.table: nn.Parameter | None = None
        if kind == "t5":
            self.table = nn.Parameter(torch.empty(dims.num_heads, _BUCKETS))
            nn.init.normal_(self.table, std=dims.dim**-0.5)
        else:
            slopes = 2.0 ** (-8.0 * torch.arange(1, dims.num_heads + 1, dtype=torch.float64) / dims.num_heads)
            self.register_buffer("slopes", slopes.float(), persistent=False)

    def forward(self, queries: int, keys: int, *, shift: int = 0, stride: int = 1) -> Tensor:
        """Return the bias of each distance, (num_heads, queries + keys - 1), as `attend` takes it.

        Args:
            queries: Number of queries.
            keys: Number of keys.
            shift: Place of the first key, seen from the first query.
            stride: Distance between neighbours in the list of queries and keys.
        """
        like = self.slopes if self.table is None else self.table
        # Entry s is for key place - query place = s - (queries - 1) + shift, times the stride.
        distance = (torch.arange(queries + keys - 1, device=like.device) - (queries - 1) + shift) * stride
        if self.table is None:
            return -self.slopes[:, None] * distance.abs()
        # Indexing would add up the gradients of a bucket in an order that threads decide.
        return F.embedding(t5_bucket(distance, causal=self.causal), self.table.T).T.contiguous()


def make_bias(config: PositionBiasConfig, dims: LayerDims) -> PositionBias | None:
    """Build what the option asks for."""
    return None if config.bias == "none" else PositionBias(config.bias, dims)


def t5_bucket(distance: Tensor, *, causal: bool) -> Tensor:
    """Return the bucket of each distance (key place - query place, int64)."""
    side = _BUCKETS if causal else _BUCKETS // 2  # buckets of one side
    apart = (-distance).clamp_min(0) if causal else distance.abs()
    single = side // 2  # buckets that hold one distance each
    # The distances from `single` to the farthest fall into the other half on a logarithmic scale.
    ratio = (apart.clamp_min(1).to(torch.float64) / single).log() / math.log(_FARTHEST / single)
    far = (single + (ratio * (side - single)).long()).clamp_max(side - 1)
    bucket = torch.where(apart < single, apart, far)
    return bucket if causal else bucket + side * (distance > 0)
