"""The manifest of a prepared folder: what its arrays are, what they hold, and the digests that prove it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lra.errors import DataError

SCHEMA = 1
"""Raised when the layout of a prepared folder changes; newer folders are refused, not guessed at."""
MANIFEST = "manifest.json"
ARRAYS = ("tokens", "offsets", "labels")
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Natural = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class FileRecord(_Record):
    """One array file."""

    sha256: Digest
    size: Natural
    """Bytes of the file."""
    dtype: str
    length: Natural


class SplitRecord(_Record):
    """Counts of one split."""

    examples: Natural
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
    edition: str
    """One phrase for tables: which edition of the task this is."""
    maker: str
    """The generator or reader that made the arrays, with its version."""
    token_offset: Natural = 0
    """Added to stored values of real tokens to get their ids."""
    options: dict[str, Any]
    """The task's options, seed included."""
    rails: dict[str, float]
    """Accuracies in % that come without a model, by name; measured on the test split."""
    splits: dict[SplitName, SplitRecord]
    files: dict[str, FileRecord]
    digest: Digest
    """SHA-256 over the content of all arrays; the identity of the data in a cell id."""


class _SchemaOnly(BaseModel):
    schema_number: int


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        DataError: It is missing, is not a manifest, or was written by a newer or older version.
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    try:
        schema = _SchemaOnly.model_validate_json(data).schema_number
        if schema != SCHEMA:
            age = "a newer" if schema > SCHEMA else "an older"
            raise DataError(f"{path}: written by {age} version (schema {schema}; this version reads {SCHEMA})")
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(f"{file}: not a manifest; {where}: {first['msg']}") from error
    if set(manifest.splits) != set(SPLITS) or set(manifest.files) != {f"{s}-{k}.npy" for s in SPLITS for k in ARRAYS}:
        raise DataError(f"{file}: not a manifest; splits or files are not the expected ones")
    return manifest
