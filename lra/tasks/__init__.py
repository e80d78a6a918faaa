# SPDX-License-Identifier: Apache-2.0
"""The tasks of the arena, one module or package each; the probes; and tasks of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lra.data.augment import Augmentation
from lra.errors import UsageError
from lra.names import fold, suggest
from lra.tasks.base import Task, TaskInfo, TaskOptions
from lra.tasks.generated import GeneratedOptions, GeneratedTask
from lra.tasks.image.task import Image, ImageContinuous
from lra.tasks.listops.task import ListOps
from lra.tasks.pathfinder.task import Pathfinder, Pathfinder64, PathfinderContinuous, PathX, PathX256
from lra.tasks.plugins import LOADED, announced, load_task
from lra.tasks.probes import ALL as _PROBES
from lra.tasks.retrieval import Retrieval
from lra.tasks.text import Text

if TYPE_CHECKING:
    from lra.config.schema import RunConfig

__all__ = [
    "BENCHMARK",
    "PROBES",
    "TASKS",
    "GeneratedOptions",
    "GeneratedTask",
    "Task",
    "TaskInfo",
    "TaskOptions",
    "augmentation_of",
    "get_task",
    "info_of",
    "is_loaded",
    "task_name",
]

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
PROBES: dict[str, Task[Any]] = {task.info.name: task for task in _PROBES}
"""Tasks that measure one ability each, with a certified distance: see `lra.tasks.probes`."""
BENCHMARK = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
"""The six tasks of the Long Range Arena, in its order. The others are variants of these."""
_DATASETS = {"imdb": "text", "aan": "retrieval", "cifar10": "image", "cifar_10": "image"}
"""Tasks that are also known by the name of their data."""


def task_name(name: str) -> str:
    """Return the registered form of what a user writes for a task, known or not; `imdb` is `text`.

    A reference to a file or module, such as `my_task.py:MyTask`, stays.
    """
    return name.strip() if ":" in name else _DATASETS.get(fold(name), fold(name))


def is_own(name: str) -> bool:
    """Say whether a task is part of this project, so that no code of others is loaded for it."""
    return name in TASKS or name in PROBES


def get_task(name: str) -> Task[Any]:
    """Find a task by its name, that of its data, or `file.py:Class`; `-` and case fold.

    Raises:
        UsageError: There is none, with the closest names; or a task of others cannot be imported.
    """
    key = task_name(name)
    own = TASKS | PROBES
    if is_own(key):
        return own[key]
    if ":" in key or key in announced():
        return load_task(key, frozenset(own))
    raise UsageError(f"unknown task {name!r}; {suggest(key, own | announced())}")


def is_loaded(name: str) -> bool:
    """Say whether `get_task` would import no file of a reference: a record is no reason to run one."""
    return ":" not in name or name.strip() in LOADED


def augmentation_of(config: RunConfig) -> Augmentation | None:
    """Return what a run does to its training examples; None if nothing.

    Raises:
        UsageError: See `get_task`.
    """
    train = config.train
    if not train.augment and train.crop is None:
        return None
    task = get_task(config.task)
    change = task.augmentation(task.options.model_validate(config.data)) if train.augment else None
    return Augmentation(crop=train.crop, change=change)


def info_of(config: RunConfig) -> TaskInfo:
    """Return the facts of a run's task, with the vocabulary and the classes that its options give it.

    Raises:
        UsageError: See `get_task`.
    """
    task = get_task(config.task)
    return task.info_for(task.options.model_validate(config.data))
