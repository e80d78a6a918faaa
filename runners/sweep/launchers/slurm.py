# SPDX-License-Identifier: Apache-2.0
"""Runs as array jobs of a Slurm cluster, through submitit (extra `slurm`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Job, JobResult, Launcher, LauncherError
from .process import run_job


class SlurmTask:
    """What a Slurm job executes: the same process as the local launcher starts.

    submitit calls it on the node. When Slurm announces a preemption or the end of the job's time, submitit calls
    `checkpoint` and submits what that returns.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> JobResult:
        """Run the job's process to its end."""
        return run_job(self.job, {}, lambda: False)

    def checkpoint(self) -> Any:
        """Return the same job: the run resumes from its own last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SlurmTask(self.job))


class SlurmLauncher(Launcher):
    """Submits the jobs that are ready together as one array.

    Args:
        folder: Folder for files of submitit, on a file system that the nodes share.
        slots: Most jobs submitted at a time.
        threads: CPUs of each job.
        gpus: GPUs of each job.
        cluster: `slurm`, or `local` for processes on this machine.
        settings: Further parameters of the submitit executor, such as slurm_partition and timeout_min.

    Raises:
        LauncherError: submitit is not installed, Slurm is not available, or a parameter is wrong.
    """

    def __init__(
        self, *, folder: Path, slots: int, threads: int, gpus: int, cluster: str, settings: Mapping[str, Any]
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise LauncherError("launcher slurm needs the extra: pip install 'lra-harness[slurm]'") from error
        self._errors: Any = submitit.core.utils
        self._slots = slots
        self._running: dict[str, Any] = {}
        parallel = {"slurm_array_parallelism": slots} if cluster == "slurm" else {}
        try:
            self._executor: Any = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(cpus_per_task=threads, gpus_per_node=gpus, **parallel, **settings)
        except (RuntimeError, NameError, TypeError) as error:
            raise LauncherError(f"Slurm: {error}") from error

    def free_slots(self) -> int:
        """Return how many more jobs may be submitted."""
        return self._slots - len(self._running)

    def start(self, jobs: Sequence[Job]) -> None:
        """Submit the jobs as one array."""
        with self._executor.batch():
            submitted = [(job.key, self._executor.submit(SlurmTask(job))) for job in jobs]
        self._running |= dict(submitted)

    def poll(self) -> list[JobResult]:
        """Return the results of the jobs that ended."""
        return [self._result(key) for key, job in list(self._running.items()) if job.done()]

    def stop(self) -> None:
        """Cancel all jobs; Slurm sends SIGTERM to their processes."""
        for job in self._running.values():
            job.cancel()

    def close(self) -> None:
        """Forget the jobs; cancelled ones end by themselves and write their state to the store."""
        self._running.clear()

    def _result(self, key: str) -> JobResult:
        job = self._running.pop(key)
        try:
            result: JobResult = job.result()
        except (self._errors.UncompletedJobError, self._errors.FailedJobError) as error:
            return JobResult(key=key, returncode=None, detail=f"Slurm job {job.job_id}: {str(error).strip()[:500]}")
        return result
