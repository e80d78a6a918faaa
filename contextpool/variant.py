# SPDX-License-Identifier: Apache-2.0
"""ContextPool (Huang, Talbott, Jaitly and Susskind 2022, arXiv:2207.01844) in front of any variant, and its control.

Before attention, `contextpool` replaces each token by a weighted average of its neighbourhood,

    y_i = Σ_j w_j g_ij x_j / Σ_j w_j g_ij,    g_ij = exp(-(i - j)² / (2 width_i²)),

with a weight w for each token and a width for its neighbourhood, which two convolutions predict.
`contextpool_conv_only`, the control, has the same convolutions and no pooling.

`placement` is `branch` (only what attention reads is pooled) or `stream` (the stream itself is pooled between blocks).
docs/contextpool.md says what is the paper's and what is ours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Self, get_type_hints

import torch
from torch import Tensor, nn

from attention_zoo.base import (
    LayerDims,
    OptionError,
    ParameterGroup,
    SequenceMixer,
    Traits,
    VariantConfig,
    option,
    same_value,
)
from attention_zoo.masking import zero_masked
from attention_zoo.position_bias import Bias, PositionBiasConfig
from attention_zoo.registry import UnknownVariantError, VariantSpec, get_variant, register_variant
from contextpool.backends.grid import resolve_grid_backend
from contextpool.config import PoolConfig, PredictorConfig
from contextpool.functional import resolve_backend
from contextpool.module import ContextPool
from contextpool.predictor import Predictor

Placement = Literal["branch", "stream"]


@dataclass(frozen=True, kw_only=True)  # no slots: two bases with slots cannot meet in one class
class WrapperConfig(VariantConfig):
    """Options of a module in front of a base variant: which base, and where the module stands.

    Raises:
        OptionError: There is no such variant, or it refuses its options.
    """

    base: str = option("full", "variant that reads the pooled tokens")
    base_options: Mapping[str, Any] = field(default_factory=dict, metadata={"help": "options of that variant"})
    rotary: bool = option(False, "rotary positions in the base variant (its option of this name)")
    bias: Bias = option("none", "position bias in the base variant (its option of this name), by distances of tokens")
    placement: Placement = option(
        "branch",
        "branch: only what the base reads is pooled, in every block; stream: the residual stream itself is pooled, "
        "between blocks",
    )
    grid: Literal["off", "auto"] = option("off", "auto: two-dimensional where the tokens are the pixels of an image")

    def __post_init__(self) -> None:
        """Check the base and its options, and write them in one form: one model has one run id.

        `base_options` keeps what differs from the defaults of the base; `rotary` and a position bias are never in it.
        """
        VariantConfig.__post_init__(self)
        spec, options = self.base_spec(), self.base_config().to_dict()
        defaults = spec.config().to_dict()
        object.__setattr__(self, "base", spec.name)
        if self._base_has_rotary():
            object.__setattr__(self, "rotary", options.pop("rotary"))
        if self._base_has_bias():
            object.__setattr__(self, "bias", options.pop("bias"))
        changed = {name: value for name, value in options.items() if not same_value(value, defaults[name])}
        object.__setattr__(self, "base_options", changed)

    def resolved(self, dims: LayerDims) -> Self:
        """Return the options with those of the base, too, resolved."""
        return replace(super().resolved(dims), base_options=self.base_config().resolved(dims).to_dict())

    def in_one_form(self, dims: LayerDims, usual: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """Return the options with those of the base, too, in one form."""
        inner = replace(self, base_options=self.base_config().in_one_form(dims).to_dict())
        return super(WrapperConfig, inner).in_one_form(dims, usual)

    def inner_variants(self) -> dict[str, VariantConfig]:
        """Return the base."""
        return {self.base: self.base_config()}

    def base_spec(self) -> VariantSpec:
        """Find the base variant.

        Raises:
            OptionError: There is none of this name.
        """
        try:
            return get_variant(self.base)
        except UnknownVariantError as error:
            raise OptionError(f"base: {error}") from error

    def base_config(self) -> VariantConfig:
        """Build the options of the base variant.

        Raises:
            OptionError: It refuses them.
        """
        options = {**self.base_options}
        if self.rotary:
            options["rotary"] = True
            if not self._base_has_rotary():
                raise OptionError(f"rotary: {self.base} has no rotary positions")
        if self.bias != "none":
            options["bias"] = self.bias
            if not self._base_has_bias():
                raise OptionError(f"bias: {self.base} takes no position bias")
        try:
            return self.base_spec().config.from_dict(options)
        except OptionError as error:
            if str(error).startswith("base: "):
                raise
            raise OptionError(f"base_options of {self.base}: {error}") from error

    def _base_has_rotary(self) -> bool:
        """Say whether the base has an option `rotary` that is off unless it is set, and not of another kind."""
        config = self.base_spec().config
        return get_type_hints(config).get("rotary") is bool and config().to_dict()["rotary"] is False

    def _base_has_bias(self) -> bool:
        """Say whether the base has an option `bias` that is a position bias, and not of another kind."""
        return issubclass(self.base_spec().config, PositionBiasConfig)


@dataclass(frozen=True, kw_only=True)
class ContextPoolConfig(WrapperConfig, PoolConfig):
    """Options of pooling in front of a variant."""

    def resolved(self, dims: LayerDims) -> Self:
        """Return the options with the lengths, too, that 0 means where all sequences have one reference length."""
        longest = longest_pooled(dims) if dims.causal else 0
        reference = self.reference_of(dims.grid if self.grid == "auto" else None, longest)
        return replace(
            super().resolved(dims), reference_length=reference, initial_length=self.initial_length or reference
        )


@dataclass(frozen=True, kw_only=True)
class ConvOnlyConfig(WrapperConfig, PredictorConfig):
    """Options of the control."""


def longest_pooled(dims: LayerDims) -> int:
    """Return the length of the longest sequence without its prefix tokens, which are not pooled."""
    return max(1, dims.max_length - dims.num_prefix)


class _WrappedMixer(SequenceMixer):
    """A base variant with a module in front of it, in the branch that the base reads or in the stream."""

    config: WrapperConfig

    def __init__(self, config: WrapperConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.base = config.base_spec().build(config.base_config(), dims)
        self.in_stream = config.placement == "stream"
        # The name `front` is in the digests of recorded weights, so it stays.
        self.front = None if self.in_stream and dims.layer == 0 else self.build_front()

    @abstractmethod
    def build_front(self) -> nn.Module:
        """Build the module in front of the base; it maps (x, mask) to a tensor like x, (batch, length, dim)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform what the base reads, unless that is done in the stream, and run the base."""
        if self.front is not None and not self.in_stream:
            x = self.front(x, mask)
        return self.base(x, mask)

    def transform_stream(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform the stream between blocks if that is the placement, then let the base do so."""
        if self.front is not None and self.in_stream:
            x = self.front(zero_masked(x, mask), mask)
        return self.base.transform_stream(x, mask)

    def auxiliary_loss(self) -> Tensor | None:
        """Return the auxiliary loss of the base."""
        return self.base.auxiliary_loss()

    def after_step(self) -> None:
        """Let the base do what it does after a step."""
        self.base.after_step()

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Return the groups of the base, with the names that its parameters have here."""
        return {f"base.{name}": group for name, group in self.base.parameter_groups().items()}

    def statistics(self) -> dict[str, Tensor]:
        """Return the statistics of the base."""
        return self.base.statistics()

    def token_statistics(self) -> dict[str, Tensor]:
        """Return the statistics of the base for each token."""
        return self.base.token_statistics()

    def resolved_backend(self, device: torch.device) -> str:
        """Name the backend of the base."""
        return self.base.resolved_backend(device)

    def grid(self) -> tuple[int, int] | None:
        """Return the grid to work on, None for a sequence."""
        return self.dims.grid if self.config.grid == "auto" else None


@register_variant(
    "contextpool",
    title="ContextPool",
    family="attention",
    traits=Traits(
        memory="linear",
        complexity="O(n) + base",
        causal=True,
        exact_limit=lambda length: {"weights": "uniform", "sigma": "fixed", "initial_sigma": 0.05},  # noqa: ARG005
    ),
    paper="Huang et al. 2022, arXiv:2207.01844",
)
class ContextPoolMixer(_WrappedMixer):
    """Pool every token's neighbourhood, adaptively, and let the base variant mix the pooled tokens.

    With `placement="branch"` the residual keeps the tokens as they were and only the base reads pooled ones, in every
    block. With `placement="stream"` the stream itself is pooled between blocks, that is before all blocks but the
    first, which has no predictor then. The traits are those with full attention as the base.
    """

    config: ContextPoolConfig

    def __init__(self, config: ContextPoolConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)

    def build_front(self) -> ContextPool:
        """Build the pooling."""
        dims = self.dims
        return ContextPool(
            dims.dim,
            self.config,
            causal=dims.causal,
            max_length=longest_pooled(dims),
            num_prefix=dims.num_prefix,
            grid=self.grid(),
        )

    def statistics(self) -> dict[str, Tensor]:
        """Return the statistics of the base, and mean and quantiles of sigma."""
        return self.base.statistics() | (self.front.statistics() if isinstance(self.front, ContextPool) else {})

    def token_statistics(self) -> dict[str, Tensor]:
        """Return the statistics of the base for each token, and sigma."""
        sigma = self.front.last_sigma if isinstance(self.front, ContextPool) else None
        return self.base.token_statistics() | ({} if sigma is None else {"sigma": sigma})

    def resolved_backend(self, device: torch.device) -> str:
        """Name the implementation of the pooling at the longest length, then that of the base."""
        base, grid, dims = self.base.resolved_backend(device), self.grid(), self.dims
        if self.front is None:
            return base
        if grid is not None:
            return f"{resolve_grid_backend(grid, self.config.backend)} + {base}"
        pooling = resolve_backend(
            longest_pooled(dims),
            device,
            causal=dims.causal,
            backend=self.config.backend,
            dtype=next(self.parameters()).dtype,
        )
        return f"{pooling} + {base}"

    def state_size(self, length: int) -> int | None:
        """What the base keeps, and all tokens, which the Gaussians reach."""
        base = self.base.state_size(length)
        return base if base is None or self.front is None else base + length * self.dims.dim


@register_variant(
    "contextpool_conv_only",
    title="ContextPool control",
    family="control",
    traits=Traits(memory="linear", complexity="O(n) + base", causal=True),
    paper="none: a control for Huang et al. 2022, arXiv:2207.01844",
)
class ContextPoolConvOnly(_WrappedMixer):
    """The control of `contextpool`: the same convolutions with the same parameters, and no pooling."""

    config: ConvOnlyConfig

    def __init__(self, config: ConvOnlyConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)

    def build_front(self) -> Gate:
        """Build the gate."""
        return Gate(self.config, self.dims, self.grid())

    def state_size(self, length: int) -> int | None:
        """What the base keeps, and the other tokens under the two convolutions."""
        base = self.base.state_size(length)
        if base is None or not isinstance(self.front, Gate):
            return base
        # On a grid, read row by row, a token is a row and a column away from the next tap.
        grid, taps = self.grid(), self.config.kernel_size - 1
        under = min(length, taps * (1 if grid is None else grid[1] + 1))
        return base + under * (self.dims.dim + self.front.predictor.inner.out_channels)


class Gate(nn.Module):
    """Scale each token by what the convolutions of ContextPool find around it, and leave its neighbours out of it.

    y = x (1 + tanh(a)) on the first half of the features and x (1 + tanh(b)) on the second, with a, b = m(x). Every
    parameter of the predictor is there and at work, and the gate starts near the identity. Prefix tokens are left as
    they are.
    """

    def __init__(self, config: PredictorConfig, dims: LayerDims, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.num_prefix, self.grid = dims.num_prefix, grid
        self.predictor = Predictor(
            dims.dim, config, outputs=2, num_biases=1, causal=dims.causal, planar=grid is not None
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gate (batch, length, dim)."""
        prefix, x = x[:, : self.num_prefix], x[:, self.num_prefix :]
        mask = None if mask is None else mask[:, self.num_prefix :]
        gates = [1.0 + logit.tanh().to(x.dtype).unsqueeze(-1) for logit in self.predictor(x, mask, self.grid)]
        # Two gates, (batch, length, 1) each, for the two halves of the features.
        halves = x.tensor_split(2, dim=-1)
        y = torch.cat([half * gate for half, gate in zip(halves, gates, strict=True)], dim=-1)
        return torch.cat((prefix, y), dim=1)
