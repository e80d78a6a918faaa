# SPDX-License-Identifier: Apache-2.0
"""Execute one job: start `lra-run` as a fresh process, wait for its end, and stop it when it takes too long."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from ... import fresh_python, signals
from .base import Job, JobResult

MODULE = __name__.removesuffix(".sweep.launchers.process") + ".cli.run"
POLL_SECONDS = 0.1
DUMP_SECONDS = 2.0
"""Time that a hanging process has to write its stack to the log."""
LOG_BYTES = 64 * 2**20
"""Size at which a log loses all but its last quarter, so that a process that prints without end fills no disk."""
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
    command = [*fresh_python.command(MODULE, "-X", "faulthandler"), "--config", "-", *job.arguments]
    with _new_log(job.log) as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=fresh_python.environment() | dict(environment),
            start_new_session=True,  # Ctrl-C reaches the driver only, which then stops its jobs
        )
        signals.children.add(process.pid)
        timed_out = False
        try:
            _send(process, job.config)
            timed_out = _wait(process, job, stop, log)
        finally:
            if process.poll() is None:  # after an exception, such as a cancellation of Ray
                _terminate(process, job.grace_seconds)
            signals.children.discard(process.pid)
        return JobResult(
            key=job.key,
            returncode=process.returncode,
            timed_out=timed_out,
            detail=_tail(log, TAIL_BYTES).decode(errors="replace").strip(),
        )


def _new_log(path: Path) -> BinaryIO:
    """Create the first of `<path>-1.log`, `<path>-2.log`, ... that does not exist: no two processes share one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            name = path.with_name(f"{path.name}-{number}.log")
            # Appending, so that what the process writes after `_limit` lands at the new end.
            return os.fdopen(os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666), "w+b", buffering=0)
    raise AssertionError("there is always a next number")


def _send(process: subprocess.Popen[bytes], text: str) -> None:
    """Write the configuration to the standard input of the process."""
    assert process.stdin is not None
    try:
        process.stdin.write(text.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # the process died at once; its return code says why


def _wait(process: subprocess.Popen[bytes], job: Job, stop: Callable[[], bool], log: BinaryIO) -> bool:
    """Wait for the end of the process, and keep its log short; return whether the timeout ended it."""
    started = time.monotonic()
    while process.poll() is None:
        timed_out = job.timeout_seconds is not None and time.monotonic() - started > job.timeout_seconds
        if timed_out or stop():
            _terminate(process, job.grace_seconds)
            return timed_out
        _limit(log)
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


def _limit(log: BinaryIO) -> None:
    """Drop the beginning of a log that has grown too long."""
    if os.fstat(log.fileno()).st_size > LOG_BYTES:
        kept = _tail(log, LOG_BYTES // 4)
        log.truncate(0)
        log.write(b"(earlier output was dropped)\n" + kept)


def _tail(log: BinaryIO, size: int) -> bytes:
    """Return the last bytes of a log."""
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - size))
    return log.read()
