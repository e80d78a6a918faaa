# SPDX-License-Identifier: Apache-2.0
"""The examples of one split: flat token arrays, offsets and labels, in memory or read from their file.

Offsets and labels are private copies. Tokens stay in their file, because several runs of a sweep would each need
gigabytes for them. They are read document by document, and each is compared with a checksum that was taken while all
was hashed. A file that is rewritten or cut off during a run therefore ends it with an error, and reaches no number.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lra.errors import DataError, refusals_as

CHUNK_BYTES = 8 * 2**20
"""Read at a time while data is hashed."""
ARRAYS = ("tokens", "offsets", "labels")
KEY = os.urandom(16)
"""Of this process's checksums. Nobody who writes to a file knows it, so none can keep a checksum."""
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The examples of one split: document `i` is `tokens[offsets[i]:offsets[i + 1]]`.

    An example is one document, or two that follow one another; the number of offsets says which.
    """

    tokens: npt.NDArray[Any]
    """(total tokens,), uint8."""
    offsets: npt.NDArray[np.int64]
    """(examples * documents + 1,), starting with 0."""
    labels: npt.NDArray[Any]
    """(examples,), uint8 or int64."""
    token_offset: int = 0
    """Added to the stored value of a real token to get its id; 1 for pixels, whose 0 is a level and not padding."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    @property
    def documents(self) -> int:
        """Documents of each example: 1, or 2 where the task compares a pair."""
        return (len(self.offsets) - 1) // len(self.labels)

    @cached_property
    def document_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document: (examples, documents)."""
        return np.diff(self.offsets).reshape(len(self), self.documents)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of the longest document of each example: (examples,)."""
        return self.document_lengths.max(axis=1)

    def tokens_of(self, index: int, document: int = 0) -> npt.NDArray[Any]:
        """Return the tokens of one document of an example: (length,), a view."""
        position = index * self.documents + document
        return self.tokens[self.offsets[position] : self.offsets[position + 1]]

    def hash_tokens(self, update: Callable[[bytes | memoryview], None]) -> None:
        """Feed all tokens to a hash."""
        update(np.ascontiguousarray(self.tokens).data)


def checksum(document: bytes | memoryview) -> int:
    """Return 64 bits by which this process knows a document again."""
    digest = hashlib.sha256(KEY)
    digest.update(document)
    return int.from_bytes(digest.digest()[:8], "little")


class TokenFile:
    """The tokens of a split in their file, read document by document after all of them were hashed.

    Args:
        path: The file.
        split: The split as it was opened.
        checksums: `checksum` of each document, (documents,); None takes them when all are hashed for the first time.

    Raises:
        DataError: The file cannot be opened.
    """

    def __init__(self, path: Path, split: Split, checksums: npt.NDArray[np.uint64] | None) -> None:
        self.path, self._dtype = path, split.tokens.dtype
        with refusals_as(DataError, f"{path}"):
            self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._header = os.fstat(self._descriptor).st_size - split.tokens.nbytes
        self._bounds = split.offsets.astype(np.int64)
        self._checksums = checksums

    def hash_into(self, update: Callable[[bytes | memoryview], None]) -> None:
        """Feed all tokens to a hash, and take the checksum of every document on the way.

        Raises:
            DataError: The file has become shorter, or is no longer what its checksums say.
        """
        start, count = 0, len(self._bounds) - 1
        checksums = np.zeros(count, dtype=np.uint64)
        while start < count:
            limit = self._bounds[start] + CHUNK_BYTES // self._dtype.itemsize
            stop = max(start + 1, int(np.searchsorted(self._bounds, limit, side="right")) - 1)
            content = self._read(start, stop)
            update(content)
            ends = ((self._bounds[start : stop + 1] - self._bounds[start]) * self._dtype.itemsize).tolist()
            view = memoryview(content)
            checksums[start:stop] = [checksum(view[first:last]) for first, last in itertools.pairwise(ends)]
            start = stop
        if self._checksums is None:
            self._checksums = checksums
        elif not np.array_equal(checksums, self._checksums):
            raise DataError(f"{self.path}: changed since it was written or hashed; give the command again")

    def document(self, position: int) -> npt.NDArray[Any]:
        """Return the tokens of one document: (length,).

        Raises:
            DataError: They are no longer those that were hashed.
        """
        content = self._read(position, position + 1)
        assert self._checksums is not None  # all was hashed before
        if checksum(content) != self._checksums[position]:
            raise DataError(f"{self.path}: changed while a run was reading it; the run has no number")
        return np.frombuffer(content, dtype=self._dtype)

    def _read(self, start: int, stop: int) -> bytes:
        first, last = (int(bound) * self._dtype.itemsize for bound in (self._bounds[start], self._bounds[stop]))
        with refusals_as(DataError, f"{self.path}"):  # such as a folder that has taken its place
            content = os.pread(self._descriptor, last - first, self._header + first)
            while 0 < len(content) < last - first:
                more = os.pread(self._descriptor, last - first - len(content), self._header + first + len(content))
                content = content + more if more else b""
        if len(content) < last - first:
            raise DataError(f"{self.path}: became shorter while a run was reading it; the run has no number")
        return content


