# SPDX-License-Identifier: Apache-2.0
"""Prepared data on disk: flat token arrays, offsets, labels and a manifest, written once.

A prepared folder holds, for each split, `<split>-tokens.npy`, `<split>-offsets.npy` and `<split>-labels.npy`, and a
`manifest.json` that says what they are. The folder appears whole or not at all, and is never changed afterwards.

A run id holds the hash of the data, so a run has to read what was hashed. `PreparedData.verified` hashes all of it each
time that a run starts, at some 500 MB per second: 1.2 GB of Retrieval take 3 seconds, 3.3 GB of Path-X 7. Nothing
is cached, since a change in place can leave size, time and inode as they were. Offsets and labels are private copies.
Tokens stay in their file, because several runs of a sweep would each need gigabytes for them. They are read document by
document, and each is compared with a checksum that was taken while all was hashed. A file that is rewritten or cut off
during a run therefore ends it with an error, and never reaches a number.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import IO, Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lra.atomic_io import build_folder, file_digest
from lra.config.schema import canonical_json
from lra.errors import DataError, refusals_as
from lra.reading import check_regular, read_file, reading, reason

SCHEMA = 4
"""Raised when the layout of a prepared folder changes; newer folders are refused, not guessed at."""
OLDEST_SCHEMA = 3
"""It added the checksum of the manifest. Nothing else can show that the token offset or a baseline was changed, so
older folders are refused: prepared again, they have the same digest. Schema 4 added `sources`."""
CHUNK_BYTES = 8 * 2**20
"""Read at a time while data is hashed."""
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 20
"""Bytes; one has some kilobytes."""
ARRAYS = ("tokens", "offsets", "labels")
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Natural = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class FileRecord(_Record):
    """One array file."""

    sha256: Digest
    size: Natural
    """Bytes of the file."""
    dtype: str
    length: Natural


class SplitRecord(_Record):
    """Counts of one split."""

    examples: Annotated[int, Field(ge=1)]
    tokens: Natural
    min_length: Natural
    max_length: Natural
    label_counts: list[Natural]

    @property
    def label_shares(self) -> list[float]:
        """Share of each label, 0 to 1."""
        return [count / self.examples for count in self.label_counts]


class Manifest(_Record):
    """What a prepared folder says of itself."""

    schema_number: int
    task: str
    dataset: str
    """One phrase for tables: which dataset variant of the task this is."""
    generated_by: str
    """The generator or reader that made the arrays, with its version."""
    sources: dict[str, Digest] = {}
    """SHA-256 of the files that were read, by name, where they are known: two users compare these to see whether they
    have the same."""
    token_offset: Natural = 0
    """Added to stored values of real tokens to get their ids."""
    options: dict[str, Any]
    """The task's options, seed included."""
    baselines: dict[str, float]
    """Accuracies in % that come without a model, by name; measured on the test split."""
    splits: dict[SplitName, SplitRecord]
    files: dict[str, FileRecord]
    digest: Digest
    """SHA-256 over the content of all arrays; the identity of the data in a run id."""


