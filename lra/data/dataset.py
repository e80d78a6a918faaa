# SPDX-License-Identifier: Apache-2.0
"""Prepared data on disk: arrays and a manifest in a folder, written once.

A prepared folder holds, for each split, `<split>-tokens.npy`, `<split>-offsets.npy` and `<split>-labels.npy`, and a
`manifest.json` that says what they are. The folder appears whole or not at all, and is never changed afterwards.

A run id holds the hash of the data, so a run has to read what was hashed. `PreparedData.verified` hashes all of it each
time that a run starts, at some 500 MB per second: 1.2 GB of Retrieval take 3 seconds, 3.3 GB of Path-X 7. Nothing
is cached, since a change in place can leave size, time and inode as they were. What is read later is compared with what
was hashed: see `lra.data.split`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from lra.atomic_io import build_folder, file_digest
from lra.config.schema import canonical_json
from lra.data.manifest import MANIFEST, SCHEMA, FileRecord, Manifest, SplitRecord, read_manifest
from lra.data.split import ARRAYS, SPLITS, Split, SplitName, VerifiedSplit, content_digest, on_disk
from lra.errors import DataError, refusals_as
from lra.reading import check_regular, reading


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

    Both have the same data then, or this one is refused.

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
        DataError: A split is empty or has a label out of range, the folder cannot be written, or another process made
            it from other files.
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
    data = open_prepared(target, verify=False)
    if (data.manifest.digest, data.manifest.sources) != (manifest.digest, manifest.sources):
        raise DataError(f"{target}: another process made it from other files meanwhile; give the command again")
    return data


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
