"""What the commands of `lra-data` share: which task and options are meant, what is prepared, what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lra.prepared import PreparedData
    from lra.tasks.base import Task, TaskOptions


def describe(data: PreparedData) -> None:
    """Print what prepared data holds, and what answers without a model get."""
    click.echo(f"{data.manifest.task}, {data.manifest.edition}; digest {data.digest[:12]}")
    for name, record in data.manifest.splits.items():
        lengths = f"{record.min_length} to {record.max_length} tokens"
        click.echo(f"  {name}: {record.examples:,} examples of {lengths}, {record.tokens:,} in all")
    rails = ", ".join(f"{name} {value:.1f}" for name, value in data.manifest.rails.items())
    click.echo(f"Without a model, in %: {rails}")


def resolve(task: str, settings: tuple[str, ...], profile: str | None = None) -> tuple[Task[Any], TaskOptions]:
    """Find a task and build its options from `--profile` and, over it, `--set`.

    Raises:
        UsageError: A setting is not `key=value`, or not one that the task takes.
    """
    from lra.config import validate_section
    from lra.errors import UsageError
    from lra.profiles import load_profile
    from lra.strict_yaml import load_text
    from lra.tasks import get_task

    the_task = get_task(task)
    values: dict[str, Any] = {} if profile is None else dict(load_profile(profile).recipe(the_task.info.name).data)
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {setting}: expected key=value, such as seed=1")
        values[key.strip().removeprefix("data.")] = load_text(value, f"--set {key}")
    options, problems = validate_section(the_task.options, values, "data")
    if options is None:
        raise UsageError("\n".join(problems))
    return the_task, options


def prepared_folders(home: Path) -> list[Path]:
    """List the folders named after a task; temporary ones, whose names begin with a dot, are not among them."""
    from lra.tasks import TASKS

    if not home.is_dir():
        return []
    return sorted(path for path in home.iterdir() if path.is_dir() and task_of(path) in TASKS)


def task_of(folder: Path) -> str:
    """Return the name of the task that a prepared folder is of."""
    return folder.name.partition("-")[0]
