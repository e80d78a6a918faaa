# SPDX-License-Identifier: Apache-2.0
"""What every command line shares: errors as one line each, exit codes in `--help`, `--json` and `--version`."""

from __future__ import annotations

import contextlib
import json
import sys
from types import TracebackType
from typing import Any

import click

from lra.errors import EXIT_INTERRUPTED, LraError, StoppedError
from lra.terminal import echo

LINES_SHOWN = 40
"""Of one error, which may list many mistakes."""
LONGEST_LINE = 1_000
"""Characters of a line of an error that are shown."""

EXIT_CODES = {
    0: "all is done",
    1: "a check failed, or you answered no",
    2: "a wrong option, name or value",
    3: "data or store missing or damaged",
    4: "a run or measurement has no number, or --evaluate counted another one",
    5: "some runs of a sweep have no number",
    70: "a fault of another kind",
    75: "stopped with its state saved; the same command continues",
    EXIT_INTERRUPTED: "interrupted twice, or once where there is no state to save",
}
"""The exit codes of all commands."""


CONTEXT: dict[str, Any] = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}
"""Settings of every command: wide help, also by `-h`."""


class Command(click.Command):
    """A command whose help lists the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes, and what the command itself has to say at the end."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])
        super().format_epilog(ctx, formatter)


class Group(Command, click.Group):
    """A group of commands whose help, and that of each of them, lists the exit codes."""

    command_class = Command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
"""`--json`: the command prints with `echo_json` what its table shows, unrounded."""


def echo_json(rows: list[dict[str, Any]]) -> None:
    """Print the rows of a table as a JSON array of objects; a value that there is not is null."""
    echo(json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False))


version_option = click.version_option(package_name="lra-harness", prog_name="lra-harness")
"""`--version`: looked up only when it is asked for."""


class _OneLineErrors(contextlib.ContextDecorator):
    """Turns every error that is meant for the user into `Error: ...` on stderr and its exit code."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print an error of ours, one line of its message per line, and exit; on Ctrl-C, exit, too."""
        if isinstance(error, KeyboardInterrupt):
            echo("\nStopped; the same command begins again.", err=True)
            sys.exit(EXIT_INTERRUPTED)
        if isinstance(error, LraError | StoppedError):
            lines = str(error).splitlines()
            for line in lines[:LINES_SHOWN]:
                echo(f"Error: {line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + ' ...'}", err=True)
            if len(lines) > LINES_SHOWN:
                echo(f"Error: and {len(lines) - LINES_SHOWN:,} more like these", err=True)
            sys.exit(error.exit_code)


one_line_errors = _OneLineErrors()
"""Decorator of the function of a command."""
