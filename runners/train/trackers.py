"""Where the numbers of a running cell go besides its record: an event file always, TensorBoard and others if asked for.

Each tracker lives in a thread of its own behind a short queue. Whatever it does, the run goes on at its own pace: when
the queue is full, numbers are dropped; an error ends the tracker with one line; at the end it is waited for a few
seconds. Records never depend on it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from lra.config.schema import RunConfig
from lra.errors import UsageError
from lra.names import suggest

GROUP = "lra.trackers"
QUEUE_LENGTH = 1000
CLOSE_SECONDS = 10.0
"""Longest wait for all trackers at the end of a run."""


class Tracker(Protocol):
    """What a tracker does with numbers. A plug-in offers a `Factory` under the entry-point group `lra.trackers`."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def close(self) -> None:
        """Finish."""


Factory = Callable[[Path, str, Mapping[str, Any]], Tracker]
"""Makes a tracker from a folder of its own, a name for the run, and the run's configuration."""


class EventFile:
    """Appends a line of JSON per event; the file can be followed while the run goes on."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{name}.jsonl").open("a", encoding="utf-8", buffering=1)
        self._write({"event": "start", "config": config})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step."""
        self._write({"event": "step", "step": step, **values})

    def close(self) -> None:
        """Append the end."""
        self._write({"event": "end"})
        self._file.close()

    def _write(self, event: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(event) + "\n")  # NaN is written as such here: this is a log, not a record


class TensorBoard:
    """Writes TensorBoard's event files (extra `tensorboard`)."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils import tensorboard

        make_writer: Any = tensorboard.SummaryWriter  # the stubs leave it untyped
        self._writer = make_writer(folder / name)
        self._writer.add_text("config", json.dumps(config, indent=1))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar per value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """Writes an offline run of Weights & Biases (extra `wandb`); nothing leaves the machine until `wandb sync`."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project="lra", name=name, config=dict(config), dir=folder, mode="offline", settings={"silent": True}
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


BUILT_IN: dict[str, Factory] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Trackers:
    """All trackers of one run; leaving its `with` block closes them."""

    def __init__(self, factories: Mapping[str, Factory], root: Path, name: str, config: Mapping[str, Any]) -> None:
        self._feeds = [
            _Feed(tracker, factory, root / folder, name, config)
            for tracker, factory in factories.items()
            for folder in [tracker.replace(":", "-")]
        ]

    def __enter__(self) -> Trackers:
        """Start the threads."""
        for feed in self._feeds:
            feed.thread.start()
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on the values of a step, without waiting."""
        for feed in self._feeds:
            feed.put((step, dict(values)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask all to close, and wait a little for them."""
        limit = time.monotonic() + CLOSE_SECONDS
        for feed in self._feeds:
            with contextlib.suppress(queue.Full):
                feed.items.put(None, timeout=max(0.0, limit - time.monotonic()))
        for feed in self._feeds:
            feed.thread.join(max(0.0, limit - time.monotonic()))


class _Feed:
    """One tracker, its queue and its thread."""

    def __init__(self, title: str, factory: Factory, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self.title = title
        self.make: Callable[[], Tracker] = lambda: factory(folder, name, config)
        self.items: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(QUEUE_LENGTH)
        self.thread = threading.Thread(target=self._work, daemon=True)

    def put(self, item: tuple[int, dict[str, float]]) -> None:
        """Add an item unless the queue is full."""
        if not self.items.full():  # only the run's own thread adds, so there is room then
            self.items.put_nowait(item)

    def _work(self) -> None:
        try:
            tracker = self.make()
            while (item := self.items.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and may not stop the run
            print(f"Tracker {self.title} has ended: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201


def open_trackers(names: tuple[str, ...], root: Path, run_id: str, config: RunConfig) -> Trackers:
    """Prepare the event file of a cell and the trackers that were asked for, all under the store."""
    factories: dict[str, Factory] = {"events": EventFile}
    factories |= {name: _factory(name) for name in names}
    return Trackers(factories, root, run_id, config.model_dump())


def check_trackers(names: tuple[str, ...]) -> None:
    """Find out early that a tracker is unknown.

    Raises:
        UsageError: It is.
    """
    known = {*BUILT_IN, *(point.name for point in importlib.metadata.entry_points(group=GROUP))}
    for name in names:
        if name not in known:
            raise UsageError(f"unknown tracker {name!r}; {suggest(name, known)}")


def _factory(name: str) -> Factory:
    """Find a tracker; a plug-in is imported in the tracker's own thread, when it is first called."""
    if name in BUILT_IN:
        return BUILT_IN[name]

    def load_and_make(folder: Path, run: str, config: Mapping[str, Any]) -> Tracker:
        (point,) = importlib.metadata.entry_points(group=GROUP, name=name)
        factory: Any = point.load()
        tracker: Tracker = factory(folder, run, config)
        return tracker

    return load_and_make
