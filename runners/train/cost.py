# SPDX-License-Identifier: Apache-2.0
"""The cost of a run, and the parameter count that the benchmark compares it with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from attention_zoo import get_variant
from attention_zoo.faults import fault_line, is_in_variant
from attention_zoo.foreign import ForeignError
from lra.config.schema import RunConfig, VariantChoice
from lra.errors import UsageError
from lra.measure.flops import count_flops
from lra.models.transformer import build_model, count_parameters
from lra.results.records import Cost
from lra.tasks import info_of
from lra.tasks.base import TaskInfo

from .evaluate import autocast
from .loop import TrainState
from .peak_memory import PeakMemory


def measured_cost(
    config: RunConfig, state: TrainState, model: nn.Module, memory: PeakMemory, info: TaskInfo, device: torch.device
) -> Cost:
    """Return the cost of a run that has ended."""
    timed = state.timed_seconds > 0
    memory.update()  # before the counting below takes memory of its own
    return Cost(
        parameters=count_parameters(model),
        parameters_full=parameters_with_full(config, info.vocab_size, info.num_classes),
        flops=flops_of_example(config, info, device),
        train_seconds=state.timed_seconds,
        examples_per_second=state.timed_examples / state.timed_seconds if timed else None,
        tokens_per_second=state.timed_tokens / state.timed_seconds if timed else None,
        wall_seconds=state.wall_seconds,
        peak_memory_bytes=memory.used,
        peak_reserved_bytes=memory.reserved,
        peak_memory_method=memory.method,
        resumed=state.resumed,
    )


def examples_to_score(config: RunConfig, step: int, validation: int, test: int) -> int:
    """Count the examples that a run scores after a step: validations, the check of the chosen weights, and the test.

    Args:
        config: The configuration of the run.
        step: Steps done.
        validation: Examples of the validation split.
        test: Examples of the test split.
    """
    # At multiples of eval_every from this step on, and after the last step of each phase.
    train, switch = config.train, config.pretrain_steps
    validations = train.steps // train.eval_every - max(0, step - 1) // train.eval_every
    validations += train.steps % train.eval_every != 0
    validations += switch >= max(1, step) and switch % train.eval_every != 0
    return (validations + 1) * validation + test


def flops_of_example(config: RunConfig, info: TaskInfo, device: torch.device) -> int | None:
    """Count the operations of one example of the longest length, forward and backward, on a separate model.

    Returns None if counting fails, since an operator that cannot be counted must not cost a finished run its record.
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
    except (RuntimeError, MemoryError):
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
