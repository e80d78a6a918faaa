"""What a cell computes, from model to score; where its state and its result are kept is the caller's affair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from attention_zoo import SequenceMixer
from lra.batching import TrainingBatches
from lra.checkpoints import weights_digest
from lra.config import RunConfig
from lra.metrics import Score
from lra.model import build_model, mixers
from lra.prepared import PreparedData, SplitName
from lra.records import Count, Outcome
from lra.tasks import get_task

from .evaluate import DivergedError, evaluate
from .loop import LoopHooks, PreemptedError, TrainState, train
from .optimizer import build_optimizer
from .parallel import ALONE, Team
from .progress import ProgressLine


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How to run, as opposed to what: nothing here changes the number."""

    device: torch.device
    evaluation_tokens: int = 65_536
    """Padded tokens per batch of evaluation."""
    checkpoint_seconds: float = 60.0
    """At most this much work is lost by a crash."""
    force: bool = False
    """Run even if the store has the record; the outcomes are then compared."""
    progress: bool = True
    trackers: tuple[str, ...] = ()
    """Names of trackers that get the numbers of the run, besides its event file."""
    team: Team = ALONE
    """The processes that share the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a run asks of the process it is in."""

    line: ProgressLine
    log: Callable[[int, dict[str, float]], None]
    """Takes the step and some numbers."""
    save: Callable[[int, dict[str, Any]], None]
    """Keeps the state after a step, durably."""
    save_due: Callable[[], bool]
    stop_requested: Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What came of it."""

    model: nn.Module
    layers: list[SequenceMixer]
    state: TrainState
    outcome: Outcome | None
    """None if the run diverged."""
    detail: str
    arrays: dict[str, np.ndarray]
    """Learning curve `curve.*`; with an outcome, `test_correct`, one bool per test example."""


def train_and_score(
    config: RunConfig,
    data: PreparedData,
    execution: Execution,
    saved: dict[str, Any] | None,
    around: Surroundings,
) -> Trained:
    """Train from the start, or from a saved state, to the end; choose the weights by validation and test them.

    Raises:
        PreemptedError: A stop was requested; the state is saved, or during an evaluation, was saved before it.
        RuntimeError: The chosen weights do not score again what was recorded of them, or the processes of the team do
            not hold the same weights.
    """
    device, recipe, team = execution.device, config.train, execution.team
    info = get_task(config.task).info
    model = build_model(config, info.vocab_size, info.num_classes).to(device)
    layers = list(mixers(model))
    optimizer = build_optimizer(model, config)
    state = TrainState()
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = TrainState.from_dict(saved["state"])
        state.resumed += 1
        if not team.leads:
            state.sums.zero_()  # they are sums over all processes, and the first one's
        around.line.say(f"continuing from step {state.step}")
    if recipe.compile:
        model.compile()
    padded_length = config.model.max_length if recipe.padding == "fixed" else None
    limit = config.model.max_length

    def score(split: SplitName, title: str) -> tuple[Score, np.ndarray]:
        examples = data.split(split)
        with around.line.sub(title, len(examples)) as advance:

            def progress(count: int) -> None:
                advance(count)
                if team.size == 1 and around.stop_requested():  # a team would wait for the one that leaves
                    raise PreemptedError(f"stopped during {title} after step {state.step}; the last saved state stands")

            return evaluate(
                model,
                examples,
                device=device,
                precision=recipe.precision,
                padded_length=padded_length,
                limit=limit,
                max_tokens=execution.evaluation_tokens,
                progress=progress,
                team=team,
            )

    def save() -> None:
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state.to_dict()}
        around.save(state.step, content)

    def report(state: TrainState, loss: float, accuracy: float) -> None:
        around.line.report(state, loss, accuracy)
        around.log(state.step, {"train/loss": loss, "train/accuracy": accuracy})

    def validate() -> Score:
        if team.size > 1 and not team.same(weights_digest(model.state_dict())):
            raise RuntimeError(f"the {team.size} processes do not hold the same weights after step {state.step}")
        result, _ = score("validation", "validation")
        around.log(state.step, {"validation/loss": result.loss, "validation/accuracy": result.accuracy})
        return result

    hooks = LoopHooks(
        validate=validate,
        save=save,
        save_due=around.save_due,
        stop_requested=around.stop_requested,
        report=report,
    )
    batches = TrainingBatches(
        data.split("train"),
        batch_size=recipe.batch_size,
        seed=config.seed,
        padded_length=padded_length,
        limit=limit,
    )
    outcome: Outcome | None = None
    detail, arrays = "", dict[str, np.ndarray]()
    try:
        train(model, layers, optimizer, batches, recipe, config.seed, state, hooks, device, team)
        outcome, arrays = _score_chosen(model, config, state, score)
    except DivergedError as diverged:
        detail = str(diverged)
    arrays |= {f"curve.{name}": np.asarray(column) for name, column in state.curve.items()}
    return Trained(model=model, layers=layers, state=state, outcome=outcome, detail=detail, arrays=arrays)


def _score_chosen(
    model: nn.Module, config: RunConfig, state: TrainState, score: Callable[[SplitName, str], tuple[Score, np.ndarray]]
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """Load the weights that validation chose, prove that they are those, and read the test set: once, here.

    Raises:
        RuntimeError: The restored weights do not score on validation what was recorded of them.
        DivergedError: The model's output is not finite.
    """
    chosen_step, validation = state.step, None
    if config.train.selection == "best":
        if state.best_weights is None or state.best_score is None:
            raise RuntimeError("the run has no evaluation to select from")
        model.load_state_dict(state.best_weights)
        chosen_step, validation = state.best_step, state.best_score
    again, _ = score("validation", "checking the chosen weights")
    expected = int(state.curve["validation_correct"][-1]) if validation is None else validation.correct
    if again.correct != expected:
        raise RuntimeError(f"the chosen weights answer {again.correct} of validation, not the recorded {expected}")
    test, correct = score("test", "test")
    outcome = Outcome(
        test=Count(correct=test.correct, total=test.total, loss=test.loss),
        validation=Count(correct=again.correct, total=again.total, loss=again.loss),
        selected_step=chosen_step,
        weights_digest=weights_digest(model.state_dict()),
    )
    return outcome, {"test_correct": correct}
