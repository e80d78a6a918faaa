# SPDX-License-Identifier: Apache-2.0
"""Worker processes that compute numbered pieces, handed over in order.

A worker is a fresh interpreter with two pipes to this process, which it shares with nobody. So it can be ended at any
moment, nothing of the user's program is imported in it, and any program can use it: a script without a main guard, a
notebook, or code from standard input.
"""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from lra.errors import DataError

T = TypeVar("T")

_START = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from lra.data.process_pool import serve
serve()
"""


def in_order(function: Callable[[int], T], numbers: Iterable[int], workers: int) -> Iterator[T]:
    """Yield `function(number)` for each number, in order, computed ahead by worker processes if there are several.

    Each worker computes two pieces ahead at most. The workers end with the iterator, whatever they are doing.

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
    crew: list[_Worker] = []
    pending: deque[_Worker] = deque()
    try:
        crew.extend(_Worker(function) for _ in range(workers))
        for number, worker in zip(numbers, itertools.cycle(crew), strict=False):
            worker.ask(number)
            pending.append(worker)
            if len(pending) >= 2 * workers:
                yield pending.popleft().answer()
        while pending:
            yield pending.popleft().answer()
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise DataError("a worker process died; out of memory?") from error
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A process that computes one piece after the other.

    Args:
        function: What it computes of each number.
    """

    def __init__(self, function: Callable[[int], Any]) -> None:
        # A session of its own, since Ctrl-C and a closed terminal are for this process to handle.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._send(sys.path)
        self._send(function)

    def ask(self, number: int) -> None:
        """Ask for a piece.

        Raises:
            BrokenPipeError: The process has ended.
        """
        self._send(number)

    def answer(self) -> Any:
        """Return the next of the pieces asked for, or raise the error that its function raised.

        Raises:
            EOFError: The process has ended.
            UnpicklingError: It ended while it answered.
        """
        assert self._process.stdout is not None
        computed, result = pickle.load(self._process.stdout)
        if not computed:
            raise result
        return result

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.communicate()

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(value))
        self._process.stdin.flush()


def serve() -> None:
    """Compute the pieces that standard input asks for; the process ends with it, so it does not outlive its parent."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a function prints is no answer
    function = pickle.load(sys.stdin.buffer)
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        number = asked.get()
        try:
            answer = True, function(number)
        except Exception as error:  # noqa: BLE001 - raised again in the parent process
            answer = False, error
        try:
            answers.write(pickle.dumps(answer))
            answers.flush()
        except BrokenPipeError:
            os._exit(0)


def _listen(asked: queue.SimpleQueue[int]) -> None:
    while True:
        try:
            asked.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            os._exit(0)
