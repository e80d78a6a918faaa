# SPDX-License-Identifier: Apache-2.0
"""What every command line shares: errors as one line each, with their exit code, and `--version`."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType

import click

from lra.errors import LraError
from lra.terminal import echo

LINES_SHOWN = 40
"""Of one error, which may list many mistakes."""
LONGEST_LINE = 1_000
"""Characters of a line of an error that are shown."""

version_option = click.version_option(package_name="lra-harness", prog_name="lra-harness")
"""`--version`: looked up only when it is asked for."""


class _OneLineErrors(contextlib.ContextDecorator):
    """Turns every error that is meant for the user into `Error: ...` on stderr and its exit code."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print an error of ours, one line of its message per line, and exit."""
        if isinstance(error, LraError):
            lines = str(error).splitlines()
            for line in lines[:LINES_SHOWN]:
                echo(f"Error: {line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + ' ...'}", err=True)
            if len(lines) > LINES_SHOWN:
                echo(f"Error: and {len(lines) - LINES_SHOWN:,} more like these", err=True)
            sys.exit(error.exit_code)


one_line_errors = _OneLineErrors()
"""Decorator of the function of a command."""
