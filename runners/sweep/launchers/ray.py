"""Cells as Ray tasks: a cluster that is there already, or one started on this machine (extra `ray`).

Ray runs any code that is sent to it. One started here listens on the loopback address only; never run one on an open
network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Job, JobResult, Launcher, LauncherError
from .process import run_job

WORKER_RETRIES = 1
"""How often Ray itself repeats a job whose worker died; all else is for the sweep to decide."""


class RayLauncher(Launcher):
    """Runs each job as a task that starts the same fresh process as the local launcher.

    Args:
        slots: Jobs submitted at once.
        threads: CPUs that a job takes.
        gpus: GPUs that a job takes; a fraction lets several share one.
        address: Of a cluster, `auto` for the one of this machine; None starts one here.

    Raises:
        LauncherError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, *, slots: int, threads: int, gpus: float, address: str | None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError as error:
            raise LauncherError("engine ray needs the extra: pip install 'lra-harness[ray]'") from error
        self._ray: Any = ray
        self._slots = slots
        self._running: dict[Any, str] = {}
        self._started_here = not ray.is_initialized()
        if self._started_here:
            self._connect(slots, threads, address)
        task = ray.remote(_run_in_worker)
        self._task: Any = task.options(num_cpus=threads, num_gpus=gpus, max_retries=WORKER_RETRIES)

    def _connect(self, slots: int, threads: int, address: str | None) -> None:
        try:
            if address is not None:
                self._ray.init(address=address, log_to_driver=False)
            else:
                self._ray.init(
                    num_cpus=slots * threads, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1"
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise LauncherError(f"cannot reach Ray at {address or 'this machine'}: {error}") from error

    def free_slots(self) -> int:
        """Return how many more jobs may be submitted."""
        return self._slots - len(self._running)

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit a task for each job; it runs when the cluster has room."""
        for job in jobs:
            self._running[self._task.remote(job)] = job.key

    def poll(self) -> list[JobResult]:
        """Return the tasks that ended."""
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._result(reference) for reference in done]

    def stop(self) -> None:
        """Cancel all tasks; a worker that is interrupted sends SIGTERM to its process and waits for it."""
        for reference in self._running:
            self._ray.cancel(reference)

    def close(self) -> None:
        """Wait for all, and leave the cluster if it was this launcher that joined or started it."""
        while self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=1.0)
            self.poll()
        if self._started_here:
            self._ray.shutdown()

    def _result(self, reference: Any) -> JobResult:
        key = self._running.pop(reference)
        try:
            ended: JobResult = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return JobResult(
                key=key, returncode=None, detail=f"Ray: {type(error).__name__}: {str(error).strip()[:500]}"
            )
        return ended


def _run_in_worker(job: Job) -> JobResult:
    """Run the job's process; the worker's environment, with the GPUs that Ray chose, is its own."""
    environment: Mapping[str, str] = {}
    return run_job(job, environment, lambda: False)
