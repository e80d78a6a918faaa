# SPDX-License-Identifier: Apache-2.0
"""Runs as Ray tasks, on an existing cluster or on one started on this machine (extra `ray`).

Ray executes any code that is sent to it, so never run a cluster on an open network. A cluster that is started here
listens on the loopback address only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .base import Job, JobResult, Launcher, LauncherError
from .process import run_job

WORKER_RETRIES = 1
"""How often Ray itself repeats a job whose worker died; the sweep decides about everything else."""


class RayLauncher(Launcher):
    """Runs each job as a Ray task, which starts the same process as the local launcher.

    Args:
        slots: Most jobs submitted at a time.
        threads: CPUs that each job reserves.
        gpus: GPUs that each job reserves; with a fraction, several jobs share one.
        address: Address of a cluster, or `auto` for the one running on this machine; None starts one here.

    Raises:
        LauncherError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, *, slots: int, threads: int, gpus: float, address: str | None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError as error:
            raise LauncherError("launcher ray needs the extra: pip install 'lra-harness[ray]'") from error
        self._ray: Any = ray
        self._slots = slots
        self._running: dict[Any, str] = {}
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
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
        """Return the results of the tasks that ended."""
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._result(reference) for reference in done]

    def stop(self) -> None:
        """Cancel all tasks; the interrupted workers send SIGTERM to their processes and wait for them."""
        for reference in self._running:
            self._ray.cancel(reference)

    def close(self) -> None:
        """Wait for all tasks; disconnect from the cluster if this launcher connected to it."""
        while self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=1.0)
            self.poll()
        if self._connected_here:
            self._ray.shutdown()

    def _result(self, reference: Any) -> JobResult:
        key = self._running.pop(reference)
        try:
            result: JobResult = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return JobResult(
                key=key, returncode=None, detail=f"Ray: {type(error).__name__}: {str(error).strip()[:500]}"
            )
        return result


def _run_in_worker(job: Job) -> JobResult:
    """Run the job's process with the environment of the worker, in which Ray has set CUDA_VISIBLE_DEVICES."""
    return run_job(job, {}, lambda: False)
