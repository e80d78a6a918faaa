# SPDX-License-Identifier: Apache-2.0
"""Errors that a command line shows as one line, each with its exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

EXIT_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ends at once."""


class LraError(Exception):
    """A mistake or a fault with a message for the user; never shown as a traceback."""

    exit_code = 70


class UsageError(LraError):
    """An unknown name, a wrong value or a setting that the track does not allow."""

    exit_code = 2


class DataError(LraError):
    """Data is missing, damaged or not what it should be."""

    exit_code = 3


class StoreError(LraError):
    """The store of results cannot be written or holds something unreadable."""

    exit_code = 3


class StoppedError(BaseException):
    """A signal ended work that had no state to save; the same command does it again.

    Like KeyboardInterrupt it is no `Exception`, which a reader would take for a fault of the file that it reads.
    """

    exit_code = 75

    def __init__(self) -> None:
        super().__init__("stopped before this command trained anything; run it again")


class DamagedFileError(StoreError):
    """One file of the store is missing, damaged, or not what its name says; others can be used."""


@contextlib.contextmanager
def refusals_as(kind: type[LraError], doing: str) -> Iterator[None]:
    """Turn what the system refuses in the block into one line, such as `cannot write x: No space left on device`.

    Args:
        kind: The class of the error.
        doing: The beginning of the line.

    Raises:
        LraError: Of class `kind`, for an `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{doing}: {error.strerror or error}") from error
