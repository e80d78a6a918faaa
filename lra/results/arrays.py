# SPDX-License-Identifier: Apache-2.0
"""The arrays of a run: packed to equal bytes, and sealed to the record that they belong to."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from lra.config.schema import canonical_json

ARRAYS_LIMIT = 64 << 20
"""Bytes of the arrays of a run, packed and unpacked; those of 20,000 test examples have 100,000."""
SEAL = "seal"
"""Name of the array that says which record the arrays belong to; older ones have none."""


def seal(body: Mapping[str, Any]) -> np.ndarray:
    """Return a digest of what a record says, to be kept with its arrays: an edited record then fits them no more.

    It covers what is the same whenever the run is repeated, so that equal runs have equal arrays.

    Args:
        body: The plain values of the record, as its file has them.

    Returns:
        (32,), uint8.
    """
    said = {name: body[name] for name in ("run_id", "status", "outcome", "dataset", "data_digest", "baselines")}
    if body.get("pretrained") is not None:
        said["pretrained"] = body["pretrained"]
    return np.frombuffer(hashlib.sha256(canonical_json(said)).digest(), dtype=np.uint8)


def unpack_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Take back what `pack_arrays` gave.

    Raises:
        ValueError: It unpacks to more than `ARRAYS_LIMIT`, or is not an .npz file.
        BadZipFile: The same.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        if sum(member.file_size for member in members.infolist()) > ARRAYS_LIMIT:
            raise ValueError(f"it unpacks to more than {ARRAYS_LIMIT:,} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """Serialise arrays to the bytes of an .npz file; equal arrays give equal bytes."""
    assert not any(array.dtype.hasobject for array in arrays.values())  # NumPy 2.0 takes `allow_pickle` for an array
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs take every name for allow_pickle
    return buffer.getvalue()
