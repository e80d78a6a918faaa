# SPDX-License-Identifier: Apache-2.0
"""`model.family: convnet`: a small residual network for tasks whose tokens are pixels, with a choice of pooling.

A model of the open track, for one question: what does a pooling layer with learnt weights and widths bring a ConvNet?
The plan is that of K. He et al., "Identity mappings in deep residual networks" (arXiv:1603.05027), with group
normalisation (Y. Wu and K. He, arXiv:1803.08494), so that no example depends on the others of its batch.

It reads these fields of the `model` section: `dim` (channels of the first stage; the next ones have 2 and 4 times as
many), `num_layers` (residual blocks per stage), `pool`, `dropout`, `activation`, `embedding_rows`, `embedding_std`,
`norm_eps`, `head_hidden` and `max_length`. The others concern transformers only.

It has no place for a sequence mixer: its own convolutions mix. Runs of it are therefore named `--attn conv`, without
options, and every other name is refused, so that no table names an attention that took no part. `lra-run` needs neither
that name nor `--track open` beside `--set model.family=convnet`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.kernels.dropout import Dropout
from attention_zoo.masking import zero_masked
from lra.config.schema import ModelConfig, VariantChoice
from lra.models.downsamplers import UnknownDownsamplerError, get_downsampler
from lra.models.padding import hide_padding
from lra.tasks.base import TaskInfo

READS = (
    "family", "pool", "dim", "num_layers", "dropout", "activation", "embedding_rows", "embedding_std", "norm_eps",
    "head_hidden", "max_length", "norm", "norm_placement", "pool_origin",
)  # fmt: skip
"""Fields of the `model` section that count for this family, with those that are refused by name."""
VARIANT = "conv"
"""The one variant that a run of this family may name."""
STAGES = 3
Activation = Callable[[], nn.Module]


def family_problems(model: ModelConfig, info: TaskInfo, variant: VariantChoice, *, whole_model: bool) -> list[str]:
    """List what does not fit in a configuration, one line each, for every family of models.

    Args:
        model: The model.
        info: The task.
        variant: The variant and its options.
        whole_model: Whether the variant builds a whole model.
    """
    if whole_model != (model.family == "foreign"):
        what = (
            "builds a whole model, whose family is 'foreign'"
            if whole_model
            else "is no whole model; see lra-run --model"
        )
        return [f"model.family: {variant.name} {what} (got {model.family!r})"]
    for name in ("norm", "norm_placement") if model.family != "transformer" else ():
        if getattr(model, name) != ModelConfig.model_fields[name].default:
            return [f"model.{name}: only model.family=transformer has it (got {getattr(model, name)!r})"]
    if model.family != "convnet":
        if model.pool != "max":
            return [f"model.pool: only model.family=convnet has poolings (got {model.pool!r})"]
        return []
    problems = []
    if variant.name != VARIANT:
        problems.append(
            "model.family: a convnet mixes by its own convolutions, so its variant is "
            f"{VARIANT!r}, not {variant.name!r}"
        )
    elif variant.typed != type(variant.typed)():
        problems.append(f"model.family: a convnet has no mixer, so variant {VARIANT!r} takes no options with it")
    if info.grid is None or info.paired:
        problems.append(f"model.family: task {info.name!r} has no images for a convnet")
    try:
        get_downsampler(model.pool)
    except UnknownDownsamplerError as error:
        problems.append(f"model.pool: {error.args[0]}")
    return problems


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), both convolutions 3 by 3."""

    def __init__(self, channels: int, config: ModelConfig, activation: Activation) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _norm(channels, config),
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
            _norm(channels, config),
            activation(),
            Dropout(config.dropout),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, rows, columns) to the same shape."""
        return x + self.branch(x)


class ConvNet(nn.Module):
    """Three stages of residual blocks, each but the first after a pooling that halves rows and columns.

    Args:
        config: The model.
        tokens: Maps each pixel to a vector of `config.dim`.
        grid: Rows and columns of the image.
        num_classes: Width of the logits.
        activation: What makes an activation.
        zero_is_padding: Hide pixels of value 0 like padding.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokens: nn.Module,
        grid: tuple[int, int],
        num_classes: int,
        activation: Activation,
        *,
        zero_is_padding: bool,
    ) -> None:
        super().__init__()
        self.grid, self.zero_is_padding = grid, zero_is_padding
        self.tokens = tokens
        channels = config.dim
        layers: list[nn.Module] = [nn.Conv2d(channels, channels, 3, padding=1)]
        for stage in range(STAGES):
            if stage > 0:
                layers += [get_downsampler(config.pool)(channels, 2), nn.Conv2d(channels, 2 * channels, 1)]
                channels *= 2
            layers += [ResidualBlock(channels, config, activation) for _ in range(config.num_layers)]
        self.stages = nn.Sequential(*layers, _norm(channels, config), activation())
        self.hidden = nn.Linear(channels, config.head_hidden) if config.head_hidden else None
        self.out = nn.Linear(config.head_hidden or channels, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify images.

        Args:
            tokens: (batch, rows * columns), integers, pixels in row-major order.
            mask: Shaped like `tokens`, bool, True = real pixel; None = all real. Others enter as zeros.

        Returns:
            Logits (batch, num_classes).

        Raises:
            ValueError: The tokens do not fill the grid.
        """
        rows, columns = self.grid
        if tokens.shape[1:] != (rows * columns,):
            raise ValueError(f"a convnet for {rows} x {columns} pixels got tokens of shape {tuple(tokens.shape)}")
        tokens, mask = hide_padding(tokens, mask, zero_is_padding=self.zero_is_padding)
        x = zero_masked(self.tokens(tokens), mask)  # (batch, rows * columns, channels)
        # (batch, channels, rows, columns) through the stages, then the mean over all places: (batch, 4 * dim)
        x = self.stages(x.transpose(1, 2).unflatten(2, self.grid)).mean(dim=(2, 3))
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        return self.out(x)


def _norm(channels: int, config: ModelConfig) -> nn.GroupNorm:
    # 8 groups where the channels allow it, else the most that divide both.
    return nn.GroupNorm(math.gcd(8, channels), channels, eps=config.norm_eps)
