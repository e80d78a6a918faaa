"""What the command lines share: one-line errors with their exit codes, and the options that several have."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import click

from lra.errors import LraError, UsageError

P = ParamSpec("P")

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="LRA_HOME",
    show_envvar=True,
    help="Folder of prepared data.  [default: the platform's cache folder]",
)


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn every error that is meant for the user into `Error: ...` on stderr and its exit code."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LraError as error:
            for line in str(error).splitlines():
                click.echo(f"Error: {line}", err=True)
            sys.exit(error.exit_code)

    return guarded


def parse_seeds(text: str) -> list[int]:
    """Read `3`, `0-4` or `0,2,5-7`.

    Raises:
        UsageError: A piece is not a number or a rising range.
    """
    seeds: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds {text}: {piece.strip()!r} is not a seed; write 3, 0-4 or 0,2,5")
        start, stop = int(first), int(last or first)
        if stop < start:
            raise UsageError(f"--seeds {text}: {piece.strip()!r} runs backwards; write {stop}-{start}")
        seeds.extend(range(start, stop + 1))
    return list(dict.fromkeys(seeds))
