# SPDX-License-Identifier: Apache-2.0
"""Performer: attention by random features, FAVOR+ (Choromanski et al. 2021, arXiv:2009.14794).

There are two kernels:

- "softmax" estimates exp(q·k / sqrt(d)) by random features. With x = q / d^(1/4), y = k / d^(1/4) and w ~ N(0, I),
  exp(x·y) = E[φ(x) φ(y)] for φ(x) = exp(w·x - |x|² / 2) (lemma 1). The estimate is the mean over `num_features`
  directions w, and it is always positive. Directions that are orthogonal to each other lower its variance.
- "relu" is the paper's generalised attention as the code of Long Range Arena runs it: relu(x) + 0.001, on x itself or,
  with `num_features`, on its random projections.

Departures from the paper:

- Bidirectional only.
- The exponents of the features are shifted so that nothing overflows and the normaliser is at least 1. The shifts
  cancel, so the result is the same as without them, and no small term has to be added to the features. All code of
  others adds one (`stabiliser`: 1e-6 in the code of Long Range Arena, 1e-4 in performer-pytorch) to features that are
  shifted to a largest value of 1, which mixes in a uniform average. Where the estimate is good this changes little;
  where it is bad the average wins. For queries and keys of independent normal features in heads of 32, 256 directions
  and 512 tokens, the relative error of the output is 2.29 without it, 2.09 with 1e-6 and 0.83 with 1e-4 (a plain
  average of all values: 0.81); at half their size it is 0.27, 0.27 and 0.26.
- New directions are drawn every `redraw_interval` training steps, by default never, from a seed in the state dict.
- All heads share the directions.
- The weights are never written out, so they cannot be dropped: dropout acts on the outputs of the heads.
- The default is 256 random features. The published ListOps configuration of Long Range Arena has two, and draws new
  ones in every pass, in evaluation too.
- The random features of "relu" are multiplied by num_features^(-1/2). The code of others does not, but divides queries
  and keys by d^(1/4) (performer-pytorch). Weights are normalised, so only the added 0.001 weighs more here, by the
  factor sqrt(num_features) / d^(1/4). With 256 directions in heads of 32 it changes the output by 0.3 % for normal
  features, and by 3 % for a tenth of their size.
- performer-pytorch divides by sqrt(d) itself. Nyströmformer's code hands it queries and keys that are divided already,
  so that its weights are exp(q·k / d): a `temperature` of sqrt(d).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.linear_attention import float_features, linear_attention, linear_attention_in_blocks
from attention_zoo.projections import HeadProjections, QkvConfig
from attention_zoo.registry import register_variant

_RELU_FLOOR = 1e-3
"""Added to relu(x), so that no normaliser is zero."""
_SOFTMAX_FEATURES = 256
"""Features of the softmax kernel if `num_features` is 0."""
_TOKENS = {"cpu": 512, "cuda": 2048}
"""Keys whose exponents are computed together in the search for the highest ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformerConfig(QkvConfig):
    """Options of the Performer.

    Raises:
        ValueError: A number is out of its range, or has no meaning for the kernel.
    """

    kernel: Literal["relu", "softmax"] = option("relu", "relu(x) + 0.001, or positive features that estimate softmax")
    num_features: int = option(0, "number of random features; 0 means none for relu and 256 for softmax", least=0)
    stabiliser: float = option(0.0, "added to each feature of the softmax kernel, whose largest value is 1", least=0.0)
    temperature: float = option(1.0, "divisor of the scores of the softmax kernel, beside sqrt(head_dim)", above=0.0)
    redraw_interval: int = option(
        0, "training steps after which new features are drawn; 0 keeps the first ones", least=0
    )

    def __post_init__(self) -> None:
        """Check the options together."""
        QkvConfig.__post_init__(self)
        if self.kernel == "relu" and (self.stabiliser, self.temperature) != (0.0, 1.0):
            raise ValueError("stabiliser and temperature belong to the softmax kernel; add kernel=softmax")
        if self.redraw_interval and self.kernel == "relu" and self.num_features == 0:
            raise ValueError("redraw_interval: the relu kernel without num_features has nothing to redraw")

    def resolved(self, dims: LayerDims) -> PerformerConfig:  # noqa: ARG002 - the same at all dimensions
        """Return the options with the number of features that 0 means."""
        return replace(self, num_features=self.num_features or (_SOFTMAX_FEATURES if self.kernel == "softmax" else 0))


