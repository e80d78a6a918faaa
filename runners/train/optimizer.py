# SPDX-License-Identifier: Apache-2.0
"""The optimiser of a run."""

from __future__ import annotations

import torch
from torch import nn

from attention_zoo import ParameterGroup
from lra.config.schema import RunConfig, Undecayed
from lra.models.denoiser import Denoiser
from lra.models.norms import MaskedBatchNorm
from lra.models.transformer import Embedding, TokenTable, mixers

_KINDS: dict[type[nn.Module], Undecayed] = {
    nn.LayerNorm: "norms",
    nn.RMSNorm: "norms",
    nn.GroupNorm: "norms",
    MaskedBatchNorm: "norms",
    TokenTable: "embeddings",
    nn.Embedding: "embeddings",
    Embedding: "embeddings",
    Denoiser: "embeddings",
}
"""Kind of the parameters that a module has itself, not in a part of it."""


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """Build AdamW over all parameters, with a rate and a weight decay of their own for some.

    Raises:
        KeyError: A mixer names a parameter in its groups that it does not have.
    """
    recipe = config.train
    own: dict[nn.Parameter, ParameterGroup] = {}
    for mixer in mixers(model):
        parameters = dict(mixer.named_parameters())
        own |= {parameters[name]: group for name, group in mixer.parameter_groups().items()}
    kinds = kinds_of(model) if recipe.undecayed else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        group = own.get(parameter, ParameterGroup())
        rate, decay = group.rate, recipe.weight_decay * group.decay
        kind = "state_space" if group.state_space else kinds.get(parameter)
        if group.state_space and recipe.state_space_lr is not None:
            rate *= recipe.state_space_lr / recipe.lr
        groups.setdefault((rate, 0.0 if kind in recipe.undecayed else decay), []).append(parameter)
    first, second = recipe.betas
    return torch.optim.AdamW(
        [{"params": members, "lr_scale": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
        lr=recipe.lr,
        betas=(first, second),
        eps=recipe.eps,
        fused=True,
    )


def kinds_of(model: nn.Module) -> dict[nn.Parameter, Undecayed]:
    """Return the kind of each parameter that has one, but for those that a variant names."""
    found: dict[nn.Parameter, Undecayed] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if type(module) in _KINDS:
                found[parameter] = _KINDS[type(module)]
            elif name == "bias":
                found[parameter] = "biases"
    return found
