# SPDX-License-Identifier: Apache-2.0
"""Adaptive attention span (Sukhbaatar, Grave, Bojanowski and Joulin 2019, arXiv:1905.07799).

Every head learns how far it looks. At distance x its weights are multiplied by m(x) = clamp((R + z - x) / R, 0, 1) and
normalised again. The span z = S z' is learned by the head, with z' in [0, 1]; R is the width of the ramp and S the
longest length. A penalty on the mean span, penalty * S * mean(z'), is added to the loss.

With `span="dynamic"` every token has its own span, z_t = S sigmoid(v x_t + b).

Departures from the paper, which models language with a causal Transformer:

- The distance is |i - j|, to both sides, and a token sees itself, at distance 0. Causal models look back only.
- There are no relative positions; positions belong to the model (or to `rotary` and `bias`), as for every variant.
- Prefix tokens such as CLS have no position: they see and are seen at distance 0.
- A dynamic span starts at one ramp or more, where the sigmoid still has a slope.
- Spans learn at `span_rate` times the model's rate, by default ten times. The authors' code has one rate for all, 0.07
  with Adagrad. Under Adam z' moves by about the rate in a step: at 1e-4 it would take 10,000 steps to the longest span.
- The penalty of dynamic spans is on the mean span of the real tokens.
- R is 32 as in the authors' experiments, or a sixteenth of the longest length if that is below 512.

On a CPU keys out of reach of the longest span are never multiplied, so a short span saves time and memory. A GPU would
have to stop to tell how long it is, and meets all keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, ParameterGroup, SequenceMixer, Traits, option
from attention_zoo.kernels.adaptive_span import Band, spanned_attention
from attention_zoo.masking import zero_masked
from attention_zoo.position_bias import PositionBiasConfig, make_bias
from attention_zoo.projections import HeadProjections
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveSpanConfig(PositionBiasConfig):
    """Options of the adaptive span.

    Raises:
        ValueError: A value is out of its range.
    """

    span: Literal["static", "dynamic"] = option("static", "one span for each head, or one for each head and token")
    ramp: int = option(
        0, "tokens over which the mask falls from 1 to 0 (R); 0 means 32, or 1/16 of short lengths", least=0
    )
    initial_span: float = option(
        0.0, "span at the start as a fraction of the longest length; 1 starts as full attention", least=0.0, most=1.0
    )
    penalty: float = option(2e-6, "weight of the mean span, in tokens, in the loss of a layer", least=0.0)
    span_rate: float = option(10.0, "factor of the learning rate of the spans; 1 in the authors' code", above=0.0)

    def __post_init__(self) -> None:
        """Check the options together."""
        PositionBiasConfig.__post_init__(self)
        if self.ramp == 1 and self.span == "static" and self.initial_span == 0.0:
            raise ValueError(
                "ramp 1 with initial_span 0 never sees a neighbour and cannot learn to; use 0, or 2 or more"
            )

    def resolved(self, dims: LayerDims) -> AdaptiveSpanConfig:
        """Return the options with the ramp that 0 means."""
        return replace(self, ramp=self.ramp or (32 if dims.max_length >= 512 else max(2, round(dims.max_length / 16))))


@register_variant(
    "adaptive_span",
    title="Adaptive span",
    family="sparse",
    traits=Traits(
        memory="linear",
        complexity="O(n S), S the longest span",
        causal=True,
        exact_limit=lambda length: {"initial_span": 1.0},  # noqa: ARG005 - true at every length
    ),
    paper="Sukhbaatar et al. 2019, arXiv:1905.07799",
)
class AdaptiveSpan(SequenceMixer):
    """Softmax attention in which every head learns how far it looks."""

    config: AdaptiveSpanConfig

    def __init__(self, config: AdaptiveSpanConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.bias = make_bias(config, dims)
        self.ramp = config.resolved(dims).ramp
        self.span = (
            StaticSpans(dims, config.initial_span)
            if config.span == "static"
            else DynamicSpans(dims, config.initial_span, least=self.ramp)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within the spans; see `SequenceMixer.forward`."""
        q, k, v = self.projections.split(x)
        span = self.span(x, mask)  # (1 or batch, num_heads, 1 or length)
        dropout = self.dims.dropout if self.training else 0.0
        band = Band(self.ramp, self.dims.causal, self.dims.num_prefix, dropout)
        bias = None if self.bias is None else self.bias(x.shape[1], x.shape[1])
        return self.projections.merge(spanned_attention(q, k, v, span, mask, band, bias), mask)

    def state_size(self, length: int) -> int:
        """Keys and values of all tokens, since spans can grow to the longest length."""
        return self.projections.cache_size(length)

    def auxiliary_loss(self) -> Tensor | None:
        """Return the penalty on the mean span in tokens; for dynamic spans, that of the last pass in training."""
        mean = self.span.mean()
        return None if mean is None or self.config.penalty == 0.0 else self.config.penalty * mean

    def after_step(self) -> None:
        """Bring static spans back into [0, S]."""
        self.span.after_step()

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Let the spans learn faster: Adam moves z' by at most a learning rate a step."""
        return {f"span.{self.span.fast_parameter}": ParameterGroup(rate=self.config.span_rate)}

    def statistics(self) -> dict[str, Tensor]:
        """Return the mean and the longest span in tokens; for dynamic spans, those of the last pass."""
        return {f"span_{name}": value.detach() for name, value in self.span.summary().items()}

    def resolved_backend(self, device: torch.device) -> str:  # noqa: ARG002 - the same everywhere
        """Name the one implementation."""
        return "banded"


