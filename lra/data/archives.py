# SPDX-License-Identifier: Apache-2.0
"""Reading of files that others made: tar archives as a stream of wanted members, and lines of bytes.

Nothing is ever extracted: members are picked by name and read into memory, each within a limit of its own, and the
whole archive within another, so neither names nor links nor compression bombs reach the disk or fill the memory.

`tarfile` reads the single header. Its walk through an archive is not used: it keeps every member in memory, follows
maps of sparse members without end, searches extended headers in quadratic time, and seeks in an archive that has ended.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from lra.errors import DataError
from lra.reading import open_regular, reading

CHUNK = 1 << 20
BLOCK = tarfile.BLOCKSIZE
HEADER_LIMIT = 1 << 20
"""Bytes of an extended header: a long name, or a list of properties."""
HEADERS_IN_A_ROW = 16
"""Extended headers in front of one member."""
LINE_LIMIT = 8 << 20
"""Bytes of the longest line that is taken for one."""

_MAGIC: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
_PROPERTY = re.compile(rb"([1-9][0-9]{0,7}) ")
"""What a property in an extended header begins with: its length."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
"""Kinds of members whose size, if they state one, is not followed by data."""


class Member:
    """A wanted member of an archive."""

    def __init__(self, name: str, size: int, handle: IO[bytes], place: str) -> None:
        self.name, self.size, self.handle, self.place = name, size, handle, place

    def read(self) -> bytes:
        """Return the whole content."""
        with reading(self.place):
            data = self.handle.read(self.size)
        if len(data) != self.size:
            raise DataError(f"{self.place}: the archive ends inside it")
        return data


def stream_members(
    path: Path, wanted: Callable[[str], int | None], *, total_limit: int, member_limit: int
) -> Iterator[Member]:
    """Yield the wanted members of a tar archive in their order; one must be read before the next is asked for.

    The archive may be plain or compressed by gzip, bzip2 or xz, whatever its name says, and is read to its end, so that
    damage behind the last wanted member is found too.

    Args:
        path: The archive.
        wanted: The most bytes that a member of this name may have; None for members to pass over.
        total_limit: The most bytes that the archive may have once it is decompressed.
        member_limit: The most members that it may have.

    Raises:
        DataError: The archive cannot be read, is damaged or too large, a name is absolute or climbs out with `..`, a
            wanted member is a link or another special file, too large, or there twice.
    """
    seen: set[str] = set()
    with reading(path), _open(path) as raw:
        meter = _Meter(raw, total_limit, path)
        for count, header in enumerate(_headers(meter, path)):
            if count == member_limit:
                raise DataError(f"{path}: more than {member_limit:,} members")
            _check_name(path, header.name)
            data = _Data(meter, header.size)
            limit, place = wanted(header.name), f"{path}: member {header.name!r}"
            if limit is not None:
                _check_member(header, limit, place, seen)
                yield Member(header.name, header.size, cast("IO[bytes]", data), place)
            data.pass_over()
        while meter.read(CHUNK):
            pass
        if (total_limit - meter.left) % BLOCK:
            raise DataError(f"{path}: not a sound archive: it ends inside a block")


def read_lines(handle: IO[bytes], place: str, update: Callable[[bytes], None] | None = None) -> Iterator[bytes]:
    r"""Yield the lines of a file as bytes, without `\n` or `\r\n`; no other byte ends a line.

    Args:
        handle: The file.
        place: Its name, for an error.
        update: Is called with all bytes of the file, such as the method of a hash.

    Raises:
        DataError: A line is longer than `LINE_LIMIT`.
    """
    number = 0
    while line := handle.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise DataError(f"{place}:{number}: a line of more than {LINE_LIMIT:,} bytes")
        if update is not None:
            update(line)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


class _Header:
    """What the headers of a member say of it."""

    def __init__(self, info: tarfile.TarInfo, properties: dict[bytes, bytes]) -> None:
        name, size = properties.get(b"path"), properties.get(b"size")
        self.name = info.name if name is None else name.decode("utf-8", "surrogateescape").rstrip("/")
        self.size = info.size if size is None else int(size)
        self.sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in properties)
        self.regular = info.type in _FILES and not self.sparse
        if info.type in _WITHOUT_DATA:
            self.size = 0


