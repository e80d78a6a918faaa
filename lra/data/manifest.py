# SPDX-License-Identifier: Apache-2.0
"""The manifest of a prepared folder: what its arrays are, and their digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lra.config.schema import canonical_json
from lra.data.split import ARRAYS, SPLITS, SplitName
from lra.errors import DataError
from lra.reading import read_file, reason

SCHEMA = 4
"""Raised when the layout of a prepared folder changes; newer folders are refused, not guessed at."""
OLDEST_SCHEMA = 3
"""It added the checksum of the manifest. Nothing else can show that the token offset or a baseline was changed, so
older folders are refused: prepared again, they have the same digest. Schema 4 added `sources`."""
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 20
"""Bytes; one has some kilobytes."""

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
