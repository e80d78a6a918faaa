"""What a sweep asks of an launcher. Results never travel through it: they are in the store, or they are not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lra.errors import LraError


class LauncherError(LraError):
    """The launcher is not installed, or what it runs on cannot be reached."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One cell to execute, as plain values that any host understands."""

    key: str
    """Cell id."""
    config: str
    """The cell's configuration, as JSON."""
    arguments: tuple[str, ...]
    """Further arguments of `lra-run`, with absolute paths."""
    log: Path
    """File that takes the output of the process, at its end."""
    timeout_seconds: float | None = None
    """Time after which the process is asked to stop."""
    grace_seconds: float = 30.0
    """Time it has for that before it is killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """How the process of a job ended, which is not yet what became of the cell."""

    key: str
    returncode: int | None
    """As in `subprocess`, negative for a signal; None if the launcher lost the process."""
    timed_out: bool = False
    detail: str = ""
    """The end of its output."""


class Launcher(ABC):
    """Runs jobs. Leaving its `with` block stops what still runs and waits for it."""

    @abstractmethod
    def free_slots(self) -> int:
        """Return how many more jobs can be started now."""

    @abstractmethod
    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs, no more than there are free slots."""

    @abstractmethod
    def poll(self) -> list[JobResult]:
        """Return, without waiting, the jobs that ended since the last call."""

    @abstractmethod
    def stop(self) -> None:
        """Ask all running jobs to save their state and end."""

    @abstractmethod
    def close(self) -> None:
        """Wait for the jobs that run, and give back what the launcher holds."""

    def __enter__(self) -> Self:
        """Return the launcher."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and close."""
        self.stop()
        self.close()
