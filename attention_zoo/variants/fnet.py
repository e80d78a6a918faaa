# SPDX-License-Identifier: Apache-2.0
"""FNet: the real part of a two-dimensional Fourier transform (Lee-Thorp et al. 2022, arXiv:2105.03824).

Tokens are mixed by a discrete Fourier transform over the width and over the length, of which the real part is kept
(equation 3 of the paper); there are no parameters.

Departures from the paper:

- With `over="real"`, the default, each sequence is transformed over its own real tokens, in their order, so that
  padding changes nothing. The sequences of a batch have different lengths, so the transform is Bluestein's (the chirp
  z-transform), with a chirp for each sequence. The paper, and `over="padded"`, transforms the padded sequence with
  zeros as padding, where every result depends on how far the batch is padded.
- The transform is unitary: it is divided by sqrt(length * dim), so that its result has the scale of its input. The
  paper leaves the scale to a norm that follows, which the blocks of this project do not have.
- There are no weights to drop, so dropout acts on the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.masking import real_first, zero_masked
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class FnetConfig(VariantConfig):
    """Options of FNet."""

    over: Literal["real", "padded"] = option(
        "real", "transform the real tokens of each sequence, or all positions with zeros as padding"
    )


@register_variant(
    "fnet",
    title="FNet",
    family="convolution",
    traits=Traits(memory="linear", complexity="O(n log n)"),
    paper="Lee-Thorp et al. 2022, arXiv:2105.03824",
)
class Fnet(SequenceMixer):
    """Real part of the Fourier transform over the length and the width."""

    config: FnetConfig

    def __init__(self, config: FnetConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform; see `SequenceMixer.forward`."""
        with torch.autocast(x.device.type, enabled=False):
            signal = zero_masked(x, mask).to(torch.promote_types(x.dtype, torch.float32))
            # First over the width, which has no padding: (batch, length, dim), complex.
            spectrum = torch.fft.fft(signal, dim=2, norm="ortho")
            if mask is None or self.config.over == "padded":
                mixed = torch.fft.fft(spectrum, dim=1, norm="ortho").real
            else:
                mixed = transform_real_tokens(spectrum, mask).real
        return zero_masked(self.dropped(mixed.to(x.dtype)), mask)


def transform_real_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Transform each sequence over its real tokens alone, leaving the results in their places.

    A transform of length n has the entries exp(-2πi j k / n). With 2 j k = j² + k² - (k - j)² (Bluestein 1970) this is
    c_j c_k / c_{k-j} for the chirp c_k = exp(-iπ k² / n): a product with c, a convolution with 1 / c, and a product
    with c again. The convolution is computed by transforms of one fixed length, whatever n is, so sequences with
    different n go through the same transforms.

    Args:
        x: (batch, length, dim), complex.
        mask: (batch, length), bool, True = real.

    Returns:
        (batch, length, dim), complex, unitary over the real tokens; zeros at masked positions.
    """
    batch, length = mask.shape
    count = mask.sum(dim=1, keepdim=True).clamp_min(1)  # n of each sequence, (batch, 1)
    place = torch.arange(length, device=x.device)
    in_order = real_first(mask)
    # A linear convolution of two signals of `length` needs 2 * length - 1 places: the next power of two.
    size = 1 << (2 * length - 2).bit_length()

    # c_k, (batch, length), zero beyond n. k² is reduced modulo 2n in integers: the angle is the same up to whole turns,
    # and stays so small that float32 loses no digit of it.
    angle = (place.square() % (2 * count)).to(x.real.dtype) * math.pi / count
    chirp = torch.polar(torch.ones_like(angle), -angle) * (place < count)
    # 1 / c is the conjugate of c. It is even, so the lag -k stands at place size - k of the circle: (batch, size).
    kernel = torch.cat((chirp, chirp.new_zeros(batch, size - 2 * length + 1), chirp[:, 1:].flip(1)), dim=1).conj()

    # Real tokens first, times the chirp, which also removes the others: (batch, length, dim).
    compact = x.gather(1, in_order[..., None].expand_as(x)) * chirp[..., None]
    convolved = torch.fft.ifft(torch.fft.fft(compact, n=size, dim=1) * torch.fft.fft(kernel, dim=1)[..., None], dim=1)
    spectrum = convolved[:, :length] * (chirp / count.to(angle.dtype).sqrt())[..., None]

    # The n-th real token has its result at place n.
    back = (mask.cumsum(dim=1) - 1).clamp_min(0)
    return spectrum.gather(1, back[..., None].expand_as(spectrum)) * mask[..., None]
