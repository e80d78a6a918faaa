# SPDX-License-Identifier: Apache-2.0
"""The training loop of a run: its phases, which are one or two, and the steps of each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo import SequenceMixer
from lra.config.schema import RunConfig, TrainConfig
from lra.data.ahead import Batches
from lra.errors import LraError
from lra.metrics import Score
from lra.models.denoiser import Denoised, Denoiser
from lra.models.precision import autocast
from lra.results.checkpoints import weights_digest
from lra.results.weights import copied
from lra.schedules import learning_rate
from lra.seeding import seed_all

from .distributed import RankInfo, Replica, all_reduce, all_reduce_or, communication
from .evaluate import DivergedError

CHECK_EVERY = 20
"""Steps between two checks of the loss on the device, each of which also updates the progress line."""
WARM_STEPS = 5
"""First steps of an attempt, which are not timed."""
NEVER = 2**62
"""Stands for a step that has not come; larger than any step."""


class PreemptedRunError(LraError):
    """The run was asked to stop, and its state is saved."""

    exit_code = 75


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Steps of a run that share a loss, an optimiser and a schedule."""

    name: Literal["pretrain", "train"]
    start: int
    """The first step."""
    stop: int
    """One after the last step."""
    lr: float
    warmup_steps: int

    @property
    def denoises(self) -> bool:
        """Whether the phase learns the inputs, and no labels."""
        return self.name == "pretrain"

    def rate(self, recipe: TrainConfig, step: int) -> float:
        """Return the learning rate of a step of the run."""
        return learning_rate(recipe.schedule, self.lr, step - self.start, self.stop - self.start, self.warmup_steps)

    def improves(self, score: Score, best: Score | None) -> bool:
        """Say whether weights are better than the best so far: right answers of a task, loss of denoising."""
        if best is None:
            return True
        return score.loss < best.loss if self.denoises else score.correct > best.correct


def phases_of(config: RunConfig) -> list[Phase]:
    """Return the phases of a run: the task, and before it pretraining if the configuration says so."""
    recipe, switch = config.train, config.pretrain_steps
    phases = [Phase(name="train", start=switch, stop=recipe.steps, lr=recipe.lr, warmup_steps=recipe.warmup_steps)]
    if switch and config.pretrain is not None:
        own = config.pretrain
        warmup = recipe.warmup_steps if own.warmup is None else own.warmup
        first = Phase(name="pretrain", start=0, stop=switch, lr=recipe.lr * own.lr_scale, warmup_steps=warmup)
        phases.insert(0, first)
    return phases


