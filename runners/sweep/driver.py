# SPDX-License-Identifier: Apache-2.0
"""The driver of a sweep: starts runs through a launcher until the store holds a result or a final failure of each.

The driver keeps no state that matters. If it is killed, start it again; it reads from the store what is left to do.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lra.errors import StoreError
from lra.results.lease import STALE_SECONDS
from lra.results.records import AttemptStatus, Store

from ..signals import EXIT_PREEMPTED
from ..train.run import attempted_run
from .launchers.base import Job, JobResult, Launcher
from .progress import SweepView
from .state import MAX_ATTEMPTS, RunState, SweepRun, attempts, log_path, state_of

T = TypeVar("T")
POLL_SECONDS = 0.2
LEASED_SECONDS = 5.0
"""Delay before a run that another process has leased is checked again."""
RETRY_SECONDS = 2.0
"""Time until the second attempt of a run; the third comes after four times as long."""
MAX_PREEMPTIONS = 10
"""How often a run may be preempted before this driver counts that as a failure."""
EXIT_NO_RESULT = 4
"""Exit code of `lra-run` without a result. If it logged no attempt, another process holds the lease of the run."""
STORE_SECONDS = 600.0
"""How long to wait for a store that cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """How the runs are executed; none of this changes their results."""

    arguments: tuple[str, ...]
    """Arguments of `lra-run`: store, data, device, threads."""
    timeout_seconds: float | None = None
    """Longest time of one run."""
    limit_seconds: float | None = None
    """Time after which no run is started, and running ones are stopped with their state saved."""
    grace_seconds: float = 30.0
    """Time that a run has to save its state before it is killed."""


@dataclass
class _QueuedRun:
    """A run with what this driver knows about its attempts."""

    run: SweepRun
    run_id: str
    not_before: float = 0.0
    attempts_before: int = 0
    """Attempts in the store when the current one was started."""
    preemptions: int = 0
    unexplained: int = 0
    """How often its process ended as if another one held the lease, which none did."""
    beat: str = ""
    """What its holder on another machine had written when this driver looked last,"""
    beat_since: float = 0.0
    """and since when."""
    holder: str = ""
    """Who held it when this driver looked last."""


