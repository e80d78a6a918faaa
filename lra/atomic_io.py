# SPDX-License-Identifier: Apache-2.0
"""Writes that are whole or absent: temporary file, fsync, rename or link, fsync of the folder.

Everything of this project that touches results, checkpoints or prepared data on disk goes through here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file by new content that is on the disk before the name points to it.

    Raises:
        OSError: Nothing was changed.
    """
    temporary = _write_temporary(path, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Create a file that must not exist yet; False if somebody else's is there (the caller reads and compares it).

    Raises:
        OSError: Nothing was created.
    """
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


@contextlib.contextmanager
def build_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; on success sync it and rename it into place, else remove it.

    If another process finished the same target first, its copy stays and ours is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        yield folder
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_folder(folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder at once as far as its name goes, so that nobody finds half of it.

    Raises:
        OSError: It could not be removed.
    """
    to_delete = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    folder.rename(to_delete)
    sync_folder(folder.parent)
    shutil.rmtree(to_delete)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write_temporary(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
