# SPDX-License-Identifier: Apache-2.0
"""The form of every JSON file in a store: a body with its checksum, `{kind: body, "sha256": digest}`."""

from __future__ import annotations

import hashlib
import json
from operator import itemgetter
from pathlib import Path
from typing import Any

from lra.config.schema import canonical_json
from lra.errors import DamagedFileError
from lra.reading import read_file, reading

MAX_BYTES = 64 * 2**20
"""Larger files are not read; a record has some kilobytes."""
MAX_DEPTH = 32
"""Deeper nesting is refused, since what is done with a record would run out of stack."""


def pack_envelope(kind: str, body: dict[str, Any]) -> bytes:
    """Serialise a body with its checksum; `kind` is the key that it stands under."""
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    return json.dumps({kind: body, "sha256": digest}, indent=1, sort_keys=True, allow_nan=False).encode()


def read_envelope(path: Path, kind: str, newest: int) -> dict[str, Any]:
    """Read a body and check it.

    Args:
        path: The file.
        kind: The key that the body stands under.
        newest: The newest schema that the caller can read.

    Raises:
        DamagedFileError: The file cannot be read, is damaged, of another kind, or of a newer schema.
    """
    with reading(path, DamagedFileError):
        envelope = read_json(path)
        body: dict[str, Any] = envelope[kind]
        if hashlib.sha256(canonical_json(body)).hexdigest() != envelope["sha256"]:
            raise DamagedFileError(f"{path} is damaged: its checksum does not match")
        schema = body["schema_version"]
        if not isinstance(schema, int) or schema > newest:
            raise DamagedFileError(f"{path} was written by a newer version (schema {schema})")
        if schema < 1:
            raise ValueError(f"there is no schema {schema}")
    return body


def read_json(path: Path) -> Any:
    """Read a JSON file of a store. Its keys are in the order in which they are written, so another one changes nothing.

    Raises:
        DamagedFileError: It cannot be read, or is not JSON of a sensible size and depth.
    """
    content = read_file(path, MAX_BYTES, DamagedFileError)
    with reading(path, DamagedFileError):
        value = json.loads(content, object_pairs_hook=lambda pairs: dict(sorted(pairs, key=itemgetter(0))))
        level = [value]
        for _ in range(MAX_DEPTH):
            level = [inner for outer in level if isinstance(outer, dict | list) for inner in _children(outer)]
        if level:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return value


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
