"""Errors that a command line shows as one line, each with its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LraError(Exception):
    """A mistake or a fault with a message for the user; never shown as a traceback."""

    exit_code = 70


class UsageError(LraError):
    """An unknown name, a wrong value or a setting that the track does not allow."""

    exit_code = 2


class DataError(LraError):
    """Data is missing, damaged or not what it claims to be."""

    exit_code = 3


class StoreError(LraError):
    """The store of results cannot be written or holds something unreadable."""

    exit_code = 3


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which known names are close to a mistyped one, or list them all: the tail of an error line."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known) or 'none'}"
