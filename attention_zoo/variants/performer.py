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

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.linear_attention import float_features, linear_attention, linear_attention_in_blocks
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant

_RELU_FLOOR = 1e-3
_SOFTMAX_FEATURES = 256
_TOKENS = 512
"""Keys met together in the search for the highest exponents."""


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
    title="Performer",
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
        if self.features is None:
            heads = linear_attention(relu_features(q), relu_features(k), v, mask)
        else:
            estimate = estimate_softmax if self.config.kernel == "softmax" else estimate_relu
            with torch.autocast(x.device.type, enabled=False):
                heads = estimate(
                    float_features(q), float_features(k), float_features(v), float_features(self.features), mask
                ).to(v.dtype)
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


def relu_features(x: Tensor) -> Tensor:
    """Return relu(x) + 0.001 in float32 at least."""
    return float_features(x).relu() + _RELU_FLOOR


def estimate_relu(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with the ReLU of random projections.

    Args:
        q: (batch, num_heads, length, head_dim).
        k: (batch, num_heads, length, head_dim).
        v: (batch, num_heads, length, head_dim).
        directions: (num_features, head_dim).
        mask: (batch, length), bool, True = real.

    Returns:
        (batch, num_heads, length, head_dim).
    """
    projection = directions.T * len(directions) ** -0.5
    return linear_attention_in_blocks(
        q, k, v, mask, lambda q: relu_features(q @ projection), lambda k: relu_features(k @ projection)
    )


def estimate_softmax(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, mask: Tensor | None) -> Tensor:
    """Estimate softmax attention by positive features: lemma 1 of the paper. Shapes as in `estimate_relu`.

    The shifts of the exponents are constants of a sequence, a head and a feature (keys), or of a query (queries, whose
    square is one too). They cancel against the normaliser, so no gradient has to pass through them. What is added to a
    product with the directions goes into the product, as one more column on either side.
    """
    scale = q.shape[-1] ** -0.25
    projection = directions.T.expand(*q.shape[:2], -1, -1)
    k = k * scale
    exponent = -k.square().sum(dim=-1, keepdim=True) / 2
    if mask is not None:
        exponent = exponent.masked_fill(~mask[:, None, :, None], torch.finfo(k.dtype).min / 2)
    k = torch.cat((k, exponent), dim=-1)
    from_keys = F.pad(projection, (0, 0, 0, 1), value=1.0)
    with torch.no_grad():
        parts = [(block @ from_keys).amax(dim=2, keepdim=True) for block in k.split(_TOKENS, dim=2)]
        highest = torch.stack(parts).amax(dim=0)
        if mask is not None:
            highest = highest.masked_fill(~mask.any(dim=1)[:, None, None, None], 0.0)
    from_keys, from_queries = torch.cat((from_keys, -highest), dim=2), torch.cat((projection, highest), dim=2)

    def q_map(q: Tensor) -> Tensor:
        exponents = q @ from_queries
        return (exponents - exponents.detach().amax(dim=3, keepdim=True)).exp()

    q, k = (F.pad(x, (0, 1), value=1.0) for x in (q * scale, k))
    return linear_attention_in_blocks(q, k, v, mask, q_map, lambda k: (k @ from_keys).exp())
