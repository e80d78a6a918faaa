# SPDX-License-Identifier: Apache-2.0
"""Launchers: the places where a sweep starts its runs (processes of this machine, a Ray cluster, Slurm).

To add one, subclass `Launcher`, execute each job with `process.run_job` wherever the job lands, and add a branch in
`runners/cli/sweep.py`.
"""

from .base import Job, JobResult, Launcher, LauncherError

__all__ = ["Job", "JobResult", "Launcher", "LauncherError"]
