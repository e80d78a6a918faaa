# SPDX-License-Identifier: Apache-2.0
"""Execute one job: start `lra-run` as a fresh process, wait for its end, and stop it when it takes too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from ... import signals
from .base import Job, JobResult

MODULE = __name__.removesuffix(".sweep.launchers.process") + ".cli.run"
POLL_SECONDS = 0.1
DUMP_SECONDS = 2.0
"""Time that a hanging process has to write its stack to the log."""
TAIL_BYTES = 4000
"""How much of the end of the log goes into `JobResult.detail`."""


def run_job(job: Job, environment: Mapping[str, str], stop: Callable[[], bool]) -> JobResult:
    """Start the job's process and wait for its end.

    At the timeout, or when `stop` returns True, the process gets SIGTERM, on which a run saves its state; after the
    grace period it gets SIGABRT, on which Python writes its stack to the log, and then SIGKILL.

    Args:
        job: The job.
        environment: Variables to set, such as CUDA_VISIBLE_DEVICES.
        stop: Polled while the process runs.

    Raises:
        OSError: The process cannot be started, or its log cannot be written.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-X", "faulthandler", "-m", MODULE, "--config", "-", *job.arguments]
    with job.log.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | dict(environment),
            start_new_session=True,  # Ctrl-C reaches the driver only, which then stops its jobs
        )
    signals.children.add(process.pid)
    timed_out = False
    try:
        _send(process, job.config)
        timed_out = _wait(process, job, stop)
    finally:
        if process.poll() is None:  # after an exception, such as a cancellation of Ray
            _terminate(process, job.grace_seconds)
        signals.children.discard(process.pid)
    return JobResult(key=job.key, returncode=process.returncode, timed_out=timed_out, detail=_tail(job, log_start))


def _send(process: subprocess.Popen[bytes], text: str) -> None:
    """Write the configuration to the standard input of the process."""
    assert process.stdin is not None
    try:
        process.stdin.write(text.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # the process died at once; its return code says why


def _wait(process: subprocess.Popen[bytes], job: Job, stop: Callable[[], bool]) -> bool:
    """Wait for the end of the process; return whether the timeout caused it."""
    started = time.monotonic()
    while process.poll() is None:
        timed_out = job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds
        if timed_out or stop():
            _terminate(process, job.grace_seconds)
            return timed_out
        time.sleep(POLL_SECONDS)
    return False


def _terminate(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Send SIGTERM, SIGABRT and SIGKILL, with a pause after each, until the process ends."""
    for number, patience in ((signal.SIGTERM, grace_seconds), (signal.SIGABRT, DUMP_SECONDS)):
        process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()


def _tail(job: Job, log_start: int) -> str:
    """Return the last lines that this process wrote; earlier attempts may stand before `log_start`."""
    with job.log.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(log_start, end - TAIL_BYTES))
        return log.read().decode(errors="replace").strip()
