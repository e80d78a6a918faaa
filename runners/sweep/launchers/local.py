# SPDX-License-Identifier: Apache-2.0
"""The default launcher: child processes on this machine, one per slot."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence

from .base import Job, JobResult, Launcher
from .process import run_job

Environment = Mapping[str, str]


def cpu_slots(slots: int) -> Sequence[Environment]:
    """Return the environment variables of `slots` processes that see no GPU."""
    return [{"CUDA_VISIBLE_DEVICES": ""}] * slots


def gpu_slots(gpus: Sequence[str], per_gpu: int, slots: int | None = None) -> Sequence[Environment]:
    """Return the environment variables of processes that see one GPU each, with the GPUs assigned in turn.

    Args:
        gpus: Names of the GPUs, as in CUDA_VISIBLE_DEVICES.
        per_gpu: Processes that share a GPU.
        slots: Most processes in all; no limit if None.
    """
    return [{"CUDA_VISIBLE_DEVICES": gpu} for _ in range(per_gpu) for gpu in gpus][:slots]


class LocalLauncher(Launcher):
    """Runs each job as a child process, watched by a thread.

    Args:
        environments: One slot each: the environment variables that are set for a job on that slot.
    """

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
        """Return the results of the processes that ended, and free their slots."""
        ended = []
        while not self._ended.empty():
            result, environment = self._ended.get()
            self._free.append(environment)
            ended.append(result)
        return ended

    def stop(self) -> None:
        """Make the watching threads send SIGTERM to their processes."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for all threads, and so for their processes."""
        for thread in self._threads:
            thread.join()

    def _watch(self, job: Job, environment: Environment) -> None:
        try:
            result = run_job(job, environment, self._stopping.is_set)
        except OSError as error:
            result = JobResult(key=job.key, returncode=None, detail=f"cannot run a process: {error}")
        self._ended.put((result, environment))