class _SchemaOnly(BaseModel):
    model_config = ConfigDict(strict=True)

    schema_number: int


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        DataError: It is missing, is not a manifest, or was written by a newer or older version.
    """
    file = path / MANIFEST
    data = read_file(file, MANIFEST_LIMIT)
    try:
        schema = _SchemaOnly.model_validate_json(data).schema_number
        if schema > SCHEMA:
            raise DataError(f"{path}: written by a newer version (schema {schema}; this version reads up to {SCHEMA})")
        if schema < OLDEST_SCHEMA:
            raise DataError(
                f"{path}: written by an older version (schema {schema}), whose manifests have no checksum; remove the "
                "folder and prepare it again"
            )
        body = json.loads(data)
        checksum = body.pop("checksum", None)
        manifest = Manifest.model_validate_json(json.dumps(body | {"schema_number": SCHEMA}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(f"{file}: not a manifest; {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:  # of nesting that JSON cannot read, for one
        raise DataError(f"{file}: not a manifest; {reason(error)}") from error
    if set(manifest.splits) != set(SPLITS) or set(manifest.files) != {f"{s}-{k}.npy" for s in SPLITS for k in ARRAYS}:
        raise DataError(f"{file}: not a manifest; splits or files are not the expected ones")
    if checksum != hashlib.sha256(canonical_json(body)).hexdigest():
        raise DataError(f"{file}: damaged, its checksum does not match; remove the folder and prepare it again")
    return manifest


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


class TokenFile:
    """The tokens of a split in their file, read document by document after all of them were hashed.

    Args:
        path: The file.
        split: The split as it was opened.

    Raises:
        DataError: The file cannot be opened.
    """

    def __init__(self, path: Path, split: Split) -> None:
        self.path, self._dtype = path, split.tokens.dtype
        with refusals_as(DataError, f"{path}"):
            self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._header = os.fstat(self._descriptor).st_size - split.tokens.nbytes
        self._bounds = split.offsets.astype(np.int64)
        self._checksums = np.zeros(len(self._bounds) - 1, dtype=np.uint32)

    def hash_into(self, update: Callable[[bytes | memoryview], None]) -> None:
        """Feed all tokens to a hash, and take the checksum of every document on the way.

        Raises:
            DataError: The file has become shorter.
        """
        start, count = 0, len(self._checksums)
        while start < count:
            limit = self._bounds[start] + CHUNK_BYTES // self._dtype.itemsize
            stop = max(start + 1, int(np.searchsorted(self._bounds, limit, side="right")) - 1)
            content = self._read(start, stop)
            update(content)
            ends = ((self._bounds[start : stop + 1] - self._bounds[start]) * self._dtype.itemsize).tolist()
            view = memoryview(content)
            self._checksums[start:stop] = [zlib.crc32(view[first:last]) for first, last in itertools.pairwise(ends)]
            start = stop

    def document(self, position: int) -> npt.NDArray[Any]:
        """Return the tokens of one document: (length,).

        Raises:
            DataError: They are no longer those that were hashed.
        """
        content = self._read(position, position + 1)
        if zlib.crc32(content) != self._checksums[position]:
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
            DataError: The file has become shorter.
        """
        self.file.hash_into(update)


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """An opened prepared folder."""

    path: Path
    manifest: Manifest
    splits: Mapping[SplitName, Split]

    def split(self, name: SplitName) -> Split:
        """Return one split."""
        return self.splits[name]

    @property
    def digest(self) -> str:
        """SHA-256 over the content of all arrays."""
        return self.manifest.digest

    def verified(self) -> PreparedData:
        """Hash all the data, and return it in a form that cannot change under its reader.

        Raises:
            DataError: It is not what the manifest says.
        """
        splits = {name: on_disk(split, self.path / f"{name}-tokens.npy") for name, split in self.splits.items()}
        if content_digest(splits) != self.digest:
            raise DataError(
                f"{self.path}: damaged, its content is not what its manifest says; remove the folder, "
                "and prepare it again"
            )
        return PreparedData(path=self.path, manifest=self.manifest, splits=splits)


def data_home(data_dir: Path | None = None) -> Path:
    """Return where prepared data lives: the given folder, else `LRA_HOME`, else the platform's cache folder."""
    if data_dir is not None:
        return data_dir
    configured = os.environ.get("LRA_HOME")
    return Path(configured) if configured else platformdirs.user_cache_path("lra-harness")


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


def on_disk(split: Split, file: Path) -> VerifiedSplit:
    """Return a split whose tokens are read from a file, document by document; all are hashed before the first is read.

    Raises:
        DataError: The file cannot be opened.
    """
    return VerifiedSplit(
        tokens=split.tokens,
        offsets=split.offsets,
        labels=split.labels,
        token_offset=split.token_offset,
        file=TokenFile(file, split),
    )


def write_split(file: Path, examples: Iterable[tuple[int, Sequence[bytes]]], *, token_offset: int) -> VerifiedSplit:
    """Write the documents of a split to a file as they come, so that they never are in memory together.

    `write_prepared` moves the file into the prepared folder.

    Args:
        file: Where the tokens go, as NumPy writes an array of bytes.
        examples: (label, documents) of each example.
        token_offset: See `Split`.

    Raises:
        OSError: The file cannot be written.
    """
    labels, lengths = bytearray(), list[int]()
    with file.open("wb") as handle:
        _write_header(handle, 0)
        start = handle.tell()
        for label, documents in examples:
            labels.append(label)
            for document in documents:
                handle.write(document)
                lengths.append(len(document))
        total = handle.tell() - start
        handle.seek(0)
        _write_header(handle, total)  # NumPy pads headers so that another length fits
        assert handle.tell() == start
    split = on_disk(
        Split(
            tokens=np.asarray(np.load(file, mmap_mode="r" if total else None)),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            labels=np.frombuffer(bytes(labels), dtype=np.uint8),
            token_offset=token_offset,
        ),
        file,
    )
    split.hash_tokens(lambda _: None)
    return split