@register_variant(
    "performer",
    title="Performer",
    family="kernel",
    traits=Traits(memory="linear", complexity="O(n m d), m the features", permutation_equivariant=True),
    paper="Choromanski et al. 2021, arXiv:2009.14794",
)
class Performer(SequenceMixer):
    """Attention whose weights are products of features of queries and of keys.

    The random directions are a buffer. The next ones follow from a seed and the number of training steps, which are in
    the state dict as extra state. Extra state stays on the CPU, so that no step waits for the device to find out
    whether to redraw.
    """

    config: PerformerConfig
    features: Tensor | None
    """(num_features, head_dim): the random directions w, one a row."""

    def __init__(self, config: PerformerConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.num_features = config.resolved(dims).num_features
        self._steps = 0
        self._seed = int(torch.randint(2**31, (), device="cpu").item()) if self.num_features else 0
        self.register_buffer("features", self._draw().to(torch.get_default_dtype()) if self.num_features else None)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        if self.features is None:
            heads = linear_attention(relu_features(q), relu_features(k), v, mask)
        else:
            with torch.autocast(x.device.type, enabled=False):
                heads = self._estimate(
                    float_features(q), float_features(k), float_features(v), float_features(self.features), mask
                ).to(v.dtype)
        # heads: (batch, num_heads, length, head_dim)
        return self.projections.merge(self.dropped(heads), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """The sum of the features of keys times values, and the normaliser, in each head."""
        return self.dims.num_heads * (self.num_features or self.dims.head_dim) * (self.dims.head_dim + 1)

    def _estimate(self, q: Tensor, k: Tensor, v: Tensor, directions: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with random features; shapes are as in `estimate_relu`."""
        if self.config.kernel == "relu":
            return estimate_relu(q, k, v, directions, mask)
        if self.config.temperature != 1.0:
            q, k = (x * self.config.temperature**-0.5 for x in (q, k))
        if self.config.stabiliser:
            return estimate_stabilised(q, k, v, directions, mask, self.config.stabiliser)
        return estimate_softmax(q, k, v, directions, mask)

    def after_step(self) -> None:
        """Count the step; after every `redraw_interval` of them in training, draw new features."""
        if self.features is None or self.config.redraw_interval == 0 or not self.training:
            return
        self._steps += 1
        if self._steps % self.config.redraw_interval == 0:
            drawn = self._draw().to(self.features.dtype)
            if self.features.device.type == "cuda":
                drawn = drawn.pin_memory()  # else the copy would wait
            self.features.copy_(drawn, non_blocking=True)

    def get_extra_state(self) -> Tensor:
        """Return (seed, steps taken)."""
        return torch.tensor([self._seed, self._steps], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Continue the sequence of draws where the state was saved."""
        self._seed, self._steps = (int(value) for value in state.tolist())

    def _draw(self) -> Tensor:
        redraws = self._steps // max(self.config.redraw_interval, 1)
        generator = torch.Generator("cpu").manual_seed(self._seed + redraws)
        return orthogonal_features(self.num_features, self.dims.head_dim, generator)


def orthogonal_features(num_features: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """Draw random directions: orthogonal within blocks of `head_dim` rows, each with the length of a Gaussian vector.

    Each row by itself is N(0, I), so that the estimate has no bias. Rows of one block are orthogonal, which lowers its
    variance (the paper's orthogonal random features).

    Returns:
        (num_features, head_dim), float64.
    """
    # At most head_dim vectors can be orthogonal, so there are several independent blocks.
    blocks = -(-num_features // head_dim)
    gauss, lengths = (
        torch.randn(blocks, head_dim, head_dim, generator=generator, dtype=torch.float64, device="cpu")
        for _ in range(2)
    )
    # The rows of Q are orthonormal. A QR decomposition fixes the signs of its columns by some rule; with the signs of
    # R's diagonal Q is uniform over all rotations (Mezzadri 2007), so that each row points anywhere equally often.
    q, r = torch.linalg.qr(gauss)  # (blocks, head_dim, head_dim)
    uniform = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return (uniform * lengths.norm(dim=-1, keepdim=True)).flatten(0, 1)[:num_features]


def relu_features(x: Tensor) -> Tensor:
    """Return relu(x) + 0.001 in float32 at least."""
    return float_features(x).relu() + _RELU_FLOOR


def estimate_relu(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, mask: Tensor | None) -> Tensor:
    """Compute attention with the ReLU of random projections.

    Args:
        q: (batch, num_heads, length, head_dim).
        k: (batch, num_heads, length, head_dim).
        v: (batch, num_heads, length, head_dim).
        directions: (num_features, head_dim).
        mask: (batch, length), bool, True = real.

    Returns:
        (batch, num_heads, length, head_dim).
    """
    projection = directions.T * len(directions) ** -0.5  # (head_dim, num_features); a mean over the features
    return linear_attention_in_blocks(
        q, k, v, mask, lambda q: relu_features(q @ projection), lambda k: relu_features(k @ projection)
    )


def estimate_softmax(q: Tensor, k: Tensor, v: Tensor, directions: Tensor, mask: Tensor | None) -> Tensor:
    """Estimate softmax attention by positive features (lemma 1 of the paper). Shapes are as in `estimate_relu`.

    The exponents are shifted to keep them from overflowing. A feature of keys is shifted by its largest exponent h over
    the real keys, which the same feature of queries gets back, so that the product is unchanged. A query is shifted by
    its largest exponent. That is a factor of all its weights, which the normaliser cancels; for the same reason its
    -|x|² / 2 can be left out. No gradient has to pass through the shifts, since the result does not depend on them.
    """
    # d^(-1/4) on either side gives q·k / sqrt(d).
    scale = q.shape[-1] ** -0.25
    projection = directions.T.expand(*q.shape[:2], -1, -1)  # (batch, num_heads, head_dim, num_features)
    # A number that is added to w·x for all features goes into the product: as one more column of x, against a row of
    # ones. For keys this is -|y|² / 2, (batch, num_heads, length, 1), and hopelessly low where masked.
    k = k * scale
    exponent = -k.square().sum(dim=-1, keepdim=True) / 2
    if mask is not None:
        exponent = exponent.masked_fill(~mask[:, None, :, None], torch.finfo(k.dtype).min / 2)
    k = torch.cat((k, exponent), dim=-1)
    from_keys = F.pad(projection, (0, 0, 0, 1), value=1.0)  # (batch, num_heads, head_dim + 1, num_features)
    tokens = _TOKENS.get(k.device.type, _TOKENS["cuda"])
    with torch.no_grad():
        # The largest exponent of each feature over the keys, (batch, num_heads, 1, num_features). A few keys at a time:
        # all exponents together would be the largest tensor of the layer.
        parts = [(block @ from_keys).amax(dim=2, keepdim=True) for block in k.split(tokens, dim=2)]
        highest = torch.stack(parts).amax(dim=0)
        if mask is not None:
            # Without any real token the largest exponent is the masking number, which must not be subtracted.
            highest = highest.masked_fill(~mask.any(dim=1)[:, None, None, None], 0.0)
    # -h for keys and +h for queries are one more row of the projections, against a column of ones on the left.
    from_keys, from_queries = torch.cat((from_keys, -highest), dim=2), torch.cat((projection, highest), dim=2)

    def q_map(q: Tensor) -> Tensor:
        exponents = q @ from_queries
        return (exponents - exponents.detach().amax(dim=3, keepdim=True)).exp()

    q, k = (F.pad(x, (0, 1), value=1.0) for x in (q * scale, k))
    return linear_attention_in_blocks(q, k, v, mask, q_map, lambda k: (k @ from_keys).exp())


def estimate_stabilised(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, mask: Tensor | None, stabiliser: float
) -> Tensor:
    """Estimate softmax attention as other code does, with a number that is added to every feature.

    The features are exp(w·x - |x|² / 2 - h) + stabiliser, where h is the largest w·x: for a query over its features,
    for keys over all real keys and features of the head. The shift h does not cancel here; as in performer-pytorch it
    gets no gradient. Shapes are as in `estimate_relu`.
    """
    q, k = (x * x.shape[-1] ** -0.25 for x in (q, k))
    projection, lowest, tokens = directions.T, torch.finfo(k.dtype).min, _TOKENS.get(k.device.type, _TOKENS["cuda"])
    with torch.no_grad():
        hidden = k.new_zeros(1, 1, k.shape[2], 1, dtype=torch.bool) if mask is None else ~mask[:, None, :, None]
        # The largest w·y of each head, (batch, num_heads, 1, 1), a few keys at a time
        parts = [
            (block @ projection).masked_fill(masked, lowest).amax(dim=(2, 3), keepdim=True)
            for block, masked in zip(k.split(tokens, dim=2), hidden.split(tokens, dim=2), strict=True)
        ]
        highest = torch.stack(parts).amax(dim=0)

    def q_map(x: Tensor) -> Tensor:
        products = x @ projection
        shift = products.detach().amax(dim=3, keepdim=True)
        return (products - x.square().sum(dim=-1, keepdim=True) / 2 - shift).exp() + stabiliser

    def k_map(x: Tensor) -> Tensor:
        # Exponents of real keys are below 0 by themselves; those of masked ones may not overflow.
        exponents = x @ projection - x.square().sum(dim=-1, keepdim=True) / 2 - highest
        return exponents.clamp_max(0.0).exp() + stabiliser

    return linear_attention_in_blocks(q, k, v, mask, q_map, k_map)
