# SPDX-License-Identifier: Apache-2.0
"""The form of every JSON file in a store: a body with its checksum, `{kind: body, "sha256": digest}`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lra.config.schema import canonical_json
from lra.errors import DamagedFileError, LraError

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
    with reading(path, f"a {kind} file of this project"):
        envelope = read_json(path, f"a {kind} file of this project")
        body: dict[str, Any] = envelope[kind]
        if hashlib.sha256(canonical_json(body)).hexdigest() != envelope["sha256"]:
            raise DamagedFileError(f"{path} is damaged: its checksum does not match")
        schema = body["schema_version"]
        if not isinstance(schema, int) or schema > newest:
            raise DamagedFileError(f"{path} was written by a newer version (schema {schema})")
        if schema < 1:
            raise ValueError(f"there is no schema {schema}")
    return body


def read_json(path: Path, kind: str) -> Any:
    """Read a JSON file of a store.

    Args:
        path: The file.
        kind: What it should be, with its article.

    Raises:
        DamagedFileError: It cannot be read, or is not JSON of a sensible size and depth.
    """
    with reading(path, kind):
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is no regular file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        value = json.loads(path.read_bytes())
        level = [value]
        for _ in range(MAX_DEPTH):
            level = [inner for outer in level if isinstance(outer, dict | list) for inner in _children(outer)]
        if level:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return value


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one line with its name.

    Args:
        path: The file.
        kind: What it should be, with its article.

    Raises:
        DamagedFileError: The block raised an exception that was not meant for the user.
    """
    try:
        yield
    except LraError:
        raise
    except OSError as error:
        raise DamagedFileError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DamagedFileError(f"{path} is not {kind}: {reason}") from error


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
