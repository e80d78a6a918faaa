# SPDX-License-Identifier: Apache-2.0
"""Worker processes that compute numbered pieces, handed over in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from lra.errors import DataError

T = TypeVar("T")


def in_order(function: Callable[[int], T], numbers: Iterable[int], workers: int) -> Iterator[T]:
    """Yield `function(number)` for each number, in order, computed ahead by worker processes if there are several.

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
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    pending: deque[Future[T]] = deque()
    try:
        for number in numbers:
            pending.append(pool.submit(function, number))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError("a worker process died; out of memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C and a closed terminal to the parent process, and do not outlive it if it is killed."""
    for number in signal.Signals:
        if number.name in {"SIGINT", "SIGHUP"}:  # not every platform has the second
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
