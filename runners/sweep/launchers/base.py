# SPDX-License-Identifier: Apache-2.0
"""The interface of a launcher: what a sweep needs in order to start runs somewhere and learn when they ended.

A launcher starts processes and reports how they ended. It never carries results; a run writes those to the store, which
every host must be able to reach.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lra.errors import LraError


class LauncherError(LraError):
    """The launcher's package is not installed, or its cluster cannot be reached."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run to execute, in plain values that can be pickled and sent to another host."""

    key: str
    """The run id."""
    config: str
    """The configuration of the run, as JSON."""
    arguments: tuple[str, ...]
    """Further arguments of `lra-run`, with absolute paths."""
    log: Path
    """Where its output goes: the first of `<log>-1.log`, `<log>-2.log`, ... that does not exist."""
    timeout_seconds: float | None = None
    """Time after which the process is asked to stop."""
    grace_seconds: float = 30.0
    """Time between that request and the kill."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """How the process of a job ended; whether the run has a result stands in the store."""

    key: str
    returncode: int | None
    """Exit code as in `subprocess`, negative for a signal; None if the launcher lost the process."""
    timed_out: bool = False
    """Whether the process was stopped because of `Job.timeout_seconds`."""
    detail: str = ""
    """The last lines of its output, or why it was lost."""


class Launcher(ABC):
    """Starts jobs and reports their ends; used as a context manager that stops and waits for running jobs on exit.

    What a subclass must do:

    - Execute each job with `process.run_job`, in whatever process or on whatever host the job lands. That function
      starts `lra-run`, writes the log and enforces the timeout.
    - Report every started job exactly once from `poll`, also a job whose worker or host died (`returncode=None`). The
      driver of the sweep decides whether to start it again; a launcher need not retry.
    - Make `stop` reach the processes as SIGTERM, on which a run saves a checkpoint and exits with code 75.
    - Return from `start`, `poll` and `stop` without waiting for jobs. The driver calls every method from one thread.
    """

    @abstractmethod
    def free_slots(self) -> int:
        """Return how many more jobs may be started now; 0 makes the driver wait."""

    @abstractmethod
    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs; there are never more of them than free slots."""

    @abstractmethod
    def poll(self) -> list[JobResult]:
        """Return the results of the jobs that ended since the last call, without waiting."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all running jobs to save their state and exit; `poll` still reports their ends."""

    @abstractmethod
    def close(self) -> None:
        """Wait for the running jobs and release connections, threads and the like; called once, after `stop`."""

    def __enter__(self) -> Self:
        """Return the launcher."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the running jobs and close the launcher."""
        self.stop()
        self.close()
