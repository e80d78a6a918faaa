# SPDX-License-Identifier: Apache-2.0
"""Multi-scale convolution: a kernel as long as the sequence, made of short ones at scales that double.

`kind="interpolated"` is SGConv (Li, Cai, Zhang, Chen and Dey 2022, arXiv:2210.09298). The kernel of a channel is a
concatenation of pieces of d weights w_s each. Piece s is stretched by linear interpolation to 2^max(s - 1, 0) times its
length and multiplied by decay^s, so that what is far away is seen coarsely and weighs little:

    K = [w_0, decay w_1, decay² stretch_2(w_2), decay³ stretch_4(w_3), ...] / Z,

where Z makes the norm of K one at the start of training.

`kind="dilated"` has the same weights with the dilations 1, 2, 4, ... instead: K is the sum over s of decay^s w_s, with
2^s - 1 zeros between two neighbouring weights. Both kinds are fixed neighbourhoods of many sizes. A mixer that adapts
its neighbourhood to the token has to be better than these.

From SGConv are the pieces, their decay, Z, a skip weight for each channel, a GELU, and the output map with a gate
(GLU). From the multi-scale state space model MS-SSM (Karami et al. 2025, arXiv:2512.23824) is only the idea of short
kernels at several dilations: its ablation reaches nearly the whole result on ListOps with dilated convolutions alone.

Departures:

- All channels have the same decay. The authors of SGConv have code to spread it over the channels.
- `kernel_size=0` takes as many weights as full attention has, but four scales or more, so that a wide layer for short
  sequences has fewer weights. SGConv sets d for each task.
- The second direction starts at the next token, so that a token meets itself once. Causal models look back only.
- Masked tokens count as zeros.
- All parameters learn at the model's rate; the authors use a rate of 0.001 for the kernels.
- MS-SSM filters the result of one scale for the next, has a state space at each scale, and mixes the scales by the
  content of the token. Here all scales read the input, and their weights are fixed: with weights from the content this
  would not be a control.
- The number of heads and rotary positions have no meaning here and are not used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, option
from attention_zoo.kernels.long_convolution import long_convolution
from attention_zoo.masking import zero_masked
from attention_zoo.projections import initialise
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiscaleConvConfig(VariantConfig):
    """Options of the multi-scale convolution.

    Raises:
        ValueError: A value is out of its range.
    """

    kind: Literal["interpolated", "dilated"] = option("interpolated", "stretch the short kernels, or put gaps in them")
    kernel_size: int = option(
        0,
        "weights of a channel at each scale (d); 0 gives as many as full attention has, in four scales or more",
        least=0,
    )
    decay: float = option(
        0.5, "factor of the weights from one scale to the next, above 0 and at most 1", above=0.0, most=1.0
    )

    def __post_init__(self) -> None:
        """Check the options together."""
        VariantConfig.__post_init__(self)
        if self.kernel_size == 1 and self.kind == "dilated":
            raise ValueError("kernel_size 1 sees only the token itself when dilated; give 2 or more")

    def resolved(self, dims: LayerDims) -> MultiscaleConvConfig:
        """Return the options with the size that 0 means."""
        directions = 1 if dims.causal else 2
        # The output map has 2 dim² weights, which leaves 2 dim of full attention's 4 dim² to each channel.
        size = self.kernel_size or _largest_size(2 * dims.dim // directions, dims.max_length)
        return replace(self, kernel_size=size)


@register_variant(
    "multiscale_conv",
    title="Multi-scale convolution",
    family="convolution",
    traits=Traits(memory="linear", complexity="O(n log n)", causal=True),
    paper="Li et al. 2022, arXiv:2210.09298; dilated: after Karami et al. 2025, arXiv:2512.23824",
)
class MultiscaleConv(SequenceMixer):
    """Every channel is convolved with its own long kernel, whose resolution halves with each doubling of the distance.

    Kernel and FFT are computed in float32 (float64 for float64 inputs), under autocast too.
    """

    config: MultiscaleConvConfig
    norm: Tensor

    def __init__(self, config: MultiscaleConvConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        directions = 1 if dims.causal else 2
        size = config.resolved(dims).kernel_size
        # w, (directions, scales, dim, kernel_size)
        self.weight = nn.Parameter(torch.randn(directions, _num_scales(size, dims.max_length), dims.dim, size))
        self.skip = nn.Parameter(torch.randn(dims.dim))
        self.out = nn.Linear(dims.dim, 2 * dims.dim, bias=dims.qkv_bias)
        initialise(self.out)
        # Z, (directions, dim, 1)
        self.register_buffer("norm", torch.ones(directions, dims.dim, 1))
        with torch.no_grad():
            self.norm = self.kernels(dims.max_length, self.weight.dtype).norm(dim=-1, keepdim=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolve over the length; see `SequenceMixer.forward`."""
        signal = zero_masked(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            signal = signal.to(torch.promote_types(x.dtype, torch.float32))
            mixed = long_convolution(signal, *self.kernels(x.shape[1], signal.dtype)) + self.skip * signal
        hidden = self.dropped(F.gelu(mixed.to(x.dtype)))
        return zero_masked(F.glu(self.out(hidden)), mask)

    def state_size(self, length: int) -> int:
        """All tokens that the kernels reach: their weights follow no recurrence."""
        directions, scales, dim, size = self.weight.shape
        reach = length if self.config.kind == "interpolated" else directions * (size - 1) * 2 ** (scales - 1)
        return min(length, reach) * dim

    def kernels(self, length: int, dtype: torch.dtype) -> Tensor:
        """Compute the kernels, (directions, dim, length); a shorter one is the start of a longer one."""
        weights = [each * self.config.decay**scale for scale, each in enumerate(self.weight.to(dtype).unbind(1))]
        if self.config.kind == "dilated":
            kernel = torch.zeros_like(weights[0][..., :1]).expand(-1, -1, length)
            for scale, each in enumerate(weights):
                kernel = kernel + _dilate(each, 2**scale, length)
        else:
            size = self.weight.shape[-1]
            pieces = [
                _stretch(each, 2 ** max(scale - 1, 0))
                for scale, each in enumerate(weights[: _num_scales(size, length)])  # the others begin behind the end
            ]
            kernel = torch.cat(pieces, dim=-1)[..., :length]
        return kernel / self.norm.to(dtype)


def _num_scales(size: int, length: int) -> int:
    """Count the pieces that cover a length: the first has `size` positions, and each further one doubles the sum."""
    return 1 + (-(-length // size) - 1).bit_length()


def _largest_size(weights: int, length: int) -> int:
    """Return the largest size with which all pieces together have at most so many weights; at least 2.

    It is at most an eighth of the length: with fewer than four scales there would be little to call multi-scale.
    """
    sizes = range(2, length // 8 + 1)
    return max((size for size in sizes if size * _num_scales(size, length) <= weights), default=2)


def _stretch(weight: Tensor, factor: int) -> Tensor:
    """Interpolate (..., size) linearly to (..., size * factor); the ends are held.

    The weights stand in the middle of their `factor` positions. `torch.nn.functional.interpolate` gives the same, but
    its gradient on a GPU is not the same twice.
    """
    if factor == 1:
        return weight
    # Place of each position relative to the weight whose positions it belongs to, between -1/2 and 1/2
    place = (torch.arange(factor, dtype=weight.dtype, device=weight.device) + 0.5) / factor - 0.5
    # Shares of the weight before, the weight itself and the weight after: (3, factor)
    shares = torch.stack(((-place).clamp_min(0.0), 1.0 - place.abs(), place.clamp_min(0.0)))
    held = torch.cat((weight[..., :1], weight, weight[..., -1:]), dim=-1)
    # (..., size, 3) @ (3, factor)
    return (torch.stack((held[..., :-2], weight, held[..., 2:]), dim=-1) @ shares).flatten(-2)


def _dilate(weight: Tensor, factor: int, length: int) -> Tensor:
    """Put factor - 1 zeros behind each weight of (..., size), and cut or fill up to (..., length)."""
    within = weight[..., : -(-length // factor), None]
    spread = F.pad(within, (0, factor - 1)).flatten(-2)
    return F.pad(spread, (0, length - spread.shape[-1]))  # a negative number cuts
