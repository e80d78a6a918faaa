# SPDX-License-Identifier: Apache-2.0
"""Options and helpers that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from lra.errors import UsageError, refusals_as

AT_A_TIME = click.IntRange(1, 1_024)
"""Threads, processes or runs at a time; a machine that is asked for far more of them stands still."""

store_option = click.option(
    "--store",
    "store_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("lra-results"),
    show_default=True,
    envvar="LRA_STORE",
    show_envvar=True,
    help="Folder of records, checkpoints and measurements.",
)


def _default_home() -> Path:
    from lra.data.dataset import data_home

    return data_home()


data_dir_option = click.option(
    "--data-dir",
    "home",
    type=click.Path(path_type=Path, file_okay=False),
    default=_default_home,
    envvar="LRA_HOME",
    show_envvar=True,
    help="Folder of prepared data.  [default: the platform's cache folder]",
)

allow_other_environment_option = click.option(
    "--allow-other-environment",
    is_flag=True,
    help="Continue a run that was stopped under another number of threads, device or version of torch.",
)
deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    help="Take only the deterministic algorithms of torch, so that a run on CUDA gives the same bits again. Some are "
    "slower, and a variant that needs an operator without one is refused. On the CPU, bits repeat without it.",
)
THREADS_DEFAULT = "[default: OMP_NUM_THREADS, else CPU cores divided by the default slots of a sweep]"


class FiniteRange(click.FloatRange):
    """A range of numbers without "not a number", which compares as if it were in every range, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a value as click does, then refuse what is no number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number", param, ctx)
        return number


def write_file(path: Path, content: str) -> None:
    """Write a text file in one step.

    Raises:
        UsageError: The file cannot be written.
    """
    from lra.atomic_io import atomic_write

    with refusals_as(UsageError, f"cannot write {path}"):
        atomic_write(path, content.encode())
