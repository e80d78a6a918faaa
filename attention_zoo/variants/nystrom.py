# SPDX-License-Identifier: Apache-2.0
"""Nyströmformer: softmax attention through landmarks (Xiong et al. 2021, arXiv:2102.03902).

The matrix of weights S = softmax(q kᵀ) is approximated from some of its rows and columns (Nyström's method):

    S v ≈ softmax(q K̃ᵀ) · pinv(softmax(Q̃ K̃ᵀ)) · softmax(Q̃ kᵀ) v

The landmarks Q̃ and K̃, `num_landmarks` of each, are the means of segments of queries and keys. The pseudo-inverse is
computed by an iteration of matrix products, and a depth-wise convolution of the values is added to the result.

Departures from the paper:

- Segments consist of the real tokens of each sequence and have nearly equal sizes at every length. Padding is in none.
- The iteration starts at Aᵀ / (‖A‖₁ ‖A‖∞) with the norms of the matrix of one head of one sequence. The authors' code
  takes one maximum over the batch, which makes the result depend on the other sequences.
- A sequence with no more real tokens than landmarks gets full attention.
- The pseudo-inverse is computed in float32 at least. Dropout acts on the weights of the first and the third matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.softmax import attend, resolve_backend
from attention_zoo.masking import masked_softmax
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class NystromConfig(QkvConfig):
    """Options of Nyström attention."""

    num_landmarks: int = option(64, "number of segment means that stand for the tokens (m in the paper)", least=1)
    pinv_iterations: int = option(6, "iterations of the pseudo-inverse", least=1)
    conv_kernel: int = option(
        35, "taps of the depth-wise convolution of the values, odd; 0 for none", least=0, parity="odd"
    )


@register_variant(
    "nystrom",
    title="Nyström attention",
    family="low rank",
    traits=Traits(
        memory="linear",
        complexity="O(n m), m the landmarks",
        exact_limit=lambda length: {"num_landmarks": length, "conv_kernel": 0},
    ),
    paper="Xiong et al. 2021, arXiv:2102.03902",
)
class NystromAttention(SequenceMixer):
    """Softmax attention approximated through landmarks, plus a convolution of the values."""

    config: NystromConfig

    def __init__(self, config: NystromConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        # One kernel for each head: heads are channels, and (length, head_dim) is an image with kernels one pixel wide.
        heads, kernel = dims.num_heads, config.conv_kernel
        self.conv = (
            nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False) if kernel else None
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        heads = self._attend(q, k, v, mask)
        if self.conv is not None:
            heads = heads + self.conv(v if mask is None else v.masked_fill(~mask[:, None, :, None], 0.0))
        return self.projections.merge(heads, mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout, training = self.dims.dropout, self.training
        real = q.new_ones(len(q), q.shape[2], dtype=torch.bool) if mask is None else mask
        means, used = segment_means(real, min(self.config.num_landmarks, q.shape[2]), q.dtype)
        # (batch, 1, m, length) @ (batch, num_heads, length, head_dim): m landmarks of queries and of keys
        q_landmarks, k_landmarks = means @ q, means @ k
        # Third factor: the landmarks attend to all tokens, (batch, num_heads, m, head_dim)
        seen = attend(q_landmarks, k, v, real, dropout=dropout, training=training)
        with torch.autocast(q.device.type, enabled=False):
            dtype = torch.promote_types(q.dtype, torch.float32)
            # Second factor: softmax(Q̃ K̃ᵀ), (batch, num_heads, m, m); zero in rows and columns of unused landmarks
            scores = (q_landmarks.to(dtype) * q.shape[-1] ** -0.5) @ k_landmarks.to(dtype).transpose(-2, -1)
            pairs = masked_softmax(scores, used[:, None, None, :]).masked_fill(~used[:, None, :, None], 0.0)
            values = (pseudo_inverse(pairs, self.config.pinv_iterations) @ seen.to(dtype)).to(q.dtype)
        # If every token is a landmark, `means` picks the tokens, and the values of landmarks are those of tokens.
        all_are_landmarks = (real.sum(dim=1) <= means.shape[2])[:, None, None, None]
        values = torch.where(all_are_landmarks, means @ v, values)
        # First factor: the tokens attend to the landmarks.
        return attend(q, k_landmarks, values, used, dropout=dropout, training=training)

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation in training; see `attention_zoo.kernels.softmax.resolve_backend`."""
        return resolve_backend("auto", device, dropout=self.dims.dropout)


def segment_means(mask: Tensor, num_landmarks: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cut the real tokens of each sequence into segments of nearly equal size.

    Args:
        mask: (batch, length), bool, True = real.
        num_landmarks: Number of segments. A sequence with fewer real tokens has one segment for each of them.
        dtype: Dtype of the weights.

    Returns:
        Weights (batch, 1, num_landmarks, length), whose product with the tokens gives the means of the segments, and
        (batch, num_landmarks), bool, True where there is a segment.
    """
    count = mask.sum(dim=1, keepdim=True)  # real tokens, (batch, 1)
    segments = count.clamp_max(num_landmarks)
    # The n-th real token, from 0, is in segment floor(n * segments / count): sizes differ by one at most.
    segment = (mask.cumsum(dim=1) - 1) * segments // count.clamp_min(1)
    index = torch.arange(num_landmarks, device=mask.device)
    # (batch, num_landmarks, length), True where the token is in the segment
    member = (segment[:, None, :] == index[:, None]) & mask[:, None, :]
    size = member.sum(dim=2, keepdim=True).clamp_min(1)
    return (member.to(dtype) / size)[:, None], index < segments


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Approximate the Moore-Penrose inverse of (..., size, size), each matrix by itself, by the paper's iteration.

    Z ← Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4. An eigenvalue e of the residual I - A Z becomes (3 e³ + e⁴) / 4, so
    that the iteration converges with third order. A matrix of zeros gives zeros.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    magnitude = matrix.abs()
    # ‖A‖₁ ‖A‖∞, the largest sum over a column times that over a row, is at least the square of the largest singular
    # value. Divided by it, Aᵀ is a start from which the iteration converges.
    scale = magnitude.sum(dim=-2).amax(dim=-1) * magnitude.sum(dim=-1).amax(dim=-1)
    inverse = matrix.transpose(-2, -1) / scale.clamp_min(torch.finfo(matrix.dtype).tiny)[..., None, None]
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse
