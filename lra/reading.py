# SPDX-License-Identifier: Apache-2.0
"""Reading of files that others made: whatever goes wrong is one line with the name of the file."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType

from lra.errors import DataError, LraError

LONGEST_REASON = 200
"""Characters of what the standard library or another library says that are shown."""


WATCHED: ContextVar[Mapping[str, tuple[int, ...] | None]] = ContextVar("WATCHED", default=MappingProxyType({}))
"""Files that a block of `lra.data.raw_files.untouched` reads, by absolute path, as they were when it began."""
CHANGED = "changed while it was read; prepare the data again"


@contextlib.contextmanager
def reading(place: object, kind: type[LraError] = DataError) -> Iterator[None]:
    """Turn every exception that is not meant for the user into one line.

    Args:
        place: What is read, which begins the line: a file, perhaps with a member or a line of it.
        kind: The class of the error.

    Raises:
        LraError: Of class `kind`, for any `Exception` of the block; errors of ours pass.
    """
    try:
        yield
    except LraError:
        raise
    except OSError as error:
        raise kind(f"{place}: {error.strerror or reason(error)}") from error
    except MemoryError as error:
        raise kind(f"{place}: reading it takes more memory than there is") from error
    except RecursionError as error:
        raise kind(f"{place}: nested too deeply") from error
    except Exception as error:
        raise kind(f"{place}: damaged, or another file than expected: {reason(error)}") from error


def reason(error: object) -> str:
    """Return the first line of what an exception says, or its name if it says nothing."""
    return next(iter(str(error).splitlines()), "")[:LONGEST_REASON] or type(error).__name__


def read_file(path: Path, limit: int, kind: type[LraError] = DataError) -> bytes:
    """Return the content of a regular file; a pipe or a device, which might never end, is refused.

    Args:
        path: The file; links are followed.
        limit: Most bytes that it may have.
        kind: The class of the error.

    Raises:
        LraError: Of class `kind`, if it cannot be read, is no regular file or is larger.
    """
    with reading(path, kind), open_regular(path, kind) as handle:
        content = handle.read(limit + 1)
    if len(content) > limit:
        raise kind(f"{path}: larger than {limit:,} bytes")
    return content


def open_regular(path: Path, kind: type[LraError] = DataError) -> BufferedReader:
    """Open a regular file, or a link to one; where files are watched, one of them only, as it was then.

    Raises:
        LraError: Of class `kind`, if it is a pipe, a device, a socket or a folder, or not one of the watched files.
        OSError: It cannot be opened.
    """
    check_regular(path, kind)
    handle = path.open("rb")
    opened = identity(os.fstat(handle.fileno()))
    watched = WATCHED.get()
    if watched and watched.get(os.path.abspath(path)) != opened:  # noqa: PTH100 - `absolute` keeps `..`
        handle.close()
        raise kind(f"{path}: {CHANGED}")
    return handle


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what another file, or the same one after it was written or renamed, has otherwise."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_regular(path: Path, kind: type[LraError] = DataError) -> None:
    """Check that a path is a regular file, or a link to one, so that opening it does not wait for ever.

    Raises:
        LraError: Of class `kind`, if it is a pipe, a device, a socket or a folder.
        OSError: There is nothing of this name.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - `Path.is_file` hides why not
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise kind(f"{path}: {what}, not a file")


def visible(folder: Path, pattern: str = "*", kind: type[LraError] = DataError) -> list[Path]:
    """Return what a folder holds, in order, without names that begin with a dot: systems leave such files beside ours.

    Args:
        folder: The folder; one that is not there holds nothing.
        pattern: Glob that the paths below it must match, with `*` and `/`.
        kind: The class of the error.

    Raises:
        LraError: Of class `kind`, if a folder cannot be listed, is a file, or is a link to what is not there, which
            `Path.glob` would pass over without a word. A file is passed over where the pattern does not give its name.
    """
    found, named = [folder], True
    for part in pattern.split("/"):
        children = [path for place in found for path in _children(place, kind, named=named)]
        found = [path for path in children if fnmatch.fnmatchcase(path.name, part)]
        named = "*" not in part
    return sorted(found)


def _children(folder: Path, kind: type[LraError], *, named: bool) -> list[Path]:
    with reading(folder, kind):
        try:
            return [path for path in folder.iterdir() if not is_hidden(path.name)]
        except FileNotFoundError:
            is_there(folder, kind)  # what a link led to was not nothing
            return []
        except NotADirectoryError:
            if named:
                raise
            return []


def is_there(path: Path, kind: type[LraError] = DataError) -> bool:
    """Say whether a path exists.

    Raises:
        LraError: Of class `kind`, if nobody can tell, if it is below a file, or if it, or a folder above it, is a link
            to what is not there: that may be on a disk that is not mounted, and something else must not be read in its
            place.
    """
    with reading(path, kind):
        try:
            path.stat()  # `Path.exists` hides why not
            return True
        except FileNotFoundError:
            for place in (path, *path.parents):
                if place.is_symlink() and not place.exists():
                    raise kind(f"{place}: a link to what is not there") from None
            return False


def is_hidden(name: str) -> bool:
    """Say whether a path, its parts separated by `/`, has a part that begins with a dot and is not `.` or `..`."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))
