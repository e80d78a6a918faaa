# SPDX-License-Identifier: Apache-2.0
"""Folders for work in progress that a later process takes up again."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from lra.errors import DataError, refusals_as


@contextlib.contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Make a folder for work in progress and keep it to one process; others wait until it is done.

    Raises:
        DataError: The folder cannot be made.
    """
    with refusals_as(DataError, f"cannot write to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def in_progress(folder: Path) -> bool:
    """Say whether a process works in a folder for work in progress now."""
    return is_locked(folder / "lock")


def is_locked(file: Path) -> bool:
    """Say whether a process holds the lock of a file now."""
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
