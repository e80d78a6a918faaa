# SPDX-License-Identifier: Apache-2.0
"""Leases on runs: several processes and hosts share one store, and no run is done twice.

A lease is a file created by `link()`, which is exclusive on network file systems too. Its holder raises a counter in it
every few seconds. A lease is stale when its process is gone (same host, boot and process namespace), or when its
counter has not changed for `STALE_SECONDS` of the observer's own monotonic clock. No wall clock is read.

`filelock` does not replace this. Its kernel locks do not say whether the holder on another host is alive, nor how far
it is, and many network file systems do not keep them; its `SoftFileLock` has no heartbeat, so the lease of a host that
died could not be told from that of a busy one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra.atomic_io import atomic_write, create_exclusive, is_hidden, process_start
from lra.errors import StoreError
from lra.reading import is_there, open_regular

BEAT_SECONDS = 5.0
STALE_SECONDS = 40.0
LOOK_SECONDS = 0.5
"""Time between two looks at a lease of another host."""
TAKEOVERS = 3
"""Attempts to take a lease that others try to take as well."""


@dataclass
class Progress:
    """How far the holder of a lease is; written with the counter."""

    step: int = 0
    steps: int = 0


@contextlib.contextmanager
def acquire(
    root: Path, run_id: str, progress: Progress | None = None, give_up: Callable[[], bool] = lambda: False
) -> Iterator[bool]:
    """Try to acquire the lease of a run: True inside the block if it is ours, False if a living process holds it.

    A holder on this host is checked immediately. For one of another host it takes up to `BEAT_SECONDS` to see that it
    is alive, or `STALE_SECONDS` to find it stale and take it over. A lease that cannot be read is never taken over.

    Args:
        root: The store.
        run_id: The run.
        progress: Changed by the caller inside the block, shown to observers.
        give_up: Asked while waiting for a sign of life; True ends the wait without the lease.

    Raises:
        OSError: The store cannot be written.
    """
    path, progress = _path(root, run_id), progress or Progress()
    owner = _identity() | {"run_id": run_id, "store": str(root.resolve())}
    if not _take(path, owner, give_up):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, owner, progress, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if _read(path).get("token") == owner["token"]:
            with contextlib.suppress(OSError):  # what was done is done; the lease of a dead process is taken over
                path.unlink(missing_ok=True)


def holder(root: Path, run_id: str) -> dict[str, Any] | None:
    """Return host, pid, step and steps of the holder of a run; None if there is none, or its process here is gone.

    One look cannot tell whether a holder on another host is alive, so it is taken to be. So is that of a lease which
    cannot be read, such as another user's; of it there is only `unread`, the reason.

    Raises:
        StoreError: The leases are behind a link to what is not there, or below a file.
    """
    path = _path(root, run_id)
    content = _read(path) if is_there(path, StoreError) else {}
    return content if content and not _gone(path, content) else None


def _path(root: Path, run_id: str) -> Path:
    return root / "leases" / run_id


def _take(path: Path, owner: dict[str, Any], give_up: Callable[[], bool]) -> bool:
    for _ in range(TAKEOVERS):
        if create_exclusive(path, json.dumps(owner | {"beat": 0}).encode()):
            return True
        present = _read(path)
        if path.exists() and not _dead(path, present, give_up):
            return False
        _break_stale(path, present.get("token"))
    return False


def _break_stale(path: Path, dead_token: str | None) -> None:
    """Remove a stale lease, unless another process was faster and a living lease has taken its place."""
    with (path.parent / ".takeover").open("a") as lock:
        with contextlib.suppress(OSError):  # no locks on this file system: both may win, and publish the same bits
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it if we are killed here
        present = _read(path)
        if path.exists() and "unread" not in present and present.get("token") == dead_token:
            path.unlink(missing_ok=True)


def _dead(path: Path, present: dict[str, Any], give_up: Callable[[], bool]) -> bool:
    if "unread" in present:
        return False
    if _gone(path, present) or same_machine(present):
        return _gone(path, present)
    waited_from = time.monotonic()
    while time.monotonic() - waited_from <= STALE_SECONDS:
        if give_up() or _read(path) != present:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def same_machine(content: dict[str, Any]) -> bool:
    """Return whether a holder is a process of this machine that one look can tell alive or dead."""
    ours = _identity()
    here = bool(ours["boot"]) and all(content.get(key) == ours[key] for key in ("host", "boot", "namespace"))
    return here and not is_hidden(content.get("pid"))


def _gone(path: Path, content: dict[str, Any]) -> bool:
    """Return whether nobody holds the run by this file: its holder is gone, or the file is a copy of another lease.

    False if that cannot be seen from here.
    """
    if content.get("run_id", path.name) != path.name:
        return True
    if not same_machine(content):
        return False
    return process_start(content.get("pid")) != content.get("start") or _is_of_another_store(path, content)


def _is_of_another_store(path: Path, content: dict[str, Any]) -> bool:
    if content.get("mounts") != _namespace("mnt"):
        return False  # its paths may mean other folders
    with contextlib.suppress(OSError, TypeError):
        return not path.parents[1].samefile(content.get("store", ""))
    return False


def _identity() -> dict[str, Any]:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.is_file() else "",
        "namespace": _namespace("pid"),
        "mounts": _namespace("mnt"),
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "token": os.urandom(8).hex(),
    }


def _namespace(kind: str) -> str:
    """Return which namespace of a kind this process is in; empty where the system has none."""
    link = Path("/proc/self/ns", kind)
    return str(link.readlink()) if link.is_symlink() else ""


def _read(path: Path) -> dict[str, Any]:
    """Return what a lease says: nothing if it is gone or damaged, and `unread` if nobody can tell."""
    try:
        with open_regular(path, StoreError) as handle:
            content = json.load(handle)
        return content | {name: int(content.get(name, 0)) for name in ("step", "steps")}
    except FileNotFoundError:
        return {}
    except OSError as error:
        return {"unread": f"its lease cannot be read: {path}: {error.strerror}"}
    except StoreError as error:
        return {"unread": f"its lease cannot be read: {error}"}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _heartbeat(path: Path, owner: dict[str, Any], progress: Progress, stop: threading.Event) -> None:
    count = 0
    while not stop.wait(BEAT_SECONDS):
        count += 1
        holder = _read(path).get("token")
        if holder not in (owner["token"], None):
            return  # taken over while this process was held up
        state = owner | {"beat": count, "step": progress.step, "steps": progress.steps}
        with contextlib.suppress(OSError):  # the store is unreachable for a while; the lease may become stale
            atomic_write(path, json.dumps(state).encode())
