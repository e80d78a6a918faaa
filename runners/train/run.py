"""One run: from a configuration and prepared data to a record in the store."""

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

from attention_zoo import SequenceMixer, get_variant
from lra.config.schema import NUMERICS_VERSION, RunConfig
from lra.data.batching import TrainingBatches
from lra.data.dataset import PreparedData, SplitName
from lra.errors import LraError, StoreError
from lra.measure.environment import describe_environment
from lra.metrics import Score
from lra.models.transformer import build_model, mixers
from lra.results.checkpoints import (
    newest_checkpoint,
    pack_state,
    save_checkpoint,
    unpack_state,
    weights_digest,
    write_state,
)
from lra.results.lease import Progress, acquire, holder
from lra.results.records import AttemptedRun, AttemptStatus, Count, FinalStatus, Outcome, RunRecord, Store
from lra.tasks import get_task

from ..progress import ProgressLine
from .cost import measured_cost
from .distributed import ALONE, Team
from .evaluate import DivergedError, evaluate
from .loop import LoopHooks, PreemptedError, TrainState, train
from .optimizer import build_optimizer
from .peak_memory import PeakMemory
from .trackers import open_trackers


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
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
class TrainResult:
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
    execution: RunOptions,
    saved: dict[str, Any] | None,
    around: Surroundings,
) -> TrainResult:
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
    return TrainResult(model=model, layers=layers, state=state, outcome=outcome, detail=detail, arrays=arrays)


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


NOTHING_TO_DO = b""
"""What the first process of a team tells the others in place of the state to go on from."""


