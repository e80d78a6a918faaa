# SPDX-License-Identifier: Apache-2.0
"""One run: from a configuration and prepared data to a record in the store."""

from __future__ import annotations

import contextlib
import gc
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from attention_zoo import get_variant
from attention_zoo.faults import fault_line, is_in_variant
from attention_zoo.program import ProgramError, check_files, check_programs, reads_below
from lra.atomic_io import remove_folder
from lra.config.labels import row_name
from lra.config.schema import NUMERICS_VERSION, RunConfig
from lra.data.ahead import Batches, BatchesAhead, BatchesInTurn
from lra.data.batching import TrainingBatches
from lra.data.dataset import PreparedData
from lra.data.manifest import Manifest
from lra.data.split import SplitName
from lra.errors import LraError, StoreError, UsageError, refusals_as
from lra.measure.environment import decisive, describe_environment, differences, same_bits, why_other_bits
from lra.metrics import Score
from lra.models.denoiser import Denoiser
from lra.models.transformer import Classifier, build_model, mixers
from lra.results.checkpoints import newest_checkpoint, save_checkpoint, weights_digest, write_state
from lra.results.lease import Progress, acquire, holder
from lra.results.records import (
    EARLIER,
    AttemptedRun,
    AttemptStatus,
    ConflictError,
    Count,
    Outcome,
    Pretrained,
    RunRecord,
    Store,
)
from lra.results.weights import load_weights
from lra.tasks import augmentation_of, get_task, info_of
from lra.tasks import is_own as is_own_task
from lra.terminal import echo
from lra.trained import TrainedRun, check_hidden, check_unseen, load_run, start_from

from .. import signals
from ..arithmetic import refused_operator, repeatable
from ..progress import ProgressLine
from .compiled import cache_folder, compile_model, fix_instructions, is_of_compiler, uncompiled
from .cost import examples_to_score, measured_cost
from .distributed import SINGLE, RankInfo, Replica, all_equal, broadcast
from .evaluate import Answer, Denoise, DivergedError, classify, evaluate
from .loop import Callbacks, Phase, PreemptedRunError, TrainState, phases_of, train
from .optimizer import build_optimizer
from .peak_memory import PeakMemory
from .trackers import Trackers, open_trackers


