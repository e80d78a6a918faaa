# SPDX-License-Identifier: Apache-2.0
"""Requests to stop: the first SIGTERM, SIGHUP or SIGINT asks, a second SIGINT insists. Imports nothing heavy.

A loop with a state to save asks `stop_requested` now and then. Work without a state, such as the generation of data,
stands inside `stop_at_once`, where the signal ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import types
from collections.abc import Iterator

from lra.errors import EXIT_INTERRUPTED, StoppedError

EXIT_PREEMPTED = 75

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""What a closed terminal sends; None where the platform has no such signal."""

_requested: list[int] = []
_terminals: list[int] = []
_at_once: list[bool] = []
"""Holds one entry for each `stop_at_once` that is entered."""
children: set[int] = set()
"""Processes of this one that a second SIGINT asks to end, because no loop is left that could."""


def install() -> None:
    """Catch SIGTERM, SIGINT and SIGHUP from here on. Call it before the slow imports.

    A SIGHUP that is ignored already, as under nohup, stays ignored.
    """
    _terminals[:] = [output for output in (1, 2) if os.isatty(output)]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        signal.signal(HANGUP, _note)


def uninstall() -> None:
    """Let signals end the process at once again, for commands that have no state to save."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if HANGUP is not None and signal.getsignal(HANGUP) is _note:
        signal.signal(HANGUP, signal.SIG_DFL)


def stop_requested() -> bool:
    """Say whether a signal has asked the process to end."""
    return bool(_requested)


@contextlib.contextmanager
def stop_at_once() -> Iterator[None]:
    """Let the first request to stop end the block, also while it waits for a lock.

    Raises:
        StoppedError: A stop was requested, now or before.
    """
    if _requested:
        raise StoppedError
    _at_once.append(True)
    try:
        yield
    finally:
        _at_once.pop()


def _note(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - the form of a handler
    if number == signal.SIGINT and signal.SIGINT in _requested:
        for child in list(children):  # a copy, because a thread may change it
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        os._exit(EXIT_INTERRUPTED)
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping as soon as it is safe; Ctrl-C again stops at once.\n")
    if number == HANGUP:
        _discard_lost_output()
    _requested.append(number)
    if _at_once and len(_requested) == 1:
        raise StoppedError


def _discard_lost_output() -> None:
    """Let what goes to a terminal that is gone go nowhere: an error of writing must not cost the state."""
    for output in _terminals:
        if not os.isatty(output):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)
            os.close(nowhere)
