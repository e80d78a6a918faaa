# SPDX-License-Identifier: Apache-2.0
"""The cost of a run that has ended, and the examples that are left to score."""

from __future__ import annotations

import torch
from torch import nn

from lra.config.schema import RunConfig
from lra.measure.model_size import flops_of_example, parameters_with_full
from lra.models.transformer import count_parameters
from lra.results.records import Cost
from lra.tasks.base import TaskInfo

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