@dataclass(kw_only=True)
class TrainState:
    """The progress of a run, saved in its checkpoints beside the states of the model and the optimiser."""

    step: int = 0
    phase: int = 0
    """Number of the phase, from 0."""
    best_step: int = -1
    best_score: Score | None = None
    best_weights: dict[str, Tensor] | None = None
    best_digest: str = ""
    evaluated_digest: str = ""
    """Of the weights that the last evaluation scored."""
    curve: dict[str, list[float]] = field(default_factory=dict)
    """Columns; one row per evaluation."""
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    """(3,): loss, right answers and answers, summed since the last evaluation."""
    pretrained: dict[str, Any] | None = None
    """What pretraining gave, once it is over: the fields of `lra.results.records.Pretrained`."""
    pretrain_curve: dict[str, list[float]] = field(default_factory=dict)
    """The curve of pretraining, once it is over."""
    timed_seconds: float = 0.0
    timed_examples: int = 0
    timed_tokens: int = 0
    wall_seconds: float = 0.0
    peak_bytes: int | None = None
    """Of memory, see `PeakMemory.used`,"""
    reserved_bytes: int | None = None
    """and `PeakMemory.reserved`."""
    resumed: int = 0

    def end_pretraining(self) -> None:
        """Keep what pretraining gave, and begin the phase of the task."""
        assert self.best_score is not None
        self.pretrained = {
            "steps": self.step,
            "selected_step": self.best_step,
            "validation": asdict(self.best_score),
            "weights_digest": self.best_digest,
        }
        self.phase, self.pretrain_curve, self.curve = self.phase + 1, self.curve, {}
        self.best_step, self.best_score, self.best_weights, self.best_digest = -1, None, None, ""

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors, for a checkpoint."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"best_score": None if self.best_score is None else asdict(self.best_score)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainState:
        """Rebuild the state from the values of `to_dict`."""
        score = values["best_score"]
        return cls(**values | {"best_score": None if score is None else Score(**score)})


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the loop calls outside itself."""

    validate: Callable[[Phase], Score]
    """Score the model on the validation split."""
    save: Callable[[], None]
    """Write a checkpoint."""
    save_due: Callable[[], bool]
    """Return whether it is time for a checkpoint."""
    stop_requested: Callable[[], bool]
    """Return whether the process has been asked to end."""
    report: Callable[[Phase, TrainState, float, float], None]
    """Show progress: the phase, the state, mean loss and accuracy since the last evaluation."""


def train(
    network: nn.Module,
    model: nn.Module,
    mixers: list[SequenceMixer],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    config: RunConfig,
    phase: Phase,
    state: TrainState,
    callbacks: Callbacks,
    device: torch.device,
    ranks: RankInfo,
) -> None:
    """Train from `state.step` to the end of a phase, changing model, optimiser and state in place.

    Everything random in a step is a function of (seed, step), so a run that continues from a checkpoint does exactly
    what an unbroken one does.

    Args:
        network: Computes a batch in training: the model itself, or with several processes the replica around it.
        model: What the phase trains: the model of the run, or the denoiser around it. Validation chooses among the
            weights of the first, and in pretraining among those of the second.
        mixers: The mixers of the model.
        optimizer: The optimiser of the model's parameters.
        batches: The batches of the run, the same in all processes. Each process computes its shard of each.
        config: The configuration of the run.
        phase: The phase.
        state: The state to go on from.
        callbacks: What the loop calls.
        device: Where the model is.
        ranks: This process among those of the run.

    Raises:
        DivergedError: The loss, or the model's output, is not finite.
        PreemptedRunError: A stop was requested; the state is saved.
        LostProcessError: Another process of the run has ended.
    """
    recipe, seed = config.train, config.seed
    # Parts of a shard, as many for each process: N processes with accumulation N compute one part each.
    num_parts = -(-recipe.accumulation // ranks.size)
    # The first step with a loss that is not finite, kept on the device so that no step waits for it; NEVER if none.
    first_bad = torch.full((), NEVER, dtype=torch.int64, device=device)
    state.sums = state.sums.to(device)
    first_step = state.step
    chosen = model.model if isinstance(model, Denoiser) and not phase.denoises else model
    clock = time.perf_counter()
    while True:
        last = state.step == phase.stop
        evaluated = state.curve["step"][-1] if state.curve else phase.start
        if (last or state.step % recipe.eval_every == 0) and state.step > evaluated:
            loss_so_far, accuracy = collect_means(state, ranks)
            state.evaluated_digest = weights_digest(chosen.state_dict())
            score = callbacks.validate(phase)
            rate = optimizer.param_groups[0]["lr"]  # of the embedding, whose scale is 1
            extend_curve(state, mixers, rate, loss_so_far, accuracy, score)
            if phase.improves(score, state.best_score):
                state.best_step, state.best_score, state.best_digest = state.step, score, state.evaluated_digest
                state.best_weights = copied(chosen.state_dict())
            if last:
                callbacks.save()
            state.wall_seconds += time.perf_counter() - clock
            clock = time.perf_counter()
        if last:
            return
        step = state.step
        rate = phase.rate(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        model.train()
        batch = batches.batch(step, device)
        shard = batch.shard(ranks.rank, ranks.size)
        optimizer.zero_grad(set_to_none=True)
        parts = list(shard.parts(num_parts))
        for number, part in enumerate(parts):
            seed_all(seed, "step", step, ranks.rank * num_parts + number)  # numbered as one process would
            share = len(part.labels) / len(shard.labels)
            # The processes exchange gradients once a step, in the backward pass of the last part.
            last_part = number + 1 == len(parts)
            with communication() if last_part or not isinstance(network, Replica) else network.no_sync():
                with autocast(device, recipe.precision):
                    found = network(part.tokens, part.mask)
                    loss, right, count = loss_of(found, part.labels)
                objective = sum((term for mixer in mixers if (term := mixer.auxiliary_loss()) is not None), loss)
                if isinstance(found, Denoised) and found.logits is not None:
                    objective = objective + recipe.denoise * found.mean_loss()
                (objective * share).backward()
            with torch.no_grad():
                state.sums += torch.stack((loss.detach() * count, right, count)).double()
                first_bad = torch.where((first_bad == NEVER) & ~objective.isfinite(), step, first_bad)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        for mixer in mixers:
            mixer.after_step()
        state.step += 1

        if step - first_step >= WARM_STEPS:
            state.timed_examples += len(batch.labels)
            state.timed_tokens += batch.num_tokens
        evaluation_due = state.step == phase.stop or state.step % recipe.eval_every == 0
        stopping, saving = all_reduce_or([callbacks.stop_requested(), callbacks.save_due()], ranks)
        warm = step - first_step == WARM_STEPS - 1
        if not (evaluation_due or stopping or saving or warm or state.step % CHECK_EVERY == 0):
            continue

        # Once the number is on the host, the device has finished all steps so far.
        bad_step = int(all_reduce(first_bad.cpu(), ranks, dist.ReduceOp.MIN))
        elapsed = time.perf_counter() - clock
        state.wall_seconds += elapsed
        if step - first_step >= WARM_STEPS:
            state.timed_seconds += elapsed
        clock = time.perf_counter()
        if bad_step != NEVER:
            raise DivergedError(f"the loss is not finite at step {bad_step}")
        callbacks.report(phase, state, *collect_means(state, ranks))
        if saving or stopping:
            callbacks.save()
        state.wall_seconds += time.perf_counter() - clock
        clock = time.perf_counter()
        if stopping:
            raise PreemptedRunError(f"stopped after step {state.step} with the state saved")


def loss_of(found: Tensor | Denoised, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss of a part of a batch, the number of right answers, and the number of answers.

    Args:
        found: (batch, num_classes), logits; or what a `Denoiser` gives, whose logits count if it has any.
        labels: (batch,). Pretraining does not read them.
    """
    if isinstance(found, Denoised):
        if found.logits is None:
            return found.mean_loss(), found.right.sum(), found.places.sum()
        found = found.logits
    logits = found.float()
    loss = F.cross_entropy(logits, labels)
    with torch.no_grad():
        right = (logits.argmax(dim=1) == labels).sum()
    return loss, right, torch.full_like(loss, len(labels), requires_grad=False)


def collect_means(state: TrainState, ranks: RankInfo) -> tuple[float, float]:
    """Return mean loss and accuracy over all processes, and leave the sums with the main one, whose state is saved."""
    loss_sum, right, answers = all_reduce(state.sums, ranks).tolist()
    if not ranks.is_main:
        state.sums.zero_()
    answers = max(1.0, answers)  # by chance, few short sequences may have no hidden place
    return loss_sum / answers, right / answers


def extend_curve(
    state: TrainState, mixers: list[SequenceMixer], rate: float, loss: float, accuracy: float, score: Score
) -> None:
    """Add a row to the learning curve and start the sums again from zero."""
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
    rows = len(state.curve.get("step", []))
    for name in {**state.curve, **row}:  # a mixer may name a statistic in some evaluations only
        state.curve.setdefault(name, [math.nan] * rows).append(row.get(name, math.nan))
    state.sums.zero_()
