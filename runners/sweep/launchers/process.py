"""Run one job as a fresh process, to its end, whatever that is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from .base import Job, JobResult

MODULE = __name__.removesuffix(".sweep.launchers.process") + ".cli.run"
LOOK_SECONDS = 0.1
DUMP_SECONDS = 2.0
"""Time that a hanging process has to write out where it hangs."""
TAIL_BYTES = 4000


def run_job(job: Job, environment: Mapping[str, str], stop: Callable[[], bool]) -> JobResult:
    """Start the job's process and wait for it.

    A process that is to end, because of its timeout or because `stop` says so, gets SIGTERM, on which a run saves its
    state; after the grace period SIGABRT, on which Python writes its stack to the log; then SIGKILL.

    Args:
        job: What to run.
        environment: Variables to set, such as CUDA_VISIBLE_DEVICES.
        stop: Asked all the time.

    Raises:
        OSError: No process could be started, or its log cannot be written.
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
            start_new_session=True,  # Ctrl-C is for the driver, which passes it on
        )
    timed_out = False
    try:
        _send(process, job.config)
        timed_out = _wait(process, job, stop)
    finally:
        if process.poll() is None:  # an exception, such as the launcher's own cancellation
            _end(process, job.grace_seconds)
    return JobResult(key=job.key, returncode=process.returncode, timed_out=timed_out, detail=_tail(job, log_start))


def _send(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(text.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; its return code says more


def _wait(process: subprocess.Popen[bytes], job: Job, stop: Callable[[], bool]) -> bool:
    """Wait for the end and return whether the timeout brought it about."""
    started = time.monotonic()
    while process.poll() is None:
        timed_out = job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds
        if timed_out or stop():
            _end(process, job.grace_seconds)
            return timed_out
        time.sleep(LOOK_SECONDS)
    return False


def _end(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
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
    with job.log.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(log_start, end - TAIL_BYTES))
        return log.read().decode(errors="replace").strip()