class Sweep:
    """One execution of the driver.

    Args:
        runs: The runs; their data is prepared.
        store: Where results go.
        launcher: Where the runs are started.
        settings: How they are executed.
        view: Shows the progress.
        stop_requested: Returns whether this process has been asked to end.
    """

    def __init__(
        self,
        runs: Sequence[SweepRun],
        store: Store,
        launcher: Launcher,
        settings: SweepSettings,
        view: SweepView,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.store, self.launcher, self.settings, self.view = store, launcher, settings, view
        self.stop_requested = stop_requested
        self.waiting = [
            _QueuedRun(run, run.run_id) for run in runs if run.run_id is not None and not state_of(store, run).final
        ]
        self.running: dict[str, _QueuedRun] = {}
        self.stopping = False

    def run(self) -> bool:
        """Work until every run is final; return False if the sweep was stopped before that."""
        started = time.monotonic()
        limit = self.settings.limit_seconds
        with self.launcher, self.view:
            while self.waiting or self.running:
                for result in self.launcher.poll():
                    self._settle(self.running.pop(result.key), result)
                late = limit is not None and time.monotonic() - started > limit
                if not self.stopping and (self.stop_requested() or late):
                    self.stopping = True
                    self.waiting.clear()
                    self.launcher.stop()
                self._start_ready()
                self.view.tick([queued.run for queued in self.running.values()], len(self.waiting))
                time.sleep(POLL_SECONDS)
        return not self.stopping

    def _start_ready(self) -> None:
        """Start waiting runs on the free slots, unless they are final by now or another process holds them."""
        now, ready = time.monotonic(), list[_QueuedRun]()
        for queued in list(self.waiting):
            if len(ready) == self.launcher.free_slots():
                break
            if queued.not_before > now:
                continue
            state = self._state(queued)
            if state.word == "running":
                if state.detail != queued.holder:
                    queued.holder = state.detail
                    self.view.say(f"waiting for {queued.run.label}: {state.detail}")
                if not state.beat or state.beat != queued.beat:
                    queued.beat, queued.beat_since = state.beat, now
                if now - queued.beat_since <= STALE_SECONDS:
                    queued.not_before = now + LEASED_SECONDS
                    continue  # else the holder is dead, and the process that is started takes the run over
            self.waiting.remove(queued)
            if state.final:
                self.view.finished(queued.run, state)
                continue
            queued.attempts_before = self._count_attempts(queued)
            self.running[queued.run_id] = queued
            ready.append(queued)
        if ready:
            self.launcher.start([self._job(queued) for queued in ready])

    def _job(self, queued: _QueuedRun) -> Job:
        return Job(
            key=queued.run_id,
            config=queued.run.config.model_dump_json(),
            arguments=self.settings.arguments,
            log=log_path(self.store, queued.run_id),
            timeout_seconds=self.settings.timeout_seconds,
            grace_seconds=self.settings.grace_seconds,
        )

    def _settle(self, queued: _QueuedRun, result: JobResult) -> None:
        """Handle the end of a process: log the attempt if the process could not, and queue the run again if useful."""
        state = self._state(queued)
        if state.word not in ("ok", "diverged", "damaged"):
            if self.stopping and not result.timed_out:
                self.view.finished(queued.run, state)
                return
            logged = self._count_attempts(queued) > queued.attempts_before
            leased = result.returncode == EXIT_NO_RESULT and not logged and queued.unexplained < MAX_ATTEMPTS
            if result.timed_out:
                self._log_attempt(
                    queued, "timeout", f"no end within {self.settings.timeout_seconds:.0f} s\n{result.detail}"
                )
            elif leased:  # the holder may have ended in this moment, but not each time
                queued.unexplained += state.word != "running"
                queued.not_before = time.monotonic() + LEASED_SECONDS
                self.waiting.append(queued)
                return
            elif result.returncode == EXIT_PREEMPTED and queued.preemptions < MAX_PREEMPTIONS:
                queued.preemptions += 1
                self.waiting.append(queued)
                return
            elif not logged:
                self._log_attempt(queued, "failed", f"{result.detail}\n{describe_exit(result.returncode)}")
            state = self._state(queued)
        self.view.finished(queued.run, state)
        if not state.final and not self.stopping:
            queued.not_before = time.monotonic() + RETRY_SECONDS * 4 ** max(0, state.failures - 1)
            self.waiting.append(queued)

    def _state(self, queued: _QueuedRun) -> RunState:
        return self._retry_with_backoff(lambda: state_of(self.store, queued.run))

    def _log_attempt(self, queued: _QueuedRun, status: AttemptStatus, detail: str) -> None:
        run = queued.run
        tried = None if run.manifest is None else attempted_run(run.config, run.manifest, status)
        self._retry_with_backoff(lambda: self.store.log_attempt(queued.run_id, status, detail, {}, tried))

    def _count_attempts(self, queued: _QueuedRun) -> int:
        return self._retry_with_backoff(lambda: len(attempts(self.store, queued.run_id)))

    def _retry_with_backoff(self, action: Callable[[], T]) -> T:
        """Access the store; while it cannot be reached, try again with growing pauses.

        Raises:
            StoreError: The store stayed away for `STORE_SECONDS`, or the sweep was asked to stop.
        """
        pause, started = 0.5, time.monotonic()
        while True:
            try:
                return action()
            except (StoreError, OSError) as error:
                if self.stop_requested() or time.monotonic() - started > STORE_SECONDS:
                    raise StoreError(str(error)) from error
                self.view.say(f"waiting for the store: {error}")
                time.sleep(pause)
                pause = min(2 * pause, 30.0)


def describe_exit(returncode: int | None) -> str:
    """Describe how a process ended that logged no attempt itself."""
    if returncode is None:
        return "the launcher lost the process"
    if returncode == 0:
        return "ended with exit code 0, but without a record of this run"
    if returncode > 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"
