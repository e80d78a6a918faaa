# SPDX-License-Identifier: Apache-2.0
"""Files of pairs read from a server as a stream: the beginning of each document is kept, the rest is let go.

The files of the benchmark have 10.6 GB, of which the first 4,000 bytes of each document are used. What is kept are the
same rows with shorter documents, compressed, in pieces. After each piece, which is on the disk by then, `fetched.json`
says how far the file was read, so a later call goes on from there.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lra.atomic_io import atomic_write
from lra.config.schema import canonical_json
from lra.data.archives import LINE_LIMIT
from lra.data.download import Remote, Transfer
from lra.data.work_folder import sole_owner
from lra.errors import DataError
from lra.reading import is_there, read_file, reading
from lra.tasks.pairs import parse_row

STATE = "fetched.json"
STATE_LIMIT = 1 << 16
PIECE = 32 << 20
"""Bytes of a file that are read between two notes of how far it was read."""
END = b"\r\n"
"""Of a row that is kept: after a bare end of line, a reader would take a last byte of 13 for a part of it."""
LEVEL = 3
"""Of compression: more takes longer than the network does."""

Natural = Annotated[int, Field(ge=0)]


class DamagedNoteError(DataError):
    """`fetched.json` is there, and is not what `write_state` wrote."""


class FileState(BaseModel):
    """How far one file was read."""

    model_config = ConfigDict(strict=True, extra="forbid")

    size: Natural
    """Bytes of the file on the server."""
    position: Natural = 0
    """Bytes of it that were read; they end with a row."""
    rows: Natural = 0
    kept: Natural = 0
    """Bytes of ours that hold these rows."""
    sha256: str | None = None
    """Of the whole file on the server; known if one command read all of it."""
    kept_sha256: str = hashlib.sha256().hexdigest()
    """Of our file."""

    @property
    def complete(self) -> bool:
        """Whether all of the file was read."""
        return self.position == self.size > 0


class Fetched(BaseModel):
    """What a folder of kept rows says of itself."""

    model_config = ConfigDict(strict=True, extra="forbid")

    first_bytes: Annotated[int, Field(ge=1)]
    """Bytes of each document that are kept."""
    files: dict[str, FileState] = {}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files on the server, by name, where they are known."""
        return {name: state.sha256 for name, state in self.files.items() if state.sha256 is not None}

    @property
    def complete(self) -> bool:
        """Whether all of every file was read."""
        return bool(self.files) and all(state.complete for state in self.files.values())

    def check(self, folder: Path, max_length: int, digests: Mapping[str, str]) -> None:
        """Check that all is there that a dataset variant needs, as it was kept.

        Args:
            folder: Where the rows are.
            max_length: Bytes of each document that are needed.
            digests: SHA-256 of our files, by name.

        Raises:
            DataError: A file is not complete or has changed, or documents are kept to a shorter length.
        """
        if not self.complete:
            raise DataError(f"{folder}: not complete; lra-data fetch retrieval goes on with it")
        if max_length > self.first_bytes:
            raise DataError(
                f"{folder}: the first {self.first_bytes:,} bytes of each document were kept; "
                f"lra-data fetch retrieval --set max_length={max_length} fetches more"
            )
        kept = {f"{name}.gz": state.kept_sha256 for name, state in self.files.items()}
        for name in [*kept, *digests]:
            if kept.get(name) != digests.get(name):
                raise DataError(f"{folder / name}: has changed since it was fetched; remove {folder} and fetch again")


def read_state(folder: Path) -> Fetched | None:
    """Return what a folder says of itself; None if it holds no rows of `fetch_pairs`.

    Raises:
        DamagedNoteError: It is damaged.
        DataError: It cannot be read, or is a link to nothing.
    """
    file = folder / STATE
    if not is_there(file):
        return None
    content = read_file(file, STATE_LIMIT)
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        body = json.loads(content)
        if body.pop("checksum", None) == hashlib.sha256(canonical_json(body)).hexdigest():
            return Fetched.model_validate_json(canonical_json(body))
    raise DamagedNoteError(f"{file}: damaged; remove the folder and fetch again")


