# SPDX-License-Identifier: Apache-2.0
"""Worker processes that compute numbered pieces, handed over in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import TypeVar

from lra.errors import DataError

T = TypeVar("T")


def in_order(function: Callable[[int], T], numbers: Iterable[int], workers: int) -> Iterator[T]:
    """Yield `function(number)` for each number, in order, computed ahead by worker processes if there are several.

    When the caller stops early, or an error or a signal ends it, the workers are ended too, whatever they compute.

    Args:
        function: Must be picklable when there are several workers.
        numbers: May be endless.
        workers: Processes; with one, the work is done in this process.

    Raises:
        DataError: A worker process died.
    """
    if workers == 1:
        yield from map(function, numbers)
        return
    context = multiprocessing.get_context("spawn")
    unwanted = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(unwanted,))
    pending: deque[Future[T]] = deque()
    try:
        for number in numbers:
            pending.append(pool.submit(_work, function, number))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError("a worker process died; out of memory?") from error
    except BaseException:
        unwanted.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_state = {"working": False, "stopping": False}
"""Of a worker process: whether it computes a piece, and whether nobody wants any more of them."""


def _work(function: Callable[[int], T], number: int) -> T:
    """Compute a piece in a worker process, unless nobody wants it any more."""
    _state["working"] = True
    try:
        if _state["stopping"]:
            raise KeyboardInterrupt
        return function(number)
    finally:
        _state["working"] = False


def _stop(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - the form of a handler
    """End the piece that is computed. Killing the process could leave a queue locked, and the pool would hang."""
    _state["stopping"] = True
    if _state["working"]:
        raise KeyboardInterrupt


def _start_worker(unwanted: Event) -> None:
    """Leave Ctrl-C and a closed terminal to the parent process, and do not outlive it if it is killed."""
    for number in signal.Signals:
        if number.name in {"SIGINT", "SIGHUP"}:  # not every platform has the second
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _stop)
    threading.Thread(target=_exit_after_parent, daemon=True).start()
    threading.Thread(target=_stop_when_unwanted, args=(unwanted,), daemon=True).start()


def _stop_when_unwanted(unwanted: Event) -> None:
    unwanted.wait()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