class StaticSpans(nn.Module):
    """One span for each head: S z', with z' a parameter in [0, 1]."""

    fast_parameter = "fraction"

    def __init__(self, dims: LayerDims, initial: float) -> None:
        super().__init__()
        self.max_length = dims.max_length
        self.fraction = nn.Parameter(torch.full((dims.num_heads,), initial))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ARG002 - the same for every input
        """Return the spans in tokens, (1, num_heads, 1)."""
        return self._spans().view(1, -1, 1)

    def mean(self) -> Tensor:
        """Average over the heads."""
        return self._spans().mean()

    def summary(self) -> dict[str, Tensor]:
        """Return the mean and the longest span."""
        return {"mean": self._spans().mean(), "longest": self._spans().max()}

    def after_step(self) -> None:
        """Clamp z'."""
        with torch.no_grad():
            self.fraction.clamp_(0.0, 1.0)

    def _spans(self) -> Tensor:
        return self.fraction.to(torch.promote_types(self.fraction.dtype, torch.float32)) * self.max_length


class DynamicSpans(nn.Module):
    """One span for each head and token: S sigmoid(v x_t + b)."""

    fast_parameter = "bias"

    def __init__(self, dims: LayerDims, initial: float, *, least: int) -> None:
        super().__init__()
        self.max_length = dims.max_length
        # Start values away from 0 and 1, where the sigmoid has no slope; the bias is the inverse sigmoid of the start.
        lowest, highest = min(0.5, least / dims.max_length), 1.0 - 0.5 / dims.max_length
        start = min(max(initial, lowest), highest)
        self.weight = nn.Parameter(torch.zeros(dims.num_heads, dims.dim))
        self.bias = nn.Parameter(torch.full((dims.num_heads,), math.log(start / (1.0 - start))))
        self._summary: dict[str, Tensor] = {}
        self._mean: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the spans in tokens, (batch, num_heads, length), zero where masked."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = nn.functional.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
        # (batch, length, num_heads)
        spans = zero_masked(self.max_length * logits.sigmoid(), mask)
        count = spans.shape[0] * spans.shape[1] if mask is None else mask.sum().clamp_min(1)
        mean = spans.mean(dim=-1).sum() / count
        self._mean = mean if self.training and mean.requires_grad else None
        self._summary = {"mean": mean.detach(), "longest": spans.detach().max()}
        return spans.transpose(1, 2)

    def mean(self) -> Tensor | None:
        """Average over the heads and real tokens of the last pass in training; None before one."""
        return self._mean

    def summary(self) -> dict[str, Tensor]:
        """Return the mean and the longest span of the last pass."""
        return self._summary

    def after_step(self) -> None:
        """Release the graph of the last pass."""
        self._mean = None
