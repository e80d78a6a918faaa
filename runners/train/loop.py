"""The training loop: one function, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo import SequenceMixer
from lra.config.schema import TrainConfig
from lra.data.batching import TrainingBatches
from lra.metrics import Score
from lra.schedules import learning_rate
from lra.seeding import seed_torch

from .distributed import Team
from .evaluate import DivergedError, autocast

CHECK_EVERY = 20
"""Steps between looks at the device: is the loss finite, what does the progress line say."""
WARM_STEPS = 5
"""First steps of an attempt, which are not timed."""


class PreemptedError(Exception):
    """The run was asked to stop and has saved its state."""


@dataclass(kw_only=True)
class TrainState:
    """All that a run has become so far. What a checkpoint holds, with the model's and the optimiser's state."""

    step: int = 0
    best_step: int = -1
    best_score: Score | None = None
    best_weights: dict[str, Tensor] | None = None
    curve: dict[str, list[float]] = field(default_factory=dict)
    """Columns; one row per evaluation."""
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """Loss, right answers and examples since the last evaluation."""
    timed_seconds: float = 0.0
    timed_examples: int = 0
    timed_tokens: int = 0
    wall_seconds: float = 0.0
    resumed: int = 0

    @property
    def evaluated_step(self) -> int:
        """The step of the last evaluation, 0 before the first."""
        return int(self.curve["step"][-1]) if self.curve else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, for a checkpoint."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"best_score": None if self.best_score is None else asdict(self.best_score)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """Take back what `to_dict` gave."""
        score = values["best_score"]
        return cls(**values | {"best_score": None if score is None else Score(**score)})


@dataclass(frozen=True, kw_only=True)
class LoopHooks:
    """What the loop asks of the world around it."""

    validate: Callable[[], Score]
    """Score the model on the validation split."""
    save: Callable[[], None]
    """Write a checkpoint, durably."""
    save_due: Callable[[], bool]
    """Whether it is time for one."""
    stop_requested: Callable[[], bool]
    """Whether the process has been asked to end."""
    report: Callable[[TrainState, float, float], None]
    """Show progress: the state, mean loss and accuracy since the last evaluation."""


def train(
    model: nn.Module,
    mixers: list[SequenceMixer],
    optimizer: torch.optim.Optimizer,
    batches: TrainingBatches,
    config: TrainConfig,
    seed: int,
    state: TrainState,
    hooks: LoopHooks,
    device: torch.device,
    team: Team,
) -> None:
    """Train from `state.step` to `config.steps`, changing model, optimiser and state in place.

    Everything random in a step is a function of (seed, step), so a run that continues from a checkpoint does exactly
    what an unbroken one does. Each process of the team computes its parts of the batches; `batches` is the same in all.

    Raises:
        DivergedError: The loss, or the model's output, is not finite.
        PreemptedError: A stop was requested; the state is saved.
    """

    def rate_of(step: int) -> float:
        return learning_rate(config.schedule, config.lr, step, config.steps, config.warmup_steps)

    first_bad = torch.full((), -1, dtype=torch.int64, device=device)
    state.sums = state.sums.to(device)
    first_step = state.step
    clock = time.perf_counter()
    while True:
        last = state.step == config.steps
        if (last or state.step % config.eval_every == 0) and state.step > state.evaluated_step:
            loss_sum, right_sum, seen = team.collect(state.sums)
            score = hooks.validate()
            extend_curve(state, mixers, rate_of(state.step - 1), loss_sum / seen, right_sum / seen, score)
            if state.best_score is None or score.correct > state.best_score.correct:
                state.best_step, state.best_score = state.step, score
                state.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            if last:
                hooks.save()
            state.wall_seconds += time.perf_counter() - clock
            clock = time.perf_counter()
        if last:
            return
        step = state.step
        rate = rate_of(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        model.train()
        batch = batches.batch(step, device)
        optimizer.zero_grad(set_to_none=True)
        for number, part in team.deal(batch.parts(team.parts(config.accumulation))):
            seed_torch(seed, "step", step, number)
            with autocast(device, config.precision):
                logits = model(part.tokens, part.mask).float()
                loss = F.cross_entropy(logits, part.labels)
            objective = sum((term for mixer in mixers if (term := mixer.auxiliary_loss()) is not None), loss)
            share = len(part.labels) / len(batch.labels)
            (objective * share).backward()
            with torch.no_grad():
                right = (logits.argmax(dim=1) == part.labels).sum()
                count = torch.full_like(loss, len(part.labels))
                state.sums += torch.stack((loss.detach() * count, right, count)).double()
                first_bad = torch.where((first_bad < 0) & ~objective.isfinite(), step, first_bad)
        team.sum_gradients(model)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        for mixer in mixers:
            mixer.after_step()
        state.step += 1

        if step - first_step >= WARM_STEPS:
            state.timed_examples += len(batch.labels)
            state.timed_tokens += batch.num_tokens
        evaluation_due = state.step == config.steps or state.step % config.eval_every == 0
        stopping, saving = team.any(hooks.stop_requested(), hooks.save_due())
        warm = step - first_step == WARM_STEPS - 1
        if not (evaluation_due or stopping or saving or warm or state.step % CHECK_EVERY == 0):
            continue

        bad_step = team.earliest(int(first_bad))  # the device has finished all steps so far once this is read
        elapsed = time.perf_counter() - clock
        state.wall_seconds += elapsed
        if step - first_step >= WARM_STEPS:
            state.timed_seconds += elapsed
        clock = time.perf_counter()
        if bad_step >= 0:
            raise DivergedError(f"the loss is not finite at step {bad_step}")
        loss_sum, right_sum, seen = team.collect(state.sums)
        hooks.report(state, loss_sum / seen, right_sum / seen)
        if saving or stopping:
            hooks.save()
        state.wall_seconds += time.perf_counter() - clock
        clock = time.perf_counter()
        if stopping:
            raise PreemptedError(f"stopped after step {state.step} with the state saved")


def extend_curve(
    state: TrainState, mixers: list[SequenceMixer], rate: float, loss: float, accuracy: float, score: Score
) -> None:
    """Add a row to the learning curve and start new sums."""
    row = {
        "step": float(state.step),
        "learning_rate": rate,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "validation_loss": score.loss,
        "validation_correct": float(score.correct),
    }
    for layer, mixer in enumerate(mixers):
        row |= {f"layer{layer}.{name}": float(value) for name, value in mixer.statistics().items()}
    for name, value in row.items():
        state.curve.setdefault(name, []).append(value)
    state.sums.zero_()
