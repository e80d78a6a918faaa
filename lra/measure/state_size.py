# SPDX-License-Identifier: Apache-2.0
"""The state of a layer: how many numbers it keeps of a sequence to go on; see `SequenceMixer.state_size`."""

from __future__ import annotations

from typing import Literal

import torch

from attention_zoo import get_variant
from attention_zoo.registry import is_known
from lra.config.schema import RunConfig
from lra.models.transformer import layer_dims
from lra.tasks import is_loaded

UNKNOWN: Literal["?"] = "?"
"""The state of a layer that cannot be built here."""


def state_size(config: RunConfig) -> int | Literal["?"] | None:
    """Count the numbers that the last layer of a model keeps of one sequence of the longest length.

    Returns:
        None if the variant has no such form or does not say, or if the model has no layers of this kind. `UNKNOWN` if
        the variant is not here, or if it would take to load a file that the configuration names.
    """
    if config.model.family != "transformer":
        return None
    if not (is_known(config.variant.name, config.variant.options) and is_loaded(config.task)):
        return UNKNOWN
    try:
        dims = layer_dims(config, config.model.num_layers - 1)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes alone; nothing is allocated
            mixer = get_variant(config.variant.name).build(config.variant.typed, dims)
        return mixer.state_size(dims.max_length)
    except Exception:  # noqa: BLE001 - whatever another's plug-in raises: a table of records does without it
        return UNKNOWN
