# SPDX-License-Identifier: Apache-2.0
"""Where the files that tasks are read from are kept: `sources/` in the folder of prepared data.

An entry is a link to the user's own file, or to one that `lra-data fetch` put there, so every variant of a dataset can
be prepared from a file that was named once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from lra.atomic_io import temporary_name
from lra.data.dataset import data_home
from lra.errors import DataError
from lra.names import suggest_path
from lra.reading import CHANGED, WATCHED, identity, open_regular, reading
from lra.terminal import echo

FOLDER = "sources"
RELEASE_PLACES = ("lra_release/lra_release", "lra_release", ".")
"""Where the parts of the benchmark's archive can be below the folder that it was unpacked to. It holds two copies of
pathfinder128; the inner one comes first."""


def check_source(source: Path) -> None:
    """Check that a file or folder to read from is there.

    Raises:
        DataError: It is not; the line suggests similar names.
    """
    with reading(str(source)[:80]):  # such as a name that is too long for a file
        found = source.exists()
    if not found:
        raise DataError(f"{source}: no such file or folder{suggest_path(source)}")


def places_in_release(source: Path, part: str) -> list[Path]:
    """Return where a part of the benchmark's archive may be: the folder that a user names, or one below it.

    Args:
        source: The folder of the part itself, or one of those above it; links are followed.
        part: Folder in the archive, such as `listops-1000`.
    """
    return [source, *(source / place / part for place in RELEASE_PLACES)]


def kept_source(home: Path, key: str) -> Path | None:
    """Return the file or folder that was kept under a key; None if there is none, or it is gone."""
    entry = home / FOLDER / key
    return entry.resolve() if entry.exists() else None


def keep_source(home: Path, key: str, source: Path) -> None:
    """Remember a file or folder under a key, in place of an earlier link; nothing is copied.

    What has the name of the key and is no link is the user's own, and stays. The data is prepared by then, so if that
    is so or the file system refuses, a warning says what that costs.
    """
    if kept_source(home, key) == source.resolve():
        return
    entry = home / FOLDER / key
    if entry.exists() and not entry.is_symlink():
        echo(f"Warning: {entry} is no link and stays; other dataset variants read it, or need --from again", err=True)
        return
    temporary = temporary_name(entry)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary.symlink_to(source.resolve())
        temporary.replace(entry)
    except OSError as error:
        refusal = f"cannot make a link to {source} in {entry.parent} ({error.strerror or error})"
        echo(f"Warning: {refusal}; other dataset variants need --from again", err=True)


@contextlib.contextmanager
def steady(files: Iterable[Path]) -> Iterator[dict[str, str]]:
    """Give the SHA-256 of files by their names, for the manifest, to a block that reads the files.

    Raises:
        DataError: A file has changed by the end of the block, so that what was read may not be what was hashed.
    """
    listed = list(files)
    with untouched(listed):
        digests = {file.name: _digest(file) for file in listed}
        yield digests
        for file in listed:  # a file that is written through a mapping may keep its time for a while
            if _digest(file) != digests[file.name]:
                raise DataError(f"{file}: {CHANGED}")


@contextlib.contextmanager
def untouched(files: Iterable[Path]) -> Iterator[None]:
    """Check that nobody writes files, or puts others in their places, while a block reads them by `open_regular`.

    That function opens only these files, and only what had the path when the block began, or a block around it:
    another file, or another folder above it, may have it for a while and leave no trace.

    Raises:
        DataError: By the end of the block, a file has another size, time or inode.
    """
    before = {file: _state(file) for file in files}
    noted = {os.path.abspath(file): state for file, state in before.items()}  # noqa: PTH100 - see `open_regular`
    token = WATCHED.set(noted | dict(WATCHED.get()))
    try:
        yield
        for file, state in before.items():
            if _state(file) != state:
                raise DataError(f"{file}: {CHANGED}")
    finally:
        WATCHED.reset(token)


def _digest(file: Path) -> str:
    with reading(file), open_regular(file) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        return identity(file.stat())
    except OSError:
        return None  # who reads it says why


def missing(task: str, what: str, home: Path) -> DataError:
    """Return the three lines that say what is missing, what fetches it, and what to do with a file fetched by hand."""
    return DataError(
        f"{task}: {what} is neither prepared nor kept in {home / FOLDER}\n"
        f"Fetch and prepare it with: lra-data fetch {task}{_place(home)}\n"
        f"Fetched by hand, it is read with: {read_command(task, home)}"
    )


def read_command(task: str, home: Path) -> str:
    """Return the command that reads a file which was fetched by hand."""
    return f"lra-data prepare {task} --from FILE{_place(home)}"


def _place(home: Path) -> str:
    return "" if home == data_home() else f" --data-dir {home}"
