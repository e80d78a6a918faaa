# SPDX-License-Identifier: Apache-2.0
"""Where the files that tasks are read from are kept: `sources/` in the folder of prepared data.

An entry is a link to the user's own file, or to one that `lra-data fetch` put there, so every variant of a dataset can
be prepared from a file that was named once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from lra.atomic_io import file_digest
from lra.data.dataset import data_home
from lra.errors import DataError
from lra.names import suggest_path
from lra.reading import reading
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
    """Remember a file or folder under a key, in place of an earlier one; nothing is copied.

    The data is prepared by then, so if the file system refuses, a warning says what that costs.
    """
    if kept_source(home, key) == source.resolve():
        return
    entry = home / FOLDER / key
    temporary = entry.with_name(f".{key}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
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
        digests = {file.name: file_digest(file) for file in listed}
        yield digests
    for file in listed:  # a file that is written through a mapping may keep its time for a while
        if file_digest(file) != digests[file.name]:
            raise _changed(file)


@contextlib.contextmanager
def untouched(files: Iterable[Path]) -> Iterator[None]:
    """Check that nobody writes files, or puts others in their places, while a block reads them.

    Neither the size nor the time of a file tells that another one had its path for a while, nor that another folder
    had. The time at which a file, a link or a folder got its name does (`st_ctime`).

    Raises:
        DataError: By the end of the block, a file has another size, time or inode, or a link or folder above it was
            put in place.
    """
    before = {place: _state(place) for place in _places(files)}
    yield
    for place, state in before.items():
        if _moved(state, _state(place)):
            raise _changed(place)


def _places(files: Iterable[Path]) -> Iterator[Path]:
    """Yield files, and the links and folders that lead to them."""
    folders = set[Path]()
    for file in files:
        yield file
        folders.add(file.parent)
        if file.is_symlink():
            target = file.resolve()
            yield target
            folders.add(target.parent)
    for folder in folders:
        for path in {folder.absolute(), folder.resolve()}:
            yield from (path, *path.parents)


def _moved(before: os.stat_result | None, now: os.stat_result | None) -> bool:
    """Say whether something was written or put in place; what a folder holds besides may change."""
    if before is None or now is None:
        return before is not now
    if stat.S_ISDIR(before.st_mode) and (before.st_dev, before.st_ino) == (now.st_dev, now.st_ino):
        return before.st_ctime_ns != now.st_ctime_ns > now.st_mtime_ns  # a new entry sets both to the same time
    return _identity(before) != _identity(now)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def _state(place: Path) -> os.stat_result | None:
    try:
        return place.lstat()
    except OSError:
        return None  # who reads it says why


def _changed(place: Path) -> DataError:
    return DataError(f"{place}: changed while it was read; prepare the data again")


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
