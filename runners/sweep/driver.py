"""The driver of a sweep: starts cells on an launcher until the store has an end for each of them.

The driver holds nothing that matters. Killed at any moment, it is started again and finds in the store what is left.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lra.errors import StoreError
from lra.results.records import AttemptStatus, Store

from ..signals import EXIT_PREEMPTED
from .launchers.base import Job, JobResult, Launcher
from .progress import SweepView
from .state import CellState, SweepCell, attempts, log_path, state_of

T = TypeVar("T")
POLL_SECONDS = 0.2
CLAIMED_SECONDS = 5.0
"""Time until a cell that another sweep has is looked at again."""
RETRY_SECONDS = 2.0
"""Time until the second attempt of a cell; four times that until the third."""
MAX_PREEMPTIONS = 10
"""Times that a cell may be stopped by others before this driver leaves it alone."""
EXIT_CLAIMED = 4
"""Exit code of a cell without a number; without a note of an attempt, it is one that another process has."""
STORE_SECONDS = 600.0
"""Time for which a store that cannot be reached is waited for."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """How to run, as opposed to what."""

    arguments: tuple[str, ...]
    """For `lra-run`: store, data, device, threads."""
    timeout_seconds: float | None = None
    """Longest time of one cell."""
    limit_seconds: float | None = None
    """Time after which no cell is started, and those running are stopped with their state saved."""
    grace_seconds: float = 30.0


@dataclass
class _Task:
    cell: SweepCell
    run_id: str
    not_before: float = 0.0
    notes_before: int = 0
    preemptions: int = 0


class Sweep:
    """One run of the driver.

    Args:
        cells: What to run; their data is prepared.
        store: Where results go.
        launcher: Where they run.
        settings: How.
        view: Told what happens.
        stop_requested: Whether this process has been asked to end.
    """

    def __init__(
        self,
        cells: Sequence[SweepCell],
        store: Store,
        launcher: Launcher,
        settings: SweepSettings,
        view: SweepView,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.store, self.launcher, self.settings, self.view = store, launcher, settings, view
        self.stop_requested = stop_requested
        self.waiting = [
            _Task(cell, cell.run_id) for cell in cells if cell.run_id is not None and not state_of(store, cell).final
        ]
        self.running: dict[str, _Task] = {}
        self.stopping = False

    def run(self) -> bool:
        """Run until every cell has come to an end; return False if the sweep was stopped before that."""
        started = time.monotonic()
        limit = self.settings.limit_seconds
        with self.launcher, self.view:
            while self.waiting or self.running:
                for ended in self.launcher.poll():
                    self._settle(self.running.pop(ended.key), ended)
                late = limit is not None and time.monotonic() - started > limit
                if not self.stopping and (self.stop_requested() or late):
                    self.stopping = True
                    self.waiting.clear()
                    self.launcher.stop()
                self._start_ready()
                self.view.tick([task.cell for task in self.running.values()], len(self.waiting))
                time.sleep(POLL_SECONDS)
        return not self.stopping

    def _start_ready(self) -> None:
        now, ready = time.monotonic(), list[_Task]()
        for task in list(self.waiting):
            if len(ready) == self.launcher.free_slots():
                break
            if task.not_before > now:
                continue
            state = self._state(task)
            if state.word == "running":
                task.not_before = now + CLAIMED_SECONDS
                continue
            self.waiting.remove(task)
            if state.final:
                self.view.finished(task.cell, state)
                continue
            task.notes_before = len(attempts(self.store, task.run_id))
            self.running[task.run_id] = task
            ready.append(task)
        if ready:
            self.launcher.start([self._job(task) for task in ready])

    def _job(self, task: _Task) -> Job:
        return Job(
            key=task.run_id,
            config=task.cell.config.model_dump_json(),
            arguments=self.settings.arguments,
            log=log_path(self.store, task.run_id),
            timeout_seconds=self.settings.timeout_seconds,
            grace_seconds=self.settings.grace_seconds,
        )

    def _settle(self, task: _Task, ended: JobResult) -> None:
        """Find out what became of a cell, leave the note that a dead process could not, and try again if that helps."""
        state = self._state(task)
        if state.word not in ("ok", "diverged", "damaged"):
            if self.stopping and not ended.timed_out:
                self.view.finished(task.cell, state)
                return
            told = len(attempts(self.store, task.run_id)) > task.notes_before
            claimed = ended.returncode == EXIT_CLAIMED and not told
            if ended.timed_out:
                self._note(task, "timeout", f"no end within {self.settings.timeout_seconds:.0f} s\n{ended.detail}")
            elif claimed:
                task.not_before = time.monotonic() + CLAIMED_SECONDS
                self.waiting.append(task)
                return
            elif ended.returncode == EXIT_PREEMPTED and task.preemptions < MAX_PREEMPTIONS:
                task.preemptions += 1
                self.waiting.append(task)
                return
            elif not told:
                self._note(task, "failed", f"{ended.detail}\n{how_it_ended(ended.returncode)}")
            state = self._state(task)
        self.view.finished(task.cell, state)
        if not state.final and not self.stopping:
            task.not_before = time.monotonic() + RETRY_SECONDS * 4 ** max(0, state.failures - 1)
            self.waiting.append(task)

    def _state(self, task: _Task) -> CellState:
        return self._patiently(lambda: state_of(self.store, task.cell))

    def _note(self, task: _Task, status: AttemptStatus, detail: str) -> None:
        self._patiently(lambda: self.store.log_attempt(task.run_id, status, detail, {}))

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do something with the store, and again with growing pauses while it cannot be reached."""
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


def how_it_ended(returncode: int | None) -> str:
    """Say in words how a process ended that left no note itself."""
    if returncode is None:
        return "the launcher lost the process"
    if returncode == 0:
        return "ended well, but without a record of this cell"
    if returncode > 0:
        return f"ended with exit code {returncode}"
    name = signal.Signals(-returncode).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def tally(states: Sequence[CellState]) -> str:
    """Count states by word, most frequent first."""
    words = [state.word for state in states]
    return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words), key=words.count, reverse=True))
