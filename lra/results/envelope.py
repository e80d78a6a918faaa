# SPDX-License-Identifier: Apache-2.0
"""The form of every JSON file in a store: a body with its checksum, `{kind: body, "sha256": digest}`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lra.config.schema import canonical_json
from lra.errors import StoreError


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
        StoreError: The file cannot be read, is damaged, of another kind, or of a newer schema.
    """
    try:
        envelope = json.loads(path.read_bytes())
        body: dict[str, Any] = envelope[kind]
        if hashlib.sha256(canonical_json(body)).hexdigest() != envelope["sha256"]:
            raise StoreError(f"{path} is damaged: its checksum does not match")
        schema = body["schema_version"]
        if not isinstance(schema, int) or schema > newest:
            raise StoreError(f"{path} was written by a newer version (schema {schema})")
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not a {kind} file of this project: {str(error).splitlines()[0]}") from error
    return body
