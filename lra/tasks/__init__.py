# SPDX-License-Identifier: Apache-2.0
"""The tasks of the arena: one module or package each."""

from __future__ import annotations

from typing import Any

from lra.errors import UsageError
from lra.names import fold, suggest
from lra.tasks.base import Task, TaskInfo, TaskOptions
from lra.tasks.image.task import Image, ImageContinuous
from lra.tasks.listops.task import ListOps
from lra.tasks.pathfinder.task import Pathfinder, Pathfinder64, PathfinderContinuous, PathX, PathX256
from lra.tasks.retrieval import Retrieval
from lra.tasks.text import Text

__all__ = ["BENCHMARK", "TASKS", "Task", "TaskInfo", "TaskOptions", "get_task", "task_name"]

_ALL: tuple[Task[Any], ...] = (
    ListOps(),
    Text(),
    Retrieval(),
    Image(),
    ImageContinuous(),
    Pathfinder(),
    PathfinderContinuous(),
    Pathfinder64(),
    PathX(),
    PathX256(),
)
TASKS: dict[str, Task[Any]] = {task.info.name: task for task in _ALL}
BENCHMARK = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
"""The six tasks of the Long Range Arena, in its order. The others are variants of these."""
_DATASETS = {"imdb": "text", "aan": "retrieval", "cifar10": "image", "cifar_10": "image"}
"""Tasks that are also known by the name of their data."""


def task_name(name: str) -> str:
    """Return the registered form of what a user writes for a task, known or not; `imdb` is `text`."""
    return _DATASETS.get(fold(name), fold(name))


def get_task(name: str) -> Task[Any]:
    """Find a task by its name or that of its data; `-` and case fold.

    Raises:
        UsageError: With the closest names.
    """
    key = task_name(name)
    if key not in TASKS:
        raise UsageError(f"unknown task {name!r}; {suggest(key, TASKS)}")
    return TASKS[key]