def _headers(meter: _Meter, path: Path) -> Iterator[_Header]:
    """Yield the header of each member; the caller reads its data before the next is asked for."""
    properties: dict[bytes, bytes] = {}
    in_a_row = 0
    while block := meter.read_exactly(BLOCK):
        if len(block) < BLOCK:
            raise DataError(f"{path}: not a sound archive: it ends inside a block")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(f"{path}: not a sound archive: {error}") from error
        extended = info.type in (
            tarfile.XHDTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if info.size < 0:
            raise DataError(f"{path}: not a sound archive: a size below 0")
        if not extended:
            if info.type == tarfile.GNUTYPE_SPARSE and block[482]:
                raise DataError(f"{path}: a sparse member with a long map, which is not read")
            yield _Header(info, properties)
            properties, in_a_row = {}, 0
            continue
        in_a_row += 1
        if info.size > HEADER_LIMIT or in_a_row > HEADERS_IN_A_ROW:
            raise DataError(f"{path}: more than {HEADER_LIMIT:,} bytes of headers in one place")
        data = _Data(meter, info.size)
        body = data.read(info.size)
        if len(body) < info.size:
            raise DataError(f"{path}: not a sound archive: it ends inside a header")
        data.pass_over()
        if info.type == tarfile.GNUTYPE_LONGNAME:
            properties[b"path"] = body.partition(b"\0")[0]
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            properties |= _properties(body, path)


def _properties(body: bytes, path: Path) -> dict[bytes, bytes]:
    """Read the lines `length key=value` of an extended header."""
    found: dict[bytes, bytes] = {}
    start = 0
    while start < len(body) and body[start]:
        match = _PROPERTY.match(body, start)
        end = start + int(match[1]) if match is not None else 0
        if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise DataError(f"{path}: not a sound archive: an extended header is damaged")
        key, _, value = body[match.end() : end - 1].partition(b"=")
        found[key] = value
        start = end
    if not re.fullmatch(rb"[0-9]{1,15}", found.get(b"size", b"0")):
        raise DataError(f"{path}: not a sound archive: a size that is no number")
    return found


class _Data:
    """The data of a member in the stream: as many bytes as the header says, then the rest of the block."""

    def __init__(self, meter: _Meter, size: int) -> None:
        self.meter, self.left, self.padding = meter, size, -size % BLOCK

    def read(self, size: int) -> bytes:
        data = self.meter.read_exactly(min(size, self.left))
        self.left -= len(data)
        return data

    def readline(self, limit: int) -> bytes:
        data = self.meter.readline(min(limit, self.left))
        self.left -= len(data)
        return data

    def pass_over(self) -> None:
        """Read what is left of the data and of its last block."""
        while self.left:
            if not self.read(min(CHUNK, self.left)):
                raise DataError(f"{self.meter.path}: not a sound archive: it ends inside a member")
        self.meter.read_exactly(self.padding)


class _Meter:
    """Counts the decompressed bytes, and stops at the limit on all of them."""

    def __init__(self, raw: IO[bytes], total: int, path: Path) -> None:
        self.raw, self.total, self.left, self.path = raw, total, total, path

    def read(self, size: int) -> bytes:
        return self._counted(self.raw.read(size))

    def readline(self, limit: int) -> bytes:
        return self._counted(self.raw.readline(limit))

    def read_exactly(self, size: int) -> bytes:
        """Return as many bytes as are asked for, or as there are."""
        parts: list[bytes] = []
        while size > 0 and (data := self.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"{self.path}: more than {self.total:,} bytes once decompressed")
        return data


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if path.is_dir():
        raise DataError(f"{path}: a folder; the archive itself is read")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    with open_regular(path) as handle:
        start = handle.read(8)
        if not start:
            raise DataError(f"{path}: the file is empty")
        handle.seek(0)
        opener = next((opener for magic, opener in _MAGIC if start.startswith(magic)), contextlib.nullcontext)
        with opener(handle) as content:
            yield content


def _check_member(header: _Header, limit: int, place: str, seen: set[str]) -> None:
    if not header.regular:
        raise DataError(f"{place} is a {'sparse' if header.sparse else 'link or special'} file")
    if header.size > limit:
        raise DataError(f"{place} has {header.size:,} bytes, more than the {limit:,} that it may have")
    if header.name in seen:
        raise DataError(f"{place} is there twice")
    seen.add(header.name)


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\x00" in name:
        raise DataError(f"{path}: the name {name[:80]!r} leads out of the archive")
