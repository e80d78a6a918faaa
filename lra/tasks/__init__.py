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

__all__ = ["TASKS", "Task", "TaskInfo", "TaskOptions", "get_task"]

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


def get_task(name: str) -> Task[Any]:
    """Find a task by name; `-` and case fold.

    Raises:
        UsageError: With the closest names.
    """
    key = fold(name)
    if key not in TASKS:
        raise UsageError(f"unknown task {name!r}; {suggest(key, TASKS)}")
    return TASKS[key]