def fetch_pairs(
    remotes: Sequence[Remote],
    folder: Path,
    *,
    first_bytes: int,
    transfer: Callable[[Remote, int | None], Transfer],
) -> Fetched:
    """Read files of pairs from a server into a folder, going on from where an earlier call has ended.

    Args:
        remotes: The files.
        folder: Gets a file `NAME.gz` for each, and `fetched.json`.
        first_bytes: Bytes of each document that are kept, from its start.
        transfer: Returns the transfer of a file, given its size as far as an earlier call was told it.

    Raises:
        DataError: A server does not have a file or has another one, a row is not as it must be, or the disk refuses.
            What was read stays for the next call.
    """
    with sole_owner(folder), reading(folder):
        fetched = read_state(folder) or Fetched(first_bytes=first_bytes)
        for remote in remotes:  # noted before any is there: a folder without one of them is not complete
            fetched.files.setdefault(remote.file_name, FileState(size=0))
        write_state(folder, fetched)
        for remote in remotes:
            state = fetched.files.get(remote.file_name)
            kept = folder / f"{remote.file_name}.gz"
            if state is not None and (not kept.is_file() or kept.stat().st_size < state.kept):
                state = None  # what the note speaks of is gone
            if state is None or not state.complete:
                _fetch_file(transfer(remote, (state and state.size) or None), kept, fetched, state)
        return fetched


def write_state(folder: Path, fetched: Fetched) -> None:
    """Write what a folder says of itself, with a checksum."""
    body = fetched.model_dump()
    content = body | {"checksum": hashlib.sha256(canonical_json(body)).hexdigest()}
    atomic_write(folder / STATE, json.dumps(content, indent=2).encode())


def _fetch_file(transfer: Transfer, kept: Path, fetched: Fetched, state: FileState | None) -> None:
    """Read a file from where `state` says on."""
    name = transfer.remote.file_name
    state = state or FileState(size=0)
    digest = None if state.position else hashlib.sha256()
    fetched.files[name] = state
    problem = ""
    with kept.open("a+b") as handle, contextlib.closing(transfer.chunks(state.position)) as chunks:
        handle.truncate(state.kept)
        handle.seek(0)
        ours = hashlib.file_digest(handle, "sha256")
        if state.position and state.kept_sha256 != ours.hexdigest():
            raise DataError(f"{kept}: has changed since it was fetched; remove {kept.parent} and fetch again")
        for rows, read in _pieces(chunks, digest.update if digest else None):
            first = state.rows + 1
            lines = [_shorten(row, f"{name}:{first + i}", fetched.first_bytes) for i, row in enumerate(rows)]
            piece = gzip.compress(b"".join(lines), LEVEL, mtime=0)
            handle.write(piece)
            ours.update(piece)
            handle.flush()
            os.fsync(handle.fileno())
            state.position, state.rows, state.kept = state.position + read, state.rows + len(rows), handle.tell()
            state.kept_sha256 = ours.hexdigest()
            state.size = transfer.size or 0
            if state.complete and digest is not None:
                state.sha256 = digest.hexdigest()
                if transfer.stated_sha256 not in (None, state.sha256):
                    problem = f"the SHA-256 is {state.sha256}, but the server stated {transfer.stated_sha256}"
                    fetched.files[name] = FileState(size=0)
            write_state(kept.parent, fetched)
    if problem or not state.complete:
        raise DataError(f"{transfer.url}: {problem or 'nothing came'}; nothing of it was kept")


def _pieces(chunks: Iterator[bytes], update: Callable[[bytes], None] | None) -> Iterator[tuple[list[bytes], int]]:
    """Cut a stream into rows without their ends; yield some at a time, with the bytes that they took."""
    rows: list[bytes] = []
    read, rest = 0, b""
    try:
        for chunk in chunks:
            if update is not None:
                update(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rows += lines
            read += sum(map(len, lines)) + len(lines)
            if len(rest) > LINE_LIMIT:
                raise DataError(f"a line of more than {LINE_LIMIT:,} bytes")
            if read >= PIECE:
                yield rows, read
                rows, read = [], 0
    except DataError:
        if rows:
            yield rows, read
        raise
    if rest:
        rows.append(rest)
    if rows:
        yield rows, read + len(rest)


def _shorten(row: bytes, place: str, first_bytes: int) -> bytes:
    """Return a row with the beginnings of its documents.

    Raises:
        DataError: It is not as it must be.
    """
    row = row.removesuffix(b"\r")
    parse_row(row, place)
    label, first_id, second_id, first, second = row.split(b"\t")
    return b"\t".join((label, first_id, second_id, first[:first_bytes], second[:first_bytes])) + END
