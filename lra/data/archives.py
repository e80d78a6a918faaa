# SPDX-License-Identifier: Apache-2.0
"""Reading of files that others made: tar archives as a stream of wanted members, and lines of bytes.

Nothing is ever extracted: members are picked by name and read into memory, each within a limit of its own, and the
whole archive within another, so neither names nor links nor compression bombs reach the disk or fill the memory.

The data filter of `tarfile` does not replace these checks: it guards extraction to a folder, and it
knows no limits on sizes, no members that are there twice, and no damage behind the last member.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from lra.errors import DataError

CHUNK = 1 << 20
HEADER_LIMIT = 4 << 20
"""Bytes that may lie between the data of one member and that of the next: headers, long names, the buffer's rest."""
LINE_LIMIT = 8 << 20
"""Bytes of the longest line that is taken for one."""

_MAGIC: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
_DAMAGE = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError, ValueError, OverflowError)
"""What the standard library raises on bytes that are not an archive, or no longer one."""


class Member:
    """A wanted member of an archive."""

    def __init__(self, name: str, size: int, handle: IO[bytes], place: str) -> None:
        self.name, self.size, self.handle, self.place = name, size, handle, place

    def read(self) -> bytes:
        """Return the whole content."""
        with _sound(self.place):
            data = self.handle.read()
        if len(data) != self.size:
            raise DataError(f"{self.place}: the archive ends inside it")
        return data

    def lines(self) -> Iterator[bytes]:
        """Yield the lines without their ends, see `read_lines`."""
        with _sound(self.place):
            yield from read_lines(self.handle, self.place)


def stream_members(path: Path, wanted: Callable[[str], int | None], *, total_limit: int) -> Iterator[Member]:
    """Yield the wanted members of a tar archive in their order; one must be read before the next is asked for.

    The archive may be plain or compressed by gzip, bzip2 or xz, whatever its name says, and is read to its end, so that
    damage behind the last wanted member is found too.

    Args:
        path: The archive.
        wanted: The most bytes that a member of this name may have; None for members to pass over.
        total_limit: The most bytes that the archive may have once it is decompressed.

    Raises:
        DataError: The archive cannot be read, is damaged or too large, a name is absolute or climbs out with `..`, a
            wanted member is a link or another special file, too large, or there twice.
    """
    seen: set[str] = set()
    with _sound(str(path)), _open(path) as raw:
        meter = _Meter(raw, total_limit)
        with tarfile.open(fileobj=cast("IO[bytes]", meter), mode="r|") as archive:
            for info in archive:
                _check_name(path, info.name)
                limit, place = wanted(info.name), f"{path}: member {info.name!r}"
                meter.burst = None
                if limit is None:
                    _pass_over(archive, info)
                else:
                    _check_member(info, limit, place, seen)
                    handle = archive.extractfile(info)
                    assert handle is not None  # it is a regular file
                    yield Member(info.name, info.size, handle, place)
                meter.burst = HEADER_LIMIT
        meter.burst = None
        while meter.read(CHUNK):
            pass
        if (total_limit - meter.left) % tarfile.BLOCKSIZE:
            raise DataError(f"{path}: not a sound archive: it ends inside a block")


def read_lines(handle: IO[bytes], place: str) -> Iterator[bytes]:
    r"""Yield the lines of a file as bytes, without `\n` or `\r\n`; no other byte ends a line.

    Raises:
        DataError: A line is longer than `LINE_LIMIT`.
    """
    number = 0
    while line := handle.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise DataError(f"{place}:{number}: a line of more than {LINE_LIMIT:,} bytes")
        yield line.removesuffix(b"\n").removesuffix(b"\r")


class _LimitError(Exception):
    """A limit on decompressed bytes is reached."""


@contextlib.contextmanager
def _sound(place: str) -> Iterator[None]:
    """Turn what the standard library raises on damaged archives into one line."""
    try:
        yield
    except _LimitError as error:
        raise DataError(f"{place}: {error}") from error
    except _DAMAGE as error:
        raise DataError(f"{place}: not a sound archive: {_one_line(error)}") from error


class _Meter:
    """Counts the decompressed bytes, and stops at the limits on all of them and on those between two members."""

    def __init__(self, raw: IO[bytes], total: int) -> None:
        self.raw, self.total, self.left = raw, total, total
        self.burst: int | None = HEADER_LIMIT

    def read(self, size: int) -> bytes:
        data = self.raw.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _LimitError(f"more than {self.total:,} bytes once decompressed")
        if self.burst is not None:
            self.burst -= len(data)
            if self.burst < 0:
                raise _LimitError(f"more than {HEADER_LIMIT:,} bytes of headers in one place")
        return data


def _open(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise DataError(f"{path}: a folder; the archive itself is read")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as handle:
        start = handle.read(8)
    if not start:
        raise DataError(f"{path}: the file is empty")
    for magic, opener in _MAGIC:
        if start.startswith(magic):
            return cast("IO[bytes]", opener(path))
    return path.open("rb")


def _check_member(info: tarfile.TarInfo, limit: int, place: str, seen: set[str]) -> None:
    if not info.isreg() or info.issparse():
        raise DataError(f"{place} is a link or special file")
    if info.size > limit:
        raise DataError(f"{place} has {info.size:,} bytes, more than the {limit:,} that it may have")
    if info.name in seen:
        raise DataError(f"{place} is there twice")
    seen.add(info.name)


def _pass_over(archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
    """Read an unwanted member to its end, so that what comes before the next one is headers alone."""
    handle = archive.extractfile(info) if info.isreg() else None
    while handle is not None and handle.read(CHUNK):
        pass


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\x00" in name:
        raise DataError(f"{path}: the name {name[:80]!r} leads out of the archive")


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
