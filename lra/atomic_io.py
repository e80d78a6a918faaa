# SPDX-License-Identifier: Apache-2.0
"""Writes that are whole or absent: temporary file, fsync, rename or link, fsync of the folder.

Everything of this project that touches results, checkpoints or prepared data on disk goes through here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

NOT_SUPPORTED = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems answer to calls that they do not have."""
NO_LINKS = (
    "this file system refuses hard links, without which two processes could overwrite each other's files; "
    "name a folder on another file system"
)
NO_FLUSH = (
    "this file system cannot flush a folder, without which a power cut could lose what was written; "
    "name a folder on another file system"
)
_OF_PROCESS = re.compile(r"\.(\d+)-(?:(\d+)-)?[0-9a-f]{8}\.tmp$")
"""How the name of a temporary file ends: the process, its start, which older versions left out, and a random part."""


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
        OSError: Nothing was created, or the file system cannot flush the folder, and it is not known to be on the disk.
    """
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in NOT_SUPPORTED:
            raise OSError(error.errno, NO_LINKS) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`, and remove it in the end with all that is still in it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_name(target)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def build_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; on success sync it and rename it into place, else remove it.

    If another process finished the same target first, its copy stays and ours is removed.
    """
    with scratch_folder(target) as folder:
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


def remove_folder(folder: Path) -> None:
    """Remove a folder at once as far as its name goes, so that nobody finds half of it; of a link, the link alone.

    Raises:
        OSError: It could not be removed. What is left of it has a name that `leftovers` finds.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    to_delete = temporary_name(folder)
    folder.rename(to_delete)
    sync_folder(folder.parent)
    shutil.rmtree(to_delete)


def temporary_name(path: Path) -> Path:
    """Return a new name beside a path for what this process works on, by which `leftovers` finds it."""
    pid = os.getpid()
    return path.with_name(f".{path.name}.{pid}-{process_start(pid) or 0}-{secrets.token_hex(4)}.tmp")


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders of ours that killed processes left in a folder, in order.

    Those of a process that lives on this machine are not among them. A process that only has the number of the one that
    made them, as the first process of every container has 1, does not count.
    """
    ours = [path for path in folder.glob(".*.tmp") if _OF_PROCESS.search(path.name)]
    return sorted(path for path in ours if not in_use(path))


def in_use(path: Path) -> bool:
    """Say whether a temporary file or folder of ours is of a process that lives on this machine."""
    match = _OF_PROCESS.search(path.name)
    if match is None:
        return False
    start = process_start(match[1])
    return match[2] in (None, start) if start else is_hidden(match[1])


def process_start(pid: object) -> str:
    """Return when a process started, in the kernel's ticks: pids are reused, pairs with this are not. Empty if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # the name may be cut inside a letter
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def is_hidden(pid: object) -> bool:
    """Say whether a process is one of another user that `/proc` does not show, as with its option `hidepid`."""
    if process_start(pid):
        return False
    try:
        os.kill(int(str(pid)), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut.

    Raises:
        OSError: The file system cannot; the text says what helps.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in NOT_SUPPORTED:
            raise OSError(error.errno, NO_FLUSH) from error
        raise
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write_temporary(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