def _write_header(handle: IO[bytes], length: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(handle, header)


def write_prepared(
    target: Path,
    *,
    task: str,
    dataset: str,
    generated_by: str,
    options: Mapping[str, Any],
    num_classes: int,
    splits: Mapping[SplitName, Split],
    baselines: Mapping[str, float],
    sources: Mapping[str, str] | None = None,
) -> PreparedData:
    """Write a prepared folder and open it; if another process finished the same folder first, open that one.

    Args:
        target: The folder to make.
        task: Name of the task.
        dataset: One phrase for tables.
        generated_by: Generator or reader, with its version.
        options: The task's options as plain JSON values.
        num_classes: Labels are 0 to `num_classes - 1`.
        splits: All three splits. The file of one from `write_split` is moved into the folder.
        baselines: Measured reference accuracies in %, by name.
        sources: SHA-256 of the files that were read, by name.

    Raises:
        DataError: A split is empty or has a label out of range, or the folder cannot be written.
    """
    for name in SPLITS:
        split = splits[name]
        if len(split) == 0 or len(split.tokens) == 0:
            raise DataError(f"{task}: the {name} split is empty")
        if int(split.labels.min()) < 0 or int(split.labels.max()) >= num_classes:
            raise DataError(f"{task}: a label of the {name} split is outside 0..{num_classes - 1}")
    with refusals_as(DataError, f"cannot write prepared data to {target}"), build_folder(target) as folder:
        manifest = Manifest(
            schema_number=SCHEMA,
            task=task,
            dataset=dataset,
            generated_by=generated_by,
            sources=dict(sources or {}),
            token_offset=splits["train"].token_offset,
            options=dict(options),
            baselines=dict(baselines),
            splits={name: _describe(splits[name], num_classes) for name in SPLITS},
            digest=content_digest(splits),
            files=_save_arrays(folder, splits),
        )
        values = manifest.model_dump(mode="json")
        values["checksum"] = hashlib.sha256(canonical_json(values)).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return open_prepared(target, verify=False)


def open_prepared(path: Path, *, verify: bool) -> PreparedData:
    """Open a prepared folder read-only; sizes and shapes are always checked.

    Args:
        path: The folder.
        verify: Also recompute every digest, which reads all the data.

    Raises:
        DataError: Something is missing, damaged, or written by a newer version.
    """
    manifest = read_manifest(path)
    with reading(path):
        splits = {name: _open_split(path, name, manifest) for name in SPLITS}
    data = PreparedData(path=path, manifest=manifest, splits=splits)
    if verify:
        for file_name, record in manifest.files.items():
            if file_digest(path / file_name) != record.sha256:
                raise DataError(f"{path / file_name}: damaged, its SHA-256 is not the manifest's")
        data.verified()
    return data


def _describe(split: Split, num_classes: int) -> SplitRecord:
    return SplitRecord(
        examples=len(split),
        tokens=len(split.tokens),
        min_length=int(split.document_lengths.min()),
        max_length=int(split.document_lengths.max()),
        label_counts=np.bincount(split.labels, minlength=num_classes).tolist(),
    )


def _save_arrays(folder: Path, splits: Mapping[SplitName, Split]) -> dict[str, FileRecord]:
    records = {}
    for name in SPLITS:
        for kind in ARRAYS:
            split, file = splits[name], folder / f"{name}-{kind}.npy"
            array = getattr(split, kind)
            if kind == "tokens" and isinstance(split, VerifiedSplit):
                split.file.path.rename(file)
            else:
                np.save(file, array, allow_pickle=False)
            records[file.name] = FileRecord(
                sha256=file_digest(file), size=file.stat().st_size, dtype=array.dtype.str, length=len(array)
            )
    return records


def _open_split(path: Path, name: SplitName, manifest: Manifest) -> Split:
    arrays = {kind: _open_array(path / f"{name}-{kind}.npy", manifest) for kind in ARRAYS}
    split, record = Split(**arrays, token_offset=manifest.token_offset), manifest.splits[name]
    sound = (
        len(split) == record.examples
        and len(split.tokens) == record.tokens
        and split.documents in (1, 2)
        and len(split.offsets) == split.documents * len(split) + 1
        and int(split.offsets[0]) == 0
        and int(split.offsets[-1]) == len(split.tokens)
        and int(split.document_lengths.min()) == record.min_length
        and int(split.document_lengths.max()) == record.max_length
    )
    if not sound:
        raise DataError(f"{path}: damaged, the arrays of the {name} split do not fit together")
    return split


def _open_array(file: Path, manifest: Manifest) -> npt.NDArray[Any]:
    record = manifest.files[file.name]
    try:
        check_regular(file)
        size = file.stat().st_size
        if size != record.size:
            raise DataError(f"{file}: damaged, {size} bytes instead of {record.size}")
        # A mapped file that is cut off later kills its reader with SIGBUS. So only the large one is mapped, and a run
        # reads that one in another way.
        array = np.load(file, mmap_mode="r" if file.name.endswith("-tokens.npy") else None, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except (ValueError, SyntaxError, TokenError, MemoryError) as error:  # all of which NumPy's reader of headers raises
        raise DataError(f"{file}: damaged, its header is not readable") from error
    if array.dtype.str != record.dtype or array.shape != (record.length,):
        raise DataError(f"{file}: damaged, {array.dtype} of shape {array.shape} is not what the manifest says")
    return np.asarray(array)
