"""Errors that are meant for the user: one line for each mistake, clean, and not more than a screen holds."""

import pytest

from lra.cli import LINES_SHOWN, LONGEST_LINE, one_line_errors
from lra.errors import DataError, UsageError


def printed(capsys, error):
    with pytest.raises(SystemExit) as caught, one_line_errors:
        raise error
    assert caught.value.code == error.exit_code
    return capsys.readouterr().err.splitlines()


def test_each_line_of_an_error_is_a_line(capsys):
    assert printed(capsys, UsageError("a\nb\x1b[2J")) == ["Error: a", "Error: b?[2J"]


def test_many_and_long_lines_are_cut(capsys):
    lines = printed(capsys, DataError("\n".join(["x" * 10_000] * 500)))
    assert len(lines) == LINES_SHOWN + 1
    assert lines[-1] == f"Error: and {500 - LINES_SHOWN} more like these"
    assert max(map(len, lines)) < LONGEST_LINE + 20


def test_an_error_of_ours_that_is_none_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors:
        raise ZeroDivisionError
