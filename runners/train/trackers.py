# SPDX-License-Identifier: Apache-2.0
"""Where the numbers of a run go besides its record: always an event file, and TensorBoard or others if asked for.

Trackers are called directly. Whatever a tracker raises, the run goes on: the tracker is dropped with one line. Records
never depend on trackers.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lra.config.schema import RunConfig
from lra.errors import UsageError
from lra.names import suggest
from lra.terminal import echo

GROUP = "lra.trackers"


class Tracker(Protocol):
    """Takes the numbers of a run. A plug-in offers a `Factory` under the entry-point group `lra.trackers`."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step."""

    def close(self) -> None:
        """Finish."""


Factory = Callable[[Path, str, Mapping[str, Any]], Tracker]
"""Builds a tracker from its own folder, a name for the run, and the configuration of the run."""


class EventFile:
    """Appends one line of JSON per event. The file can be followed during the run."""

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
        self._file.write(json.dumps(event) + "\n")  # NaN is allowed here: this is a log, not a record


class TensorBoard:
    """Writes event files of TensorBoard (extra `tensorboard`)."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils import tensorboard

        make_writer: Any = tensorboard.SummaryWriter  # untyped in torch
        self._writer = make_writer(folder / name)
        self._writer.add_text("config", json.dumps(config, indent=1))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar per value."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


class WeightsAndBiases:
    """Writes an offline run of Weights & Biases (extra `wandb`). `wandb sync` uploads it, nothing else does."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        # Without console="off", wandb would replace stdout and stderr of this process.
        self._run: Any = wandb.init(
            project="lra",
            name=name,
            config=dict(config),
            dir=folder,
            mode="offline",
            settings={"silent": True, "console": "off"},
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run of wandb."""
        self._run.finish()


BUILT_IN: dict[str, Factory] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Trackers:
    """All trackers of one run. Leaving its `with` block closes them."""

    def __init__(self, factories: Mapping[str, Factory], root: Path, name: str, config: Mapping[str, Any]) -> None:
        self._trackers: dict[str, Tracker] = {}
        for title, factory in factories.items():
            folder = root / title.replace(":", "-")
            try:
                self._trackers[title] = factory(folder, name, config)
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
                self._drop(title, error)

    def __enter__(self) -> Trackers:
        """Return the trackers."""
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass the values of a step to every tracker."""
        for title, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, values)
            except Exception as error:  # noqa: BLE001 - as above
                self._drop(title, error)

    def __exit__(self, *exception: object) -> None:
        """Close every tracker."""
        for title, tracker in list(self._trackers.items()):
            try:
                tracker.close()
            except Exception as failure:  # noqa: BLE001 - as above
                self._drop(title, failure)

    def _drop(self, title: str, error: Exception) -> None:
        self._trackers.pop(title, None)
        echo(f"Tracker {title} is off from here on: {type(error).__name__}: {error}", err=True)


def open_trackers(names: tuple[str, ...], root: Path, run_id: str, config: RunConfig) -> Trackers:
    """Open the event file of a run and the trackers of these names, all in folders of the store."""
    factories: dict[str, Factory] = {"events": EventFile}
    factories |= {name: _factory(name) for name in names}
    return Trackers(factories, root, run_id, config.model_dump())


def check_trackers(names: tuple[str, ...]) -> None:
    """Check the names of trackers before anything runs.

    Raises:
        UsageError: A tracker is unknown.
    """
    known = {*BUILT_IN, *(point.name for point in importlib.metadata.entry_points(group=GROUP))}
    for name in names:
        if name not in known:
            raise UsageError(f"unknown tracker {name!r}; {suggest(name, known)}")


def _factory(name: str) -> Factory:
    """Return the factory of a tracker. A plug-in is imported when its factory is called, within the `try` around it."""
    if name in BUILT_IN:
        return BUILT_IN[name]

    def load_and_build(folder: Path, run: str, config: Mapping[str, Any]) -> Tracker:
        (point,) = importlib.metadata.entry_points(group=GROUP, name=name)
        factory: Any = point.load()
        tracker: Tracker = factory(folder, run, config)
        return tracker

    return load_and_build
