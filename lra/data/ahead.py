# SPDX-License-Identifier: Apache-2.0
"""Batches made ahead of the step that takes them, by a thread, in memory that a GPU copies from without waiting."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import torch

from lra.data.batching import Batch
from lra.seeding import seed_all

T = TypeVar("T")
DEPTH = 2
"""Items that are ready at most, beside the one at work."""
CPU = torch.device("cpu")
_JOIN_SECONDS = 1.0
"""How long the end of a run waits for a thread that reads from a slow disk."""


class Ahead(Iterator[T]):
    """An iterator that a thread of its own runs, a few items ahead.

    Items come in the same order, and an error of the thread is raised where its item would have come. Use it in a
    `with` statement, whose end ends the thread, whatever ends it.
    """

    def __init__(self, items: Iterable[T], depth: int = DEPTH) -> None:
        self._items = iter(items)
        self._room = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue[_Item[T] | BaseException] = queue.SimpleQueue()
        self._closed = False
        # A daemon does not keep a process alive that has been told to end.
        self._thread = threading.Thread(target=self._make, name="batches ahead", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            while self._room.acquire() and not self._closed:
                self._ready.put(_Item(next(self._items)))
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            self._ready.put(error)  # StopIteration too, which ends the iterator

    def __next__(self) -> T:
        """Return the next item, waiting for it if it is not ready.

        Raises:
            StopIteration: There are no more.
        """
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._ready.put(found)  # for whoever asks again
            raise found
        self._room.release()
        return found.value

    def __enter__(self) -> Self:
        """Return the iterator."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self._closed = True
        self._room.release()
        self._thread.join(_JOIN_SECONDS)


class _Item(Generic[T]):
    """An item that is ready; in a box, since an item may be an error itself."""

    def __init__(self, value: T) -> None:
        self.value = value


class Batches(Protocol):
    """A stream of training batches, addressed by step."""

    def batch(self, step: int, device: torch.device) -> Batch:
        """Return the batch of one step."""


class BatchesInTurn:
    """The batches of a stream, each made when it is asked for, with the generators of the process seeded by its step.

    For changes of others, which may draw from these generators.
    """

    def __init__(self, batches: Batches, seed: int) -> None:
        self.batches, self.seed = batches, seed

    def batch(self, step: int, device: torch.device) -> Batch:
        """Return the batch of one step."""
        seed_all(self.seed, "batch", step)
        return self.batches.batch(step, device)


class BatchesAhead:
    """The batches of a stream, made ahead by a thread while the device computes.

    A batch is a function of its step, so it is the same bits whoever makes it. Use it in a `with` statement.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches, self.device = batches, device
        self._ahead: Ahead[Batch] | None = None
        self._next = -1

    def batch(self, step: int, device: torch.device) -> Batch:
        """Return the batch of one step. Whatever step follows is being made; another one starts the thread again."""
        if self._ahead is None or step != self._next:
            self.close()
            made = (self.batches.batch(number, CPU).staged(self.device) for number in itertools.count(step))
            self._ahead = Ahead(made)
        self._next = step + 1
        return next(self._ahead).to(device)

    def __enter__(self) -> Self:
        """Return the batches."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread."""
        self.close()

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._ahead is not None:
            self._ahead.__exit__(None, None, None)
            self._ahead = None
