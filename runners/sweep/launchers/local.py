"""The default launcher: processes on this machine, one per slot."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence

from .base import Job, JobResult, Launcher
from .process import run_job

Environment = Mapping[str, str]


def cpu_slots(slots: int) -> Sequence[Environment]:
    """Return the environments of `slots` processes that see no GPU."""
    return [{"CUDA_VISIBLE_DEVICES": ""}] * slots


def gpu_slots(gpus: Sequence[str], per_gpu: int, slots: int | None = None) -> Sequence[Environment]:
    """Return the environments of processes that see one GPU each, the GPUs dealt out in turn.

    Args:
        gpus: Names as CUDA_VISIBLE_DEVICES knows them.
        per_gpu: Processes that share a GPU.
        slots: Limit on their total.
    """
    return [{"CUDA_VISIBLE_DEVICES": gpu} for _ in range(per_gpu) for gpu in gpus][:slots]


class LocalLauncher(Launcher):
    """Runs each job as a child process, watched by a thread."""

    def __init__(self, environments: Sequence[Environment]) -> None:
        self._free = list(environments)
        self._ended: queue.SimpleQueue[tuple[JobResult, Environment]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def free_slots(self) -> int:
        """Return the number of slots without a process."""
        return len(self._free)

    def start(self, jobs: Sequence[Job]) -> None:
        """Start a process for each job."""
        for job in jobs:
            thread = threading.Thread(target=self._watch, args=(job, self._free.pop(0)), daemon=True)
            self._threads = [*(other for other in self._threads if other.is_alive()), thread]
            thread.start()

    def poll(self) -> list[JobResult]:
        """Return the processes that ended."""
        ended = []
        while not self._ended.empty():
            end, environment = self._ended.get()
            self._free.append(environment)
            ended.append(end)
        return ended

    def stop(self) -> None:
        """Send SIGTERM to all."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for all."""
        for thread in self._threads:
            thread.join()

    def _watch(self, job: Job, environment: Environment) -> None:
        try:
            end = run_job(job, environment, self._stopping.is_set)
        except OSError as error:
            end = JobResult(key=job.key, returncode=None, detail=f"cannot run a process: {error}")
        self._ended.put((end, environment))
