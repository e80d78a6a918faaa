# SPDX-License-Identifier: Apache-2.0
"""Everything that is printed: text of files and servers reaches a terminal as text, never as control sequences.

Ruff refuses `click.echo` and `tqdm.write` elsewhere (see `pyproject.toml`), so nothing goes past these functions.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any

import click

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, that reverse or break a line, or that no encoding has."""


def clean(text: object) -> str:
    """Return text with `?` for each control character; ends of lines and tabs stay."""
    return _CONTROL.sub("?", str(text))


def clean_line(text: object) -> str:
    """Return text as one line, with `?` for each control character and a space for ends of lines and tabs."""
    return clean(re.sub(r"[\r\n\t]+", " ", str(text)))


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text, cleaned, to stdout or stderr."""
    click.echo(clean(text), err=err, nl=nl)  # noqa: TID251 - the one place


def print_above_bars(text: object) -> None:
    """Print a line, cleaned, to stderr, above any bars.

    Raises:
        OSError: It cannot be written, as to a terminal that was closed.
    """
    from tqdm import tqdm

    tqdm.write(clean(text), file=sys.stderr)  # noqa: TID251 - the one place


def terminal_size(file: Any) -> tuple[int, int]:
    """Return columns and rows of the terminal of a file; 80 and 24 where it does not tell, or says 0."""
    try:
        columns, rows = os.get_terminal_size(file.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    return columns or 80, rows or 24


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    title: object,
    unit: str,
    shown: bool,
    total: int | None = None,
    start: int = 0,
    scaled: bool = False,
    position: int | None = None,
    keep: bool = True,
    layout: str | None = None,
) -> Any:
    """Return a bar of tqdm with a cleaned title; it is drawn if `shown` and stderr is a terminal.

    Args:
        items: What to count while it is gone through; None for a bar that is advanced with `update`.
        title: What stands in front of the bar.
        unit: What is counted.
        shown: Whether to draw it.
        total: How many there are, where it is known.
        start: How many are done already.
        scaled: Whether to write numbers with k, M and G.
        position: Line below the first bar; None takes the next free one.
        keep: Whether the bar stays when it is complete.
        layout: Format of tqdm; None takes the usual one.
    """
    from tqdm import tqdm

    bar = tqdm(
        items,
        desc=clean_line(title),
        unit=unit,
        total=total,
        initial=start,
        unit_scale=scaled,
        position=position,
        leave=keep,
        bar_format=layout,
        disable=None if shown else True,
    )
    # What tqdm asks by itself says 0 rows where a terminal has no size, and then it draws nothing.
    bar.dynamic_ncols = terminal_size  # type: ignore[assignment]  # it calls what stands here
    bar.ncols, bar.nrows = terminal_size(sys.stderr)
    return bar
