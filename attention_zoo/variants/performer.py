"""Performer: attention by random features, FAVOR+ (Choromanski et al. 2021, arXiv:2009.14794).

Two kernels. "softmax" estimates exp(q·k / sqrt(d)) without bias by the positive features exp(w·x - |x|² / 2), with x
the query or key over d^(1/4) and w drawn orthogonal. "relu" is the paper's generalised attention as the
benchmark's own code runs it: relu(x) + 0.001, on x itself or, with `num_features`, on its random projections.

Departures from the paper:

- Bidirectional only.
- For the features of keys, the largest exponent over the real keys is taken off for each feature, and put back into
  those of the queries before theirs is taken off: nothing overflows, the normaliser is at least 1, and no small term
  has to be added to the features. The result is the same as without it.
- New features are drawn every `redraw_interval` training steps, by default never, from a seed in the state dict.
- Heads share the features. There are no weights to drop: dropout falls on what the heads return.
- The benchmark's published ListOps configuration has two random features; the default here is 256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.linear_attention import float_features, linear_attention
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant

_RELU_FLOOR = 1e-3
_SOFTMAX_FEATURES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformerConfig(QkvConfig):
    """Options of the Performer.

    Raises:
        ValueError: A number is negative, or there is nothing to redraw.
    """

    kernel: Literal["relu", "softmax"] = option("relu", "relu(x) + 0.001, or positive features that estimate softmax")
    num_features: int = option(0, "random features; 0 is none for relu and 256 for softmax")
    redraw_interval: int = option(0, "training steps after which features are drawn anew; 0 keeps the first ones")

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_features < 0 or self.redraw_interval < 0:
            raise ValueError(f"num_features and redraw_interval may not be negative: {self}")
        if self.redraw_interval and self.kernel == "relu" and self.num_features == 0:
            raise ValueError("redraw_interval: the relu kernel without num_features has nothing to redraw")


@register_variant(
    "performer",
    traits=Traits(memory="linear", complexity="O(n m d), m the features", permutation_equivariant=True),
    paper="Choromanski et al. 2021, arXiv:2009.14794",
)
class Performer(SequenceMixer):
    """Attention whose weights are products of features of queries and of keys.

    The features are a buffer. What decides on the next ones, a seed and the number of steps taken, is in the state
    dict as extra state, which stays on the CPU: no step waits for the device to know whether to redraw.
    """

    config: PerformerConfig
    features: Tensor | None

    def __init__(self, config: PerformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.num_features = config.num_features or (_SOFTMAX_FEATURES if config.kernel == "softmax" else 0)
        self._steps = 0
        self._seed = int(torch.randint(2**31, (), device="cpu").item()) if self.num_features else 0
        self.register_buffer("features", self._draw().to(torch.get_default_dtype()) if self.num_features else None)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        self.check_input(x, mask)
        q, k, v = self.projections.split(x)
        with torch.autocast(x.device.type, enabled=False):
            q, k = float_features(q), float_features(k)
            directions = None if self.features is None else self.features.to(q.dtype)
            if directions is not None and self.config.kernel == "softmax":
                heads = linear_attention(*softmax_features(q, k, directions, mask), v)
            else:
                heads = linear_attention(relu_features(q, directions), relu_features(k, directions), v, mask)
        return self.projections.merge(F.dropout(heads, self.dims.dropout, self.training), mask)

    def after_step(self) -> None:
        """Count the step; after every `redraw_interval` of them in training, draw new features."""
        if self.features is None or self.config.redraw_interval == 0 or not self.training:
            return
        self._steps += 1
        if self._steps % self.config.redraw_interval == 0:
            self.features.copy_(self._draw())

    def get_extra_state(self) -> Tensor:
        """Return (seed, steps taken)."""
        return torch.tensor([self._seed, self._steps], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take up the sequence of draws where the state was saved."""
        self._seed, self._steps = (int(value) for value in state.tolist())

    def _draw(self) -> Tensor:
        redraws = self._steps // max(self.config.redraw_interval, 1)
        generator = torch.Generator("cpu").manual_seed(self._seed + redraws)
        return orthogonal_features(self.num_features, self.dims.head_dim, generator)


def orthogonal_features(num_features: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """Draw (num_features, head_dim), float64: orthogonal within blocks of `head_dim`, each as long as a Gaussian one.

    Every row alone is N(0, I), so that estimates stay without bias; rows of one block are orthogonal, which lowers
    their variance.
    """
    blocks = -(-num_features // head_dim)
    gauss, lengths = (
        torch.randn(blocks, head_dim, head_dim, generator=generator, dtype=torch.float64, device="cpu")
        for _ in range(2)
    )
    q, r = torch.linalg.qr(gauss)
    uniform = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)  # Haar measure, whatever the QR's signs
    return (uniform * lengths.norm(dim=-1, keepdim=True)).flatten(0, 1)[:num_features]


def relu_features(x: Tensor, directions: Tensor | None) -> Tensor:
    """Return relu of x or of its projections, plus 0.001.

    Args:
        x: (batch, num_heads, length, head_dim).
        directions: (num_features, head_dim), or None.

    Returns:
        (batch, num_heads, length, num_features), or head_dim features without directions.
    """
    if directions is not None:
        x = x @ (directions.T / math.sqrt(len(directions)))
    return x.relu() + _RELU_FLOOR


def softmax_features(q: Tensor, k: Tensor, directions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return positive features whose products estimate exp(q·k / sqrt(head_dim)) up to a factor for each query.

    Lemma 1 of the paper. The shifts are constants of a sequence, a head and a feature (keys), or a query (queries),
    and cancel against the normaliser, so no gradient has to pass through them.

    Args:
        q: (batch, num_heads, length, head_dim).
        k: (batch, num_heads, length, head_dim).
        directions: (num_features, head_dim).
        mask: (batch, length), bool, True = real.

    Returns:
        Two tensors (batch, num_heads, length, num_features); masked keys have features of zero.
    """
    q_exponents, k_exponents = _exponents(q, directions), _exponents(k, directions)
    if mask is not None:
        k_exponents = k_exponents.masked_fill(~mask[:, None, :, None], torch.finfo(k.dtype).min)
    with torch.no_grad():
        highest = k_exponents.amax(dim=2, keepdim=True)
        if mask is not None:
            highest = highest.masked_fill(~mask.any(dim=1)[:, None, None, None], 0.0)
        q_highest = (q_exponents + highest).amax(dim=3, keepdim=True)
    return (q_exponents + (highest - q_highest)).exp(), (k_exponents - highest).exp()


def _exponents(x: Tensor, directions: Tensor) -> Tensor:
    scaled = x * x.shape[-1] ** -0.25
    return scaled @ directions.T - scaled.square().sum(dim=-1, keepdim=True) / 2
