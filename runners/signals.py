"""Requests to stop: the first SIGTERM or SIGINT asks, a second SIGINT insists. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import signal
import types

EXIT_PREEMPTED = 75
EXIT_INTERRUPTED_TWICE = 130

_requested: list[int] = []


def install() -> None:
    """Catch SIGTERM and SIGINT from here on. Call it before the slow imports."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def uninstall() -> None:
    """Let signals end the process at once again, for commands that have no state to save."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def stop_requested() -> bool:
    """Say whether a signal has asked the process to end."""
    return bool(_requested)


def _note(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - the form of a handler
    if number == signal.SIGINT and signal.SIGINT in _requested:
        os._exit(EXIT_INTERRUPTED_TWICE)
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping with the state saved; Ctrl-C again stops at once.\n")
    _requested.append(number)
