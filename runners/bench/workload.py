# SPDX-License-Identifier: Apache-2.0
"""The step that is measured: forward, backward and optimiser step of a profile's model on random tokens."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo import SequenceMixer
from lra.config.profiles import Profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.errors import UsageError
from lra.measure.model_size import parameters_of
from lra.models.precision import autocast
from lra.models.transformer import build_model, mixers
from lra.seeding import seed_all
from lra.tasks import get_task, info_of

from ..arithmetic import repeatable
from ..train.compiled import compile_model
from ..train.optimizer import build_optimizer

_WITHOUT = {"augment": False, "crop": None, "denoise": 0.0}
"""What a profile may have beside the step that is measured, each with the value that means "none"."""
_SCHEDULE = ("accumulation", "steps", "schedule", "warmup_steps", "eval_every", "selection")
_NOT_IN_STEP = {f"train.{name}" for name in (*_WITHOUT, *_SCHEDULE)}
"""Settings that change nothing of a step."""


def workload_config(
    *, task: str, variant: str, profile: Profile, length: int, batch_size: int, overrides: dict[str, object]
) -> RunConfig:
    """Resolve the configuration of a step: the profile's model at the given length and batch size.

    What a profile does to its inputs, and its denoising, are no part of the step, and its configuration has neither.

    Raises:
        UsageError: A name or a setting is wrong or no part of the step, or the length does not fit the image size of
            the task.
    """
    fixed = [path for path in overrides if path in ("model.max_length", "train.batch_size")]
    if fixed:
        raise UsageError(f"--set {fixed[0]}: use --lengths, --batch or --tokens for that")
    idle = [path for path in overrides if path in _NOT_IN_STEP or path.startswith("pretrain.")]
    if idle:
        raise UsageError(
            f"--set {idle[0]}: the step that is measured does not have it; leave it out, or see what runs with it take "
            "in `lra-report table cost`"
        )
    config = resolve(
        task=task, variant=variant, profile=profile, seed=0, track="open", overrides=overrides, length=length
    )
    grid = info_of(config).grid
    if grid is not None and grid[0] * grid[1] != length:
        raise UsageError(
            f"task {task!r} has images of {grid[0]} x {grid[1]} pixels: its only length is {grid[0] * grid[1]}"
        )
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"batch_size": batch_size, "accumulation": 1, **_WITHOUT}),
            "pretrain": None,
        }
    )


TRIED_OPERATIONS = 2e10
"""Of a step that `minutes_on_cpu` tries: six for each parameter and token, so about a second on one core."""


class Workload:
    """A model in training with one batch of full-length sequences, which every step uses.

    Raises:
        ValueError: The variant does not support the dimensions.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        info = info_of(config)
        self.config, self.device = config, device
        self.model: nn.Module = build_model(config, info.vocab_size, info.num_classes).to(device)
        self.layers: list[SequenceMixer] = list(mixers(self.model))
        self.optimizer = build_optimizer(self.model, config)
        if config.train.compile:
            compile_model(self.model)
        generator = torch.Generator().manual_seed(config.seed)
        batch, length = config.train.batch_size, config.model.max_length
        shape = (batch, 2, length) if info.paired else (batch, length)
        # Token 0 is padding, which a model with masks could skip, so the tokens start at 1.
        self.tokens = torch.randint(1, info.vocab_size, shape, generator=generator, dtype=torch.int16).to(device)
        self.labels = torch.randint(info.num_classes, (batch,), generator=generator).to(device)
        self.backend = ", ".join(dict.fromkeys(layer.resolved_backend(device) for layer in self.layers))
        seed_all(config.seed, "step", 0)

    def step(self) -> None:
        """Make one training step, as `lra-run` does; the gradients stay until `clear` or the next step."""
        self.clear()
        # All variants are timed alike, so those of third parties as `full`, which needs no order.
        with repeatable(compiled=self.config.train.compile, foreign=False, device=self.device):
            with autocast(self.device, self.config.train.precision):
                logits = self.model(self.tokens).float()
                loss = F.cross_entropy(logits, self.labels)
            sum((term for layer in self.layers if (term := layer.auxiliary_loss()) is not None), loss).backward()
        if self.config.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        for layer in self.layers:
            layer.after_step()

    def clear(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_bytes(self) -> int:
        """Return the bytes of parameters, buffers and optimiser state."""
        tensors: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tokens_per_step(config: RunConfig) -> int:
    """Return the number of tokens in a step; a step of a paired task reads two sequences per example."""
    return config.train.batch_size * config.model.max_length * (2 if get_task(config.task).info.paired else 1)


def minutes_on_cpu(config: RunConfig, length: int) -> float | None:
    """Estimate the minutes of a run's steps on this CPU if it is idle, evaluations aside, from the second of two steps.

    Args:
        config: The run.
        length: Tokens of each sequence that is tried.

    Returns:
        None where a step takes too long to try: above `TRIED_OPERATIONS`, sequences above 1,024, compiled code.
    """
    operations = 6 * parameters_of(config)[0] * tokens_per_step(config)
    if config.train.compile or config.model.max_length > 1_024 or operations > TRIED_OPERATIONS:
        return None
    workload = Workload(config, torch.device("cpu"))
    workload.tokens = workload.tokens[..., :length]
    workload.step()
    start = time.process_time()  # not that of the clock, which other programs on the machine make longer
    workload.step()
    return (time.process_time() - start) / torch.get_num_threads() * config.train.steps / 60
