"""What every command line shares: errors as one line each, with their exit code, and `--version`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

import click

from lra.errors import LraError

P = ParamSpec("P")

version_option = click.version_option(package_name="lra-harness", prog_name="lra-harness")
"""`--version`: looked up only when it is asked for."""


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
