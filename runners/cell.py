"""One cell: from a configuration and prepared data to a record in the store."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from lra.batching import TrainingBatches
from lra.checkpoints import newest_checkpoint, save_checkpoint, weights_digest, write_state
from lra.claims import Position, hold, owner_of
from lra.config import NUMERICS_VERSION, RunConfig
from lra.environment import describe_environment
from lra.errors import LraError, StoreError
from lra.metrics import Score
from lra.model import build_model, mixers
from lra.prepared import PreparedData, SplitName
from lra.records import AttemptedCell, AttemptStatus, Count, Outcome, RunRecord, Store
from lra.tasks import get_task

from .cost import measured_cost
from .evaluate import DivergedError, evaluate
from .loop import LoopHooks, PreemptedError, TrainState, train
from .memory import PeakMemory
from .optimizer import build_optimizer
from .progress import ProgressLine
from .trackers import open_trackers


class CellError(LraError):
    """The cell ended without a number, and that was recorded as an attempt with this status."""

    exit_code = 4

    def __init__(self, status: AttemptStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PreemptedCellError(LraError):
    """The cell was asked to stop; its state is saved."""

    exit_code = 75


class ClaimedCellError(LraError):
    """Another process is running this cell; nothing was done or recorded."""

    exit_code = 4


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


def execute_cell(
    config: RunConfig, data: PreparedData, store: Store, execution: Execution, stop_requested: Callable[[], bool]
) -> RunRecord:
    """Run one cell to its record, continuing from its checkpoint if there is one.

    A record that is there already is returned as it is, unless `execution.force`. The cell is claimed while it runs.

    Raises:
        ClaimedCellError: Another process, which is alive, has the claim.
        CellError: Out of memory, or an error inside the run; noted as an attempt.
        PreemptedCellError: A stop was requested; the state is saved, and the next call continues.
        StoreError: The store refuses.
    """
    cell_id = config.cell_id(data.digest)
    present = store.find(cell_id)
    if present is not None and not execution.force:
        return present
    store.check_writable()
    position = Position(steps=config.train.steps)
    try:
        with hold(store.root, cell_id, position, give_up=stop_requested) as ours:
            if not ours:
                if stop_requested():
                    raise PreemptedCellError("stopped while waiting for the claim of another host")
                owner = owner_of(store.root, cell_id) or {}
                raise ClaimedCellError(
                    f"being run by pid {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')}"
                )
            present = store.find(cell_id)  # its last owner may have finished it a moment ago
            if present is not None and not execution.force:
                return present
            return _run_and_note(config, data, store, execution, stop_requested, cell_id, position)
    except OSError as error:
        raise StoreError(f"cannot claim a cell in the store {store.root}: {error.strerror or error}") from error


def _run_and_note(
    config: RunConfig,
    data: PreparedData,
    store: Store,
    execution: Execution,
    stop_requested: Callable[[], bool],
    cell_id: str,
    position: Position,
) -> RunRecord:
    """Run a claimed cell and leave a note of how it ended."""
    environment = describe_environment(execution.device)

    def note(status: AttemptStatus, detail: str) -> None:
        cell = AttemptedCell(
            cell_id=cell_id,
            status=status,
            config=config,
            task_title=get_task(config.task).info.title,
            data_edition=data.manifest.edition,
            data_digest=data.digest,
        )
        store.note_attempt(cell_id, status, detail, environment, cell)

    try:
        record = _run(config, data, store, execution, stop_requested, cell_id, environment, position)
    except PreemptedError as stop:
        note("preempted", str(stop))
        raise PreemptedCellError(f"{stop}; run the same command again to continue") from stop
    except LraError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            note("oom", str(error))
            raise CellError("oom", f"out of memory: {_first_line(error)}") from error
        note("failed", traceback.format_exc())
        where = store.root / "attempts" / cell_id
        raise CellError("failed", f"{type(error).__name__}: {_first_line(error)} (traceback in {where})") from error
    note(record.status, record.detail)
    return record


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory, on the host or a device, from other errors."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _run(
    config: RunConfig,
    data: PreparedData,
    store: Store,
    execution: Execution,
    stop_requested: Callable[[], bool],
    cell_id: str,
    environment: dict[str, Any],
    position: Position,
) -> RunRecord:
    device, recipe = execution.device, config.train
    info = get_task(config.task).info
    memory = PeakMemory(device)
    model = build_model(config, info.vocab_size, info.num_classes).to(device)
    layers = list(mixers(model))
    optimizer = build_optimizer(model, config)
    folder = store.checkpoint_folder(cell_id)
    line = ProgressLine(f"{config.variant.name}, seed {config.seed}", recipe.steps, shown=execution.progress)
    state = TrainState()
    saved, passed_over = newest_checkpoint(folder)
    for problem in passed_over:
        line.say(f"{problem}; using an older one")
    if saved is not None and not execution.force:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = TrainState.from_dict(saved["state"])
        state.resumed += 1
        line.say(f"continuing from step {state.step}")
    if recipe.compile:
        model.compile()
    padded_length = config.model.max_length if recipe.padding == "fixed" else None
    limit, last_save = config.model.max_length, time.monotonic()

    def score(split: SplitName, title: str) -> tuple[Score, np.ndarray]:
        examples = data.split(split)
        with line.sub(title, len(examples)) as advance:
            return evaluate(
                model,
                examples,
                device=device,
                precision=recipe.precision,
                padded_length=padded_length,
                limit=limit,
                max_tokens=execution.evaluation_tokens,
                progress=advance,
            )

    def save() -> None:
        nonlocal last_save
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state.to_dict()}
        save_checkpoint(folder, state.step, content)
        last_save = time.monotonic()

    def report(state: TrainState, loss: float, accuracy: float) -> None:
        position.step = state.step
        line.report(state, loss, accuracy)
        trackers.log(state.step, {"train/loss": loss, "train/accuracy": accuracy})

    def validate() -> Score:
        result, _ = score("validation", "validation")
        trackers.log(state.step, {"validation/loss": result.loss, "validation/accuracy": result.accuracy})
        return result

    hooks = LoopHooks(
        validate=validate,
        save=save,
        save_due=lambda: time.monotonic() - last_save >= execution.checkpoint_seconds,
        stop_requested=stop_requested,
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
    trackers = open_trackers(execution.trackers, store.root, cell_id, config)
    with line, trackers:
        try:
            train(model, layers, optimizer, batches, recipe, config.seed, state, hooks, device)
            outcome, arrays = _score_chosen(model, config, state, score)
        except DivergedError as diverged:
            detail = str(diverged)
    arrays |= {f"curve.{name}": np.asarray(column) for name, column in state.curve.items()}
    if outcome is not None:
        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        write_state(folder / "chosen.pt", {"model": weights, "step": outcome.selected_step})
    record = RunRecord(
        cell_id=cell_id,
        status="ok" if outcome is not None else "diverged",
        detail=detail,
        config=config,
        numerics_version=NUMERICS_VERSION,
        task_title=info.title,
        data_edition=data.manifest.edition,
        data_digest=data.digest,
        rails=dict(data.manifest.rails),
        outcome=outcome,
        cost=measured_cost(config, state, model, memory, info, device),
        backend=", ".join(dict.fromkeys(layer.resolved_backend(device) for layer in layers)),
        environment=environment,
        arrays_sha256="",
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return store.publish(record, arrays)


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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
