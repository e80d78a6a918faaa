# SPDX-License-Identifier: Apache-2.0
"""Tasks of others: announced under the entry-point group `lra.tasks`, or named by `file.py:Class`.

They are loaded, and their source is hashed, as variants of others are: see `attention_zoo.program`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from typing import Any

import numpy as np

from lra.data.split import SPLITS, Split, SplitName
from lra.errors import UsageError
from lra.names import fold
from lra.tasks.base import Task, TaskInfo, TaskOptions
from lra.tasks.generated import GeneratedTask

ENTRY_POINT_GROUP = "lra.tasks"
OF_THE_HARNESS = ("prepare", "write", "folder_name", "origin", "build_from_pickles")
"""What a task of others does not replace."""
TRIAL_EXAMPLES = 8
"""Examples of each split and length that are drawn when a task is tried."""


def announced() -> dict[str, EntryPoint]:
    """Return the entry points of installed tasks, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


LOADED: dict[str, Task[Any]] = {}
"""The tasks of others that were made in this process, by what named them."""


def load_task(name: str, taken: Collection[str]) -> Task[Any]:
    """Import a task of others and make it, once per process.

    Args:
        name: `file.py:Class`, `package.module:Class`, or the name of an entry point.
        taken: Names of the tasks of this project, which no other task may have.

    Raises:
        UsageError: There is none, or it is not a task; in one line.
    """
    from attention_zoo.faults import fault_line  # here, since it imports torch, which lra-data does without
    from attention_zoo.foreign import ForeignError, import_place
    from attention_zoo.program import ProgramError, program_text, remember_imports

    if name in LOADED:
        return LOADED[name]
    point = announced().get(name)
    place, _, thing = (name if point is None else point.value).partition(" ")[0].rpartition(":")
    try:
        found = getattr(import_place(place), thing, None)
    except ForeignError as error:
        raise UsageError(f"--task {name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"--task {name} cannot be imported: {fault_line(error)}") from error
    remember_imports()
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UsageError(f"--task {name}: {thing} is not a class of lra.tasks.GeneratedTask, but {found!r}")
    _check(name, found, taken)
    task = found()
    if point is None and _announces(task):
        raise UsageError(f"--task {name} is the task {task.info.name}; one run has one name: take that")
    if point is not None and task.info.name != name:
        raise UsageError(f"--task {name}: the entry point has another name than its task, {task.info.name!r}")
    distribution = None if point is None else point.dist
    label = f"{PurePath(place).name}:{thing}"
    if distribution is not None:
        label = f"{distribution.name} {distribution.version} {label}"
    modules = list(dict.fromkeys((place, found.__module__))) if point else [place]

    def program(options: TaskOptions) -> str:
        made = {"place": place, "name": thing, "options": options.model_dump_json()}
        try:
            return program_text(label, modules, "", made, trial="lra.tasks.plugins:try_task")
        except ProgramError as error:
            raise UsageError(f"--task {name}: its source cannot be found: {error}") from error

    task.program = program
    LOADED[name] = task
    return task


def _announces(task: Task[Any]) -> bool:
    """Say whether an entry point with the name of a task leads to its class, be it imported from its file."""
    point = announced().get(task.info.name)
    with contextlib.suppress(Exception):  # the distribution of the entry point may be broken
        return point is not None and _place(point.load()) == _place(type(task))
    return False


def _place(of: type[Any]) -> tuple[str, str]:
    return os.path.realpath(inspect.getfile(of)), of.__qualname__


def try_task(place: str, name: str, options: str) -> None:
    """Draw some examples of a task and call all else that it may define, so that it imports and reads what it needs.

    Args:
        place: Module or file of the task.
        name: Its class there.
        options: Its options, as JSON.
    """
    from attention_zoo.foreign import import_place

    task: Task[Any] = getattr(import_place(place), name)()
    chosen = task.options.model_validate_json(options)
    for call in (task.info_for, task.defaults, task.dataset_name, task.short_name, task.max_length, task.source_key):
        with contextlib.suppress(Exception):
            call(chosen)
    for call in (task.generates, functools.partial(task.small, train=1)):
        with contextlib.suppress(Exception):
            call(chosen)
    with contextlib.suppress(Exception):
        task.default_recipe()
    if not isinstance(task, GeneratedTask):
        return
    splits: dict[SplitName, Split] = {}
    for split in SPLITS:
        with contextlib.suppress(Exception):
            splits[split] = task.draw(chosen, split, most=TRIAL_EXAMPLES)
    with contextlib.suppress(Exception):
        task.baselines(chosen, splits)
    with contextlib.suppress(Exception):
        for features in task.baseline_features().values():
            features(splits["train"], np.arange(len(splits["train"])))
    with contextlib.suppress(Exception):
        change = task.augmentation(chosen)
        if change is not None:
            change(splits["train"].tokens_of(0), np.random.default_rng(0))
    with contextlib.suppress(Exception):
        task.describe_example(splits["test"], 0)


def _check(name: str, found: type[Task[Any]], taken: Collection[str]) -> None:
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    replaced = [method for method in OF_THE_HARNESS if getattr(found, method) is not getattr(Task, method)]
    info, options = getattr(found, "info", None), getattr(found, "options", None)
    if missing:
        problem = f"define {', '.join(missing)}"
    elif replaced:
        problem = f"leave {', '.join(replaced)} as it is, which says what data is prepared from"
    elif not isinstance(info, TaskInfo):
        problem = "give it `info = TaskInfo(name=..., title=..., version=1, vocab_size=..., num_classes=...)`"
    elif not (isinstance(options, type) and issubclass(options, TaskOptions)):
        problem = "give it `options`, a class of GeneratedOptions"
    elif not info.name.isidentifier() or info.name != fold(info.name):
        problem = f"its name {info.name!r} must be lower snake case"
    elif info.name in taken:
        problem = f"its name {info.name!r} is that of a task of this project"
    else:
        return
    raise UsageError(f"--task {name}: {found.__name__}: {problem}")
