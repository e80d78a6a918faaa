# SPDX-License-Identifier: Apache-2.0
"""What every command line shares: errors as one line each, with their exit code, and `--version`."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType

import click

from lra.errors import LraError
from lra.terminal import echo

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
            for line in str(error).splitlines():
                echo(f"Error: {line}", err=True)
            sys.exit(error.exit_code)


one_line_errors = _OneLineErrors()
"""Decorator of the function of a command."""