class RunError(LraError):
    """The run ended without a result, and an attempt with this status was logged."""

    exit_code = 4

    def __init__(self, status: AttemptStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class OtherEnvironmentError(LraError):
    """The saved state is from another environment, under which the bits may differ; nothing was done."""

    exit_code = 2


class LeasedRunError(LraError):
    """Another process holds the lease of this run; nothing was done or recorded."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How to run. Nothing here changes the result."""

    device: torch.device
    evaluation_tokens: int = 65_536
    """Padded tokens per batch of evaluation."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints, which is the most work that a crash loses."""
    force: bool = False
    """Run even if the store has the record. The two outcomes are then compared."""
    allow_other_environment: bool = False
    """Continue from a state that was saved under another environment; the record then lists both."""
    progress: bool = True
    title_prefix: str = ""
    """What the line of progress begins with, such as the number of the run in a grid."""
    trackers: tuple[str, ...] = ()
    """Names of trackers that get the numbers of the run, besides its event file."""
    start: TrainedRun | None = None
    """The run that a run starts from, if its configuration names one; None looks it up in the store."""
    ranks: RankInfo = SINGLE
    """This process among those that share the run."""


def run(
    config: RunConfig, data: PreparedData, store: Store, options: RunOptions, stop_requested: Callable[[], bool]
) -> RunRecord:
    """Run a configuration to its record, continuing from the newest checkpoint if there is one.

    A record that is in the store already is returned as it is, unless `options.force`. The repetition has a folder of
    its own for its state, so that it can be continued and leaves the weights of the record alone. Of several processes,
    the main one holds the lease, and reads and writes the store; all return the record.

    Raises:
        LeasedRunError: Another process, which is alive, holds the lease.
        OtherEnvironmentError: The state was saved with another number of threads, device or version of torch.
        DataError: The data is not what its manifest says, or changes during the run.
        RunError: Out of memory, or an error inside the run; logged as an attempt.
        PreemptedRunError: A stop was requested; the state is saved, and the next call continues.
        LostProcessError: Another process of this run has ended.
        StoreError: The store cannot be written, or holds a damaged record or another outcome of this run.
    """
    run_id = config.run_id(data.digest)
    device, recipe, ranks = options.device, config.train, options.ranks
    info = info_of(config)
    progress = Progress(steps=recipe.steps)
    splits = data.manifest.splits
    line = ProgressLine(
        f"{options.title_prefix}{row_name(config)}, seed {config.seed}",
        recipe.steps,
        lambda step: examples_to_score(config, step, splits["validation"].examples, splits["test"].examples),
        shown=options.progress and ranks.is_main,
    )

    with contextlib.ExitStack() as stack:
        # The lease and the saved state.
        record = saved = None
        stack.enter_context(repeatable(compiled=recipe.compile, foreign=bool(programs_of(config)), device=device))
        attempts = AttemptLog(config, data, store, options)
        environments = [decisive(attempts.environment)]
        folder, repeated = store.checkpoint_folder(run_id), False
        if ranks.is_main:
            record = store.find(run_id)
            if record is None or options.force:
                store.check_writable()
                stack.enter_context(hold_lease(store, run_id, progress, stop_requested))
                record = store.find(run_id)  # the last holder may have finished just now
            if record is not None and options.force:
                record, repeated, folder = None, True, folder / "again"
            if record is None:
                saved, refused = newest_checkpoint(folder, run_id)
                for problem in refused:
                    echo(f"{problem}; passed over", err=True)  # also when no progress is shown
            if saved is not None:
                environments = joined(saved["environments"], environments[0], options)
        stack.enter_context(attempts)
        record, saved = broadcast((record, saved), ranks)
        if record is not None:
            return record
        read = stack.enter_context(reads_below(run)) if programs_of(config) else set[str]()
        data = data.verified()
        if recipe.compile and device.type == "cpu":
            with signals.stop_at_once():  # the compiler takes a signal to its trial for a lack of instructions
                fix_instructions()

        # The model.
        memory = PeakMemory(device)
        model = build_model(config, info.vocab_size, info.num_classes).to(device)
        check_process(config)  # all that it imports is imported
        layers = list(mixers(model))
        denoiser = (
            Denoiser(model, config, info).to(device) if isinstance(model, Classifier) and config.pretrain else None
        )
        state = TrainState()
        if saved is None and config.pretrain_steps:
            check_hidden(data)
        if saved is None and config.start is not None:
            assert isinstance(model, Classifier)
            source = options.start or load_run(config.start.run, store.root)
            start_from(model, source, config.start)
            check_unseen(source, data)
            line.say(f"starting from the weights of run {config.start.run[:12]}")
        if saved is not None:
            state = TrainState.from_dict(saved["state"])
            state.resumed += 1
            memory.used, memory.reserved = state.peak_bytes, state.reserved_bytes
            if not ranks.is_main:
                state.sums.zero_()  # they are the sums of all processes, which the main one keeps
            line.say(f"continuing from step {state.step}")

        # What the loop calls.
        padded_length = config.padded_length
        trackers = Trackers({}, store.root, run_id, {})
        if ranks.is_main:
            trackers = stack.enter_context(open_trackers(options.trackers, store.root, run_id, config))
        stack.enter_context(line)
        last_save = time.monotonic()

        def save() -> None:
            nonlocal last_save
            check_process(config, read)  # what was read is not known to the process that goes on
            memory.update()
            state.peak_bytes, state.reserved_bytes = memory.used, memory.reserved
            if ranks.is_main:
                content = {"model": trained.state_dict(), "optimizer": optimizer.state_dict(), "state": state.to_dict()}
                save_checkpoint(folder, state.step, content | {"run_id": run_id, "environments": environments})
                last_save = time.monotonic()

        def report(phase: Phase, state: TrainState, loss: float, accuracy: float) -> None:
            progress.step = state.step
            line.report(state, loss, accuracy, phase.name)
            trackers.log(state.step, {f"{phase.name}/loss": loss, f"{phase.name}/accuracy": accuracy})

        def score(
            split: SplitName, title: str, *, before: Callable[[], None], denoise: bool = False
        ) -> tuple[Score, np.ndarray]:
            """Score the model, or the denoiser.

            `before` saves the state, where it is not saved yet, before a stop ends the run.
            """
            examples = data.split(split)
            scored: nn.Module = model
            answer: Answer = classify
            if denoise and denoiser is not None:
                scored = denoiser
                answer = Denoise(split=examples, seed=config.seed, rate=denoiser.rate, span=denoiser.span)
            with line.sub(title, len(examples)) as advance, memory.paused(), uncompiled(compiled=recipe.compile):

                def advance_or_stop(count: int) -> None:
                    advance(count)
                    if ranks.size == 1 and stop_requested():  # several processes would wait for the one that leaves
                        before()
                        raise PreemptedRunError(f"stopped during {title} after step {state.step} with the state saved")

                return evaluate(
                    scored,
                    examples,
                    device=device,
                    precision=recipe.precision,
                    padded_length=padded_length,
                    limit=config.model.max_length,
                    max_tokens=options.evaluation_tokens,
                    progress=advance_or_stop,
                    ranks=ranks,
                    answer=answer,
                )

        def validate(phase: Phase) -> Score:
            if ranks.size > 1 and not all_equal(weights_digest(model.state_dict()), ranks):
                raise RuntimeError(f"the {ranks.size} processes do not hold the same weights after step {state.step}")
            result, _ = score("validation", "validation", before=save, denoise=phase.denoises)
            place = "pretrain/validation_" if phase.denoises else "validation/"
            trackers.log(state.step, {f"{place}loss": result.loss, f"{place}accuracy": result.accuracy})
            return result

        callbacks = Callbacks(
            validate=validate,
            save=save,
            save_due=lambda: ranks.is_main and time.monotonic() - last_save >= options.checkpoint_seconds,
            stop_requested=stop_requested,
            report=report,
        )
        stream = TrainingBatches(
            data.split("train"),
            batch_size=recipe.batch_size,
            seed=config.seed,
            padded_length=padded_length,
            limit=config.model.max_length,
            coarse=recipe.padding == "coarse",
            augmentation=augmentation_of(config),
        )
        batches: Batches = BatchesInTurn(stream, config.seed)
        if is_own_task(config.task) or not config.train.augment:
            batches = stack.enter_context(BatchesAhead(stream, device))

        outcome: Outcome | None = None
        detail, arrays = "", dict[str, np.ndarray]()
        try:
            phases = phases_of(config)
            for phase in phases[state.phase :]:
                trained = denoiser if denoiser is not None and (phase.denoises or recipe.denoise) else model
                if denoiser is not None:
                    denoiser.with_logits = not phase.denoises
                optimizer = build_optimizer(trained, config)
                if saved is not None:
                    check_order(trained, saved["model"])
                    load_weights(trained, saved["model"])
                    optimizer.load_state_dict(saved["optimizer"])
                    saved = None
                if recipe.compile:
                    compile_model(trained)
                network = trained if ranks.size == 1 else Replica(trained, layers)
                train(network, trained, layers, optimizer, batches, config, phase, state, callbacks, device, ranks)
                if ranks.size > 1:
                    del network
                    gc.collect()  # a replica in a cycle of references would exchange gradients in the next phase too
                if phase.denoises and state.best_weights is not None:
                    load_weights(trained, state.best_weights)
                    state.end_pretraining()

            # The weights that validation chose. Where bits can be repeated, they have to score again what was recorded
            # of them; elsewhere that could fail a sound run, each time it is tried.
            selected_step, digest = state.step, state.evaluated_digest
            expected = Score(
                correct=int(state.curve["validation_correct"][-1]),
                total=splits["validation"].examples,
                loss=state.curve["validation_loss"][-1],
            )
            if recipe.selection == "best":
                assert state.best_weights is not None
                assert state.best_score is not None
                load_weights(model, state.best_weights)
                selected_step, digest, expected = state.best_step, state.best_digest, state.best_score
            chosen = weights_digest(model.state_dict())
            if chosen != digest:
                raise RuntimeError(f"the weights to score are not those that validation scored at step {selected_step}")
            # From here on the model is not in the state to go on from, which was saved after the last step.
            validation, _ = score("validation", "checking the chosen weights", before=lambda: None)
            if same_bits(environments) and validation.correct != expected.correct:
                raise RuntimeError(
                    f"the chosen weights answer {validation.correct} of validation, not the recorded {expected.correct}"
                )

            # The answers of the test set are read here and nowhere else.
            test, arrays["test_correct"] = score("test", "test", before=lambda: None)
            outcome = Outcome(
                test=Count(correct=test.correct, total=test.total, loss=test.loss),
                validation=Count(correct=expected.correct, total=expected.total, loss=expected.loss),  # as in the curve
                selected_step=selected_step,
                weights_digest=chosen,
            )
        except DivergedError as diverged:
            detail = str(diverged)

        # The record.
        check_process(config, read)  # a variant may read a file in each step
        if ranks.is_main:
            if outcome is not None and (repeated or store.find(run_id) is None):
                weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
                write_state(folder / "chosen.pt", {"run_id": run_id, "model": weights, "step": outcome.selected_step})
            curves = {"pretrain": state.pretrain_curve, "curve": state.curve}
            if config.pretrain_steps and state.phase == 0:  # it diverged before the task
                curves = {"pretrain": state.curve}
            for place, curve in curves.items():
                arrays |= {f"{place}.{name}": np.asarray(column) for name, column in curve.items()}
            record = RunRecord(
                run_id=run_id,
                status="ok" if outcome is not None else "diverged",
                detail=detail,
                config=config,
                numerics_version=NUMERICS_VERSION,
                task_title=info.title,
                variant_title=get_variant(config.variant.name).title,
                dataset=data.manifest.dataset,
                data_digest=data.digest,
                baselines=dict(data.manifest.baselines),
                outcome=outcome,
                pretrained=None if state.pretrained is None else Pretrained.model_validate(state.pretrained),
                cost=measured_cost(config, state, model, memory, info, device),
                backend=", ".join(dict.fromkeys(layer.resolved_backend(device) for layer in layers)),
                environment=attempts.environment | ({EARLIER: environments[:-1]} if len(environments) > 1 else {}),
                arrays_sha256="",
                finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            if outcome is not None:
                record = record.model_copy(update={"trained": not record.unbeaten()})
            try:
                record = store.publish(record, arrays)
            except ConflictError as conflict:
                if repeated and folder.exists():  # without a checkpoint, where it diverged before the first one
                    folder.rename(store.conflict_folder(run_id, conflict.number))
                kept = store.find(run_id)
                note = "" if kept is None else why_other_bits(decisive(kept.environment), environments[-1])
                raise ConflictError(f"{conflict}{note}", conflict.number) from conflict
            if repeated and folder.exists():
                if outcome is not None:  # the same weights as before, unless those are lost or damaged
                    (folder / "chosen.pt").replace(folder.parent / "chosen.pt")
                remove_folder(folder)
            attempts.add(record.status, record.detail)
        record = broadcast(record, ranks)
        assert record is not None
        return record


def programs_of(config: RunConfig) -> str:
    """Return the programs of third parties that a run has, in one text; empty if it has none."""
    return "; ".join(filter(None, (config.variant.origin, config.model.pool_origin, config.task_origin)))


def check_process(config: RunConfig, read: Collection[str] = ()) -> None:
    """Check that this process runs the programs that a configuration names, and computes in float32.

    Args:
        config: The configuration.
        read: What code of third parties has read, see `attention_zoo.program.reads_below`.

    Raises:
        UsageError: A file of a program has changed, or was not part of it; or something set another default type for
            this whole process.
    """
    if torch.get_default_dtype() != torch.float32:
        raise UsageError(
            f"torch's default type is {torch.get_default_dtype()} in this process, and runs compute in torch.float32; "
            "if a plug-in sets it, which changes all variants, give the tensors of the plug-in their type instead"
        )
    try:
        check_programs(programs_of(config), read)
    except ProgramError as error:
        raise UsageError(str(error)) from error


def check_sources(config: RunConfig) -> None:
    """Check that the files of the programs that a configuration names are what they were, see `check_files`.

    Raises:
        UsageError: One has changed.
    """
    try:
        check_files(programs_of(config))
    except ProgramError as error:
        raise UsageError(str(error)) from error


def check_order(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Check that a model has the parameters of a saved one in its order, in which the optimizer's state is.

    Raises:
        UsageError: It has not: the state of one parameter would be taken for that of another.
    """
    here, there = list(model.state_dict()), list(saved)
    if here != there and sorted(here) == sorted(there):
        raise UsageError(
            "the model has its parameters in another order than the one that was saved; a constructor that goes "
            "through a set does that, since its order is another one in each process: sort it"
        )


def joined(earlier: list[dict[str, Any]], now: dict[str, Any], options: RunOptions) -> list[dict[str, Any]]:
    """Return the environments of a run that goes on from a saved state, one entry for each change.

    Raises:
        OtherEnvironmentError: The state is from another environment than this one, and that is not allowed.
    """
    if earlier[-1] == now:
        return earlier
    if not options.allow_other_environment:
        raise OtherEnvironmentError(
            f"its state was saved under another environment ({differences(earlier[-1], now)}), where the same bits are "
            "not certain; use that one, or give --allow-other-environment, and the record will say so"
        )
    return [*earlier, now]


@contextlib.contextmanager
def hold_lease(store: Store, run_id: str, progress: Progress, stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Hold the lease of a run.

    Raises:
        LeasedRunError: Another process, which is alive, holds it.
        PreemptedRunError: A stop was requested while waiting for the lease of another host.
        StoreError: The store cannot be written.
    """
    with (
        refusals_as(StoreError, f"cannot lease a run in the store {store.root}"),
        acquire(store.root, run_id, progress, give_up=stop_requested) as ours,
    ):
        if not ours and stop_requested():
            raise PreemptedRunError("stopped while waiting for the lease of another host")
        if not ours:
            other = holder(store.root, run_id) or {}
            pid, host = other.get("pid", "unknown"), other.get("host", "unknown")
            raise LeasedRunError(other.get("unread") or f"process {pid} on host {host} is running it")
        yield


def attempted_run(config: RunConfig, manifest: Manifest, status: AttemptStatus) -> AttemptedRun:
    """Return what an attempt at a run tried, for its note."""
    return AttemptedRun(
        run_id=config.run_id(manifest.digest),
        status=status,
        config=config,
        task_title=get_task(config.task).info.title,
        variant_title=get_variant(config.variant.name).title,
        dataset=manifest.dataset,
        data_digest=manifest.digest,
    )


class AttemptLog:
    """Logs in the store how an attempt at a run ends, and turns what ended it into an error for the user."""

    def __init__(self, config: RunConfig, data: PreparedData, store: Store, options: RunOptions) -> None:
        self.config, self.data, self.store, self.ranks = config, data, store, options.ranks
        self.run_id = config.run_id(data.digest)
        self.environment = describe_environment(options.device) | {"processes": options.ranks.size}

    def add(self, status: AttemptStatus, detail: str) -> None:
        """Log the end of the attempt. If the store refuses the note, a warning says so: it changes no result."""
        attempted = attempted_run(self.config, self.data.manifest, status)
        try:
            self.store.log_attempt(self.run_id, status, detail, self.environment, attempted)
        except StoreError as error:
            echo(f"Warning: the attempt ({status}) is not logged: {error}", err=True)

    def __enter__(self) -> AttemptLog:
        """Start the attempt."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Log an error.

        Raises:
            PreemptedRunError: The attempt was stopped.
            RunError: It ended with any other error that was not meant for the user.
        """
        if error is not None and is_of_compiler(error) and signals.stop_requested():  # Ctrl-C ends the C++ compiler too
            error = PreemptedRunError(
                "stopped while steps were compiled, perhaps with half a file in the compiler's cache; remove "
                f"{cache_folder()} if that fails from now on"
            )
        if isinstance(error, PreemptedRunError) and self.ranks.is_main:
            self.add("preempted", str(error))
            raise PreemptedRunError(f"{error}; run the same command again to continue") from error
        if not isinstance(error, Exception) or isinstance(error, LraError):
            return
        summary = in_one_line(error)
        if is_out_of_memory(error):
            self.add("oom", str(error))
            raise RunError("oom", f"out of memory: {summary}") from error
        self.add("failed", "".join(traceback.format_exception(error)))
        if is_of_compiler(error):
            raise RunError(
                "failed", f"train.compile: {self.config.variant.name} cannot be compiled as one graph: {summary}"
            ) from error
        operator = refused_operator(error)
        if operator is not None:
            on_cpu = self.environment["device"] == "cpu"  # where `repeatable` asks for it, too
            asked, remedy = "--deterministic", "without --deterministic"
            if on_cpu and self.config.train.compile:
                asked, remedy = "--compile", "without --compile"
            elif on_cpu and programs_of(self.config) and self.environment["threads"] > 1:
                asked, remedy = "several threads", "with --threads 1"
            raise RunError(
                "failed",
                f"{asked}: {self.config.variant.name} uses {operator}, which has no deterministic algorithm on "
                f"{self.environment['device']}; run it {remedy}",
            ) from error
        if is_in_variant(error):
            raise RunError("failed", fault_line(error)) from error
        folder = self.store.root / "attempts" / self.run_id
        raise RunError("failed", f"{type(error).__name__}: {summary} (traceback in {folder})") from error


def in_one_line(error: BaseException) -> str:
    """Return the first line of what an error says, and the line in which NCCL names it, if it is one of NCCL."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    return "; ".join([first, *(line for line in others if line.startswith("nccl"))])


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory, on the host or on a device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