@dataclass(frozen=True, kw_only=True)
class VerifiedSplit(Split):
    """A split whose documents are compared with what was hashed whenever they are read."""

    file: TokenFile

    def tokens_of(self, index: int, document: int = 0) -> npt.NDArray[Any]:
        """Return the tokens of one document of an example: (length,).

        Raises:
            DataError: They are no longer those that were hashed.
        """
        return self.file.document(index * self.documents + document)

    def hash_tokens(self, update: Callable[[bytes | memoryview], None]) -> None:
        """Feed all tokens to a hash, read from the file piece by piece.

        Raises:
            DataError: The file has become shorter, or is no longer what was written or hashed.
        """
        self.file.hash_into(update)


def content_digest(splits: Mapping[SplitName, Split]) -> str:
    """Return the SHA-256 over name, type, length and bytes of every array, in a fixed order."""
    digest = hashlib.sha256()
    for name in SPLITS:
        for kind in ARRAYS:
            array = getattr(splits[name], kind)
            digest.update(f"{name} {kind} {array.dtype.str} {len(array)}\n".encode())
            if kind == "tokens":
                splits[name].hash_tokens(digest.update)
            else:
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def on_disk(split: Split, file: Path, checksums: npt.NDArray[np.uint64] | None = None) -> VerifiedSplit:
    """Return a split whose tokens are read from a file, document by document; all are hashed before the first is read.

    Args:
        split: The split as it was opened.
        file: Holds its tokens.
        checksums: `checksum` of each document, where they are known; the file has to agree when it is hashed.

    Raises:
        DataError: The file cannot be opened.
    """
    return VerifiedSplit(
        tokens=split.tokens,
        offsets=split.offsets,
        labels=split.labels,
        token_offset=split.token_offset,
        file=TokenFile(file, split, checksums),
    )


def write_split(file: Path, examples: Iterable[tuple[int, Sequence[bytes]]], *, token_offset: int) -> VerifiedSplit:
    """Write the documents of a split to a file as they come, so that they never are in memory together.

    `write_prepared` moves the file into the prepared folder, if it still holds what was written.

    Args:
        file: Where the tokens go, as NumPy writes an array of bytes.
        examples: (label, documents) of each example.
        token_offset: See `Split`.

    Raises:
        OSError: The file cannot be written.
    """
    labels, lengths, checksums = bytearray(), list[int](), list[int]()
    with file.open("wb") as handle:
        _write_header(handle, 0)
        start = handle.tell()
        for label, documents in examples:
            labels.append(label)
            for document in documents:
                handle.write(document)
                lengths.append(len(document))
                checksums.append(checksum(document))
        total = handle.tell() - start
        handle.seek(0)
        _write_header(handle, total)  # NumPy pads headers so that another length fits
        assert handle.tell() == start
    return on_disk(
        Split(
            tokens=np.asarray(np.load(file, mmap_mode="r" if total else None)),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            labels=np.frombuffer(bytes(labels), dtype=np.uint8),
            token_offset=token_offset,
        ),
        file,
        np.array(checksums, dtype=np.uint64),
    )


def _write_header(handle: IO[bytes], length: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(handle, header)
