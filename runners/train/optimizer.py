# SPDX-License-Identifier: Apache-2.0
"""The optimiser of a run."""

from __future__ import annotations

import torch
from torch import nn

from lra.config.schema import RunConfig
from lra.models.transformer import mixers


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """Build AdamW over all parameters; mixers may ask for a learning rate of their own for some of theirs."""
    scales = {
        id(parameter): mixer.learning_rate_scales().get(name, 1.0)
        for mixer in mixers(model)
        for name, parameter in mixer.named_parameters()
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    first, second = config.train.betas
    return torch.optim.AdamW(
        [{"params": members, "lr_scale": scale} for scale, members in groups.items()],
        lr=config.train.lr,
        betas=(first, second),
        eps=config.train.eps,
        weight_decay=config.train.weight_decay,
        fused=True,
    )
