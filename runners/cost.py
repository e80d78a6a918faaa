"""What a run took, and the parameter count that the benchmark compares with."""

from __future__ import annotations

import torch
from torch import nn

from lra.config import RunConfig
from lra.model import build_model, count_parameters
from lra.records import Cost

from .loop import TrainState
from .memory import PeakMemory


def measured_cost(
    config: RunConfig, state: TrainState, model: nn.Module, memory: PeakMemory, vocab_size: int, num_classes: int
) -> Cost:
    """Sum up what a run took."""
    timed = state.timed_seconds > 0
    return Cost(
        parameters=count_parameters(model),
        parameters_full=parameters_with_full(config, vocab_size, num_classes),
        train_seconds=state.timed_seconds,
        examples_per_second=state.timed_examples / state.timed_seconds if timed else None,
        tokens_per_second=state.timed_tokens / state.timed_seconds if timed else None,
        wall_seconds=state.wall_seconds,
        peak_memory_bytes=memory.read(),
        peak_memory_method=memory.method,
        resumed=state.resumed,
    )


def parameters_with_full(config: RunConfig, vocab_size: int, num_classes: int) -> int:
    """Count the parameters that the same model has with full attention, without allocating them."""
    full = config.variant.model_copy(update={"name": "full", "options": {}, "origin": ""})
    with torch.device("meta"):
        return count_parameters(build_model(config.model_copy(update={"variant": full}), vocab_size, num_classes))
