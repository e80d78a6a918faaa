# SPDX-License-Identifier: Apache-2.0
"""What a configuration costs before anything is trained: its parameters, and the operations of one example."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attention_zoo import get_variant
from attention_zoo.faults import fault_line, is_in_variant
from attention_zoo.foreign import ForeignError
from lra.config.schema import RunConfig, VariantChoice
from lra.errors import UsageError
from lra.measure.flops import count_flops
from lra.models.precision import autocast
from lra.models.transformer import build_model, count_parameters
from lra.tasks import info_of
from lra.tasks.base import TaskInfo


def flops_of_example(config: RunConfig, info: TaskInfo, device: torch.device) -> int | None:
    """Count the operations of one example of the longest length, forward and backward, on a separate model.

    Returns None if counting fails, since that must not cost a finished run its record: an operator has no formula, or
    a module of somebody else refuses one example, as batch normalization over a batch does.
    """
    shape = (1, 2, config.model.max_length) if info.paired else (1, config.model.max_length)
    tokens = torch.ones(shape, dtype=torch.int16, device=device)
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    try:
        model = build_model(config, info.vocab_size, info.num_classes).to(device)

        def step() -> None:
            with autocast(device, config.train.precision):
                logits = model(tokens).float()
            F.cross_entropy(logits, labels).backward()

        return count_flops(step).total
    except Exception:  # noqa: BLE001 - whatever another's module raises for one example
        return None


def parameters_of(config: RunConfig) -> tuple[int, int]:
    """Count the parameters of a model, and of the same with full attention, without allocating ours.

    Raises:
        UsageError: The variant refuses the sizes of the model, or cannot be built.
    """
    info = info_of(config)
    try:
        # What a whole model of somebody else does while it is built may need numbers.
        with torch.device("cpu" if config.model.family == "foreign" else "meta"):
            parameters = count_parameters(build_model(config, info.vocab_size, info.num_classes))
    except (ValueError, ForeignError) as error:
        raise UsageError(f"{config.variant.name}, {config.task}: {error}") from error
    except Exception as error:
        if not is_in_variant(error):
            raise
        raise UsageError(f"{config.variant.name}, {config.task}: {fault_line(error)}") from error
    return parameters, parameters_with_full(config, info.vocab_size, info.num_classes)


def parameters_with_full(config: RunConfig, vocab_size: int, num_classes: int) -> int:
    """Count the parameters that the same model has with full attention, without allocating them.

    Of a whole model of somebody else, this is the transformer of the profile.
    """
    full = VariantChoice.of("full", get_variant("full").config())
    model = config.model
    if model.family == "foreign":
        model = model.model_copy(update={"family": "transformer"})
    with torch.device("meta"):
        changed = config.model_copy(update={"variant": full, "model": model})
        return count_parameters(build_model(changed, vocab_size, num_classes))
