"""Claims on cells, so that several processes and hosts share one store without doing a cell twice.

A claim is a file created by `link()`, which is exclusive on network file systems too. Its owner raises a counter in it
every few seconds. A claim is dead when its process is gone (same host, boot and process namespace), or when its counter
stands still for `STALE_SECONDS` of the observer's own monotonic clock; no wall clock is read.
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

from lra.atomic_io import atomic_write, create_exclusive

BEAT_SECONDS = 5.0
STALE_SECONDS = 40.0
LOOK_SECONDS = 0.5
"""Time between two looks at a claim of another host."""
TAKEOVERS = 3
"""Attempts on a claim that others try to take as well."""


@dataclass
class Progress:
    """How far the owner of a claim is; it travels with the counter."""

    step: int = 0
    steps: int = 0


@contextlib.contextmanager
def acquire(
    root: Path, run_id: str, position: Progress | None = None, give_up: Callable[[], bool] = lambda: False
) -> Iterator[bool]:
    """Try to own a cell of the store `root`: True inside the block if it is ours, False if a living owner has it.

    For a claim of this host that is known at once; for one of another host it takes up to `BEAT_SECONDS` to see it
    alive, or `STALE_SECONDS` to find it dead and take it over.

    Args:
        root: The store.
        run_id: The cell.
        position: Changed by the caller inside the block, shown to observers.
        give_up: Asked while waiting for a sign of life; True ends the wait without the claim.

    Raises:
        OSError: The store cannot be written.
    """
    path, owner, position = _path(root, run_id), _identity(), position or Progress()
    if not _take(path, owner, give_up):
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, owner, position, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if _read(path).get("token") == owner["token"]:
            path.unlink(missing_ok=True)


def holder(root: Path, run_id: str) -> dict[str, Any] | None:
    """Return host, pid, step and steps of who holds a cell; None if nobody does or its process on this host is gone.

    One look cannot tell whether an owner on another host is alive; it is taken to be.
    """
    content = _read(_path(root, run_id))
    return content if content and not _process_gone(content) else None


def _path(root: Path, run_id: str) -> Path:
    return root / "claims" / run_id


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
    """Remove a dead claim, unless somebody who found it dead too was faster and a living one is in its place."""
    with (path.parent / ".takeover").open("a") as lock:
        with contextlib.suppress(OSError):  # no locks on this file system: two may win, and publish the same bits
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it if we are killed here
        if path.exists() and _read(path).get("token") == dead_token:
            path.unlink(missing_ok=True)


def _dead(path: Path, present: dict[str, Any], give_up: Callable[[], bool]) -> bool:
    if _same_machine(present):
        return _process_gone(present)
    waited_from = time.monotonic()
    while time.monotonic() - waited_from <= STALE_SECONDS:
        if give_up() or _read(path) != present:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _same_machine(content: dict[str, Any]) -> bool:
    ours = _identity()
    return bool(ours["boot"]) and all(content.get(key) == ours[key] for key in ("host", "boot", "namespace"))


def _process_gone(content: dict[str, Any]) -> bool:
    """Say whether the owner surely is no more: False where that cannot be seen from here."""
    return _same_machine(content) and _process_start(content.get("pid")) != content.get("start")


def _identity() -> dict[str, Any]:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.is_file() else "",
        "namespace": str(namespace.readlink()) if namespace.is_symlink() else "",
        "pid": os.getpid(),
        "start": _process_start(os.getpid()),
        "token": os.urandom(8).hex(),
    }


def _process_start(pid: object) -> str:
    """Return when a process started, in the kernel's ticks, empty if there is none: pids are used again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _heartbeat(path: Path, owner: dict[str, Any], position: Progress, stop: threading.Event) -> None:
    count = 0
    while not stop.wait(BEAT_SECONDS):
        count += 1
        holder = _read(path).get("token")
        if holder not in (owner["token"], None):
            return  # taken over while this process was held up
        state = owner | {"beat": count, "step": position.step, "steps": position.steps}
        with contextlib.suppress(OSError):  # a store that is away for a while; the claim may go stale
            atomic_write(path, json.dumps(state).encode())