class RunError(LraError):
    """The cell ended without a number, and that was recorded as an attempt with this status."""

    exit_code = 4

    def __init__(self, status: AttemptStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PreemptedRunError(LraError):
    """The cell was asked to stop; its state is saved."""

    exit_code = 75


class LeasedRunError(LraError):
    """Another process is running this cell; nothing was done or recorded."""

    exit_code = 4


def execute_run(
    config: RunConfig, data: PreparedData, store: Store, execution: RunOptions, stop_requested: Callable[[], bool]
) -> RunRecord:
    """Run one cell to its record, continuing from its checkpoint if there is one.

    A record that is there already is returned as it is, unless `execution.force`. The cell is claimed while it runs.

    Raises:
        LeasedRunError: Another process, which is alive, has the claim.
        RunError: Out of memory, or an error inside the run; noted as an attempt.
        PreemptedRunError: A stop was requested; the state is saved, and the next call continues.
        StoreError: The store refuses.
    """
    run_id = config.run_id(data.digest)
    present = store.find(run_id)
    if present is not None and not execution.force:
        execution.team.hand_out(NOTHING_TO_DO)
        return present
    store.check_writable()
    position = Progress(steps=config.train.steps)
    try:
        with acquire(store.root, run_id, position, give_up=stop_requested) as ours:
            if not ours:
                if stop_requested():
                    raise PreemptedRunError("stopped while waiting for the claim of another host")
                owner = holder(store.root, run_id) or {}
                raise LeasedRunError(
                    f"being run by pid {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')}"
                )
            present = store.find(run_id)  # its last owner may have finished it a moment ago
            if present is not None and not execution.force:
                execution.team.hand_out(NOTHING_TO_DO)
                return present
            return _run_and_note(config, data, store, execution, stop_requested, position)
    except OSError as error:
        raise StoreError(f"cannot claim a cell in the store {store.root}: {error.strerror or error}") from error


def run_worker_rank(
    config: RunConfig, data: PreparedData, store: Store, execution: RunOptions, stop_requested: Callable[[], bool]
) -> FinalStatus:
    """Do the part of a process that does not lead its team: all but the claim, the saved state and the record.

    Raises:
        RunError: Out of memory, or an error in this process; noted as an attempt.
        PreemptedRunError: A stop was requested of one of the processes.
        LostProcessError: One of them has ended.
    """
    message = execution.team.hand_out()
    if message == NOTHING_TO_DO:
        return "ok"
    around = Surroundings(
        line=ProgressLine("", config.train.steps, shown=False),
        log=lambda _step, _values: None,
        save=lambda _step, _content: None,
        save_due=lambda: False,
        stop_requested=stop_requested,
    )
    try:
        trained = train_and_score(config, data, execution, unpack_state(message)["saved"], around)
    except PreemptedError as stop:
        raise PreemptedRunError(str(stop)) from stop
    except LraError:
        raise
    except Exception as error:
        raise _noted(error, _Notes(config, data, store, execution)) from error
    return "ok" if trained.outcome is not None else "diverged"


class _Notes:
    """Leaves notes of how an attempt at a cell ended."""

    def __init__(self, config: RunConfig, data: PreparedData, store: Store, execution: RunOptions) -> None:
        self.config, self.data, self.store = config, data, store
        self.run_id = config.run_id(data.digest)
        self.environment = describe_environment(execution.device) | {"processes": execution.team.size}

    def add(self, status: AttemptStatus, detail: str) -> None:
        """Leave one."""
        cell = AttemptedRun(
            run_id=self.run_id,
            status=status,
            config=self.config,
            task_title=get_task(self.config.task).info.title,
            variant_title=get_variant(self.config.variant.name).title,
            dataset=self.data.manifest.dataset,
            data_digest=self.data.digest,
        )
        self.store.log_attempt(self.run_id, status, detail, self.environment, cell)


def _run_and_note(
    config: RunConfig,
    data: PreparedData,
    store: Store,
    execution: RunOptions,
    stop_requested: Callable[[], bool],
    position: Progress,
) -> RunRecord:
    """Run a claimed cell and leave a note of how it ended."""
    notes = _Notes(config, data, store, execution)
    try:
        record = _run(config, data, store, execution, stop_requested, notes, position)
    except PreemptedError as stop:
        notes.add("preempted", str(stop))
        raise PreemptedRunError(f"{stop}; run the same command again to continue") from stop
    except LraError:
        raise
    except Exception as error:
        raise _noted(error, notes) from error
    notes.add(record.status, record.detail)
    return record


def _noted(error: Exception, notes: _Notes) -> RunError:
    """Note an error as the end of an attempt and return what to raise."""
    if is_out_of_memory(error):
        notes.add("oom", str(error))
        return RunError("oom", f"out of memory: {_first_line(error)}")
    notes.add("failed", "".join(traceback.format_exception(error)))
    where = notes.store.root / "attempts" / notes.run_id
    return RunError("failed", f"{type(error).__name__}: {_first_line(error)} (traceback in {where})")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory, on the host or a device, from other errors."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _run(
    config: RunConfig,
    data: PreparedData,
    store: Store,
    execution: RunOptions,
    stop_requested: Callable[[], bool],
    notes: _Notes,
    position: Progress,
) -> RunRecord:
    run_id = notes.run_id
    device, team = execution.device, execution.team
    info = get_task(config.task).info
    memory = PeakMemory(device)
    folder = store.checkpoint_folder(run_id)
    line = ProgressLine(f"{config.variant.name}, seed {config.seed}", config.train.steps, shown=execution.progress)
    saved, passed_over = (None, []) if execution.force else newest_checkpoint(folder)
    for problem in passed_over:
        line.say(f"{problem}; using an older one")
    if team.size > 1:
        team.hand_out(pack_state({"saved": saved}))
    last_save = time.monotonic()

    def save(step: int, content: dict[str, Any]) -> None:
        nonlocal last_save
        save_checkpoint(folder, step, content)
        last_save = time.monotonic()

    def log(step: int, values: dict[str, float]) -> None:
        position.step = step
        trackers.log(step, values)

    around = Surroundings(
        line=line,
        log=log,
        save=save,
        save_due=lambda: time.monotonic() - last_save >= execution.checkpoint_seconds,
        stop_requested=stop_requested,
    )
    trackers = open_trackers(execution.trackers, store.root, run_id, config)
    with line, trackers:
        trained = train_and_score(config, data, execution, saved, around)
    outcome = trained.outcome
    if outcome is not None:
        weights = {name: value.detach().cpu() for name, value in trained.model.state_dict().items()}
        write_state(folder / "chosen.pt", {"model": weights, "step": outcome.selected_step})
    record = RunRecord(
        run_id=run_id,
        status="ok" if outcome is not None else "diverged",
        detail=trained.detail,
        config=config,
        numerics_version=NUMERICS_VERSION,
        task_title=info.title,
        variant_title=get_variant(config.variant.name).title,
        dataset=data.manifest.dataset,
        data_digest=data.digest,
        baselines=dict(data.manifest.baselines),
        outcome=outcome,
        cost=measured_cost(config, trained.state, trained.model, memory, info, device),
        backend=", ".join(dict.fromkeys(layer.resolved_backend(device) for layer in trained.layers)),
        environment=notes.environment,
        arrays_sha256="",
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return store.publish(record, trained.arrays)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
