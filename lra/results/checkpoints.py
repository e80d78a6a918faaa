# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with a SHA-256 trailer. Damaged files are refused; the two newest are kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lra.atomic_io import atomic_write
from lra.errors import DamagedFileError, StoreError, refusals_as
from lra.reading import is_there, open_regular, reading, reason, visible

_MAGIC = b"LRA-SHA256\x00"
_NAME = re.compile(r"^step-(\d{9})\.pt$")
KEEP = 2
REFUSED = ".refused"
"""Suffix of a checkpoint that could not be used."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state of a run after `step` steps to the disk, then remove all but `KEEP` of those up to this step.

    Checkpoints of later steps, which are not of this process, are left to who reads them.

    Args:
        folder: The run's own folder.
        step: Steps done.
        state: Tensors and plain values only: `run_id`, `environments`, `model`, `optimizer`, `state` with its `step`,
            and what else the run needs. The list of all its parts goes with it, as `parts`.

    Raises:
        StoreError: The disk refuses; earlier checkpoints are as they were.
    """
    path = folder / f"step-{step:09d}.pt"
    write_state(path, state | {"parts": sorted(_parts(state))})
    earlier = [old for number, old in list_checkpoints(folder) if number < step]
    for old in earlier[KEEP - 1 :]:
        with contextlib.suppress(OSError):  # the state is saved; an old one too many costs nothing but room
            old.unlink(missing_ok=True)
    return path


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to one file with its checksum.

    Raises:
        StoreError: The disk refuses.
    """
    body = pack_state(state)
    with refusals_as(StoreError, f"cannot write {path}"):
        atomic_write(path, body + _MAGIC + hashlib.sha256(body).digest())


def read_state(path: Path) -> dict[str, Any]:
    """Read a file of `write_state`, on the CPU.

    Raises:
        DamagedFileError: The file is missing or is not, bit for bit, what was written, or holds code.
        StoreError: It cannot be read, or not with the memory that there is, which says nothing about it.
    """
    with reading(path, StoreError):
        if not is_there(path, StoreError):
            raise DamagedFileError(f"{path}: no such file")
        with open_regular(path, DamagedFileError) as handle:
            content = handle.read()
        trailer = len(_MAGIC) + 32
        body, magic, digest = content[:-trailer], content[-trailer:-32], content[-32:]
        if magic != _MAGIC or hashlib.sha256(body).digest() != digest:
            raise DamagedFileError(f"{path} is damaged: its checksum does not match")
    try:
        return unpack_state(body)
    except pickle.UnpicklingError as error:
        raise DamagedFileError(f"{path} holds more than tensors and plain values; refused") from error
    except Exception as error:  # whatever torch makes of a body that somebody else wrote
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise StoreError(f"{path}: reading it takes more memory than there is") from error
        raise DamagedFileError(f"{path} is damaged: torch cannot read it: {reason(error)}") from error


def pack_state(state: dict[str, Any]) -> bytes:
    """Return tensors and plain values as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack_state(body: bytes) -> dict[str, Any]:
    """Take back what `pack_state` gave, on the CPU.

    Raises:
        UnpicklingError: It holds more than tensors and plain values.
    """
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List (step, path) of a run's checkpoints, newest first.

    Raises:
        StoreError: The folder cannot be listed, is a file, or is a link to what is not there.
    """
    matches = ((_NAME.match(path.name), path) for path in visible(folder, kind=StoreError))
    return sorted(((int(match.group(1)), path) for match, path in matches if match), reverse=True)


def newest_checkpoint(folder: Path, run_id: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest sound state of a run, or None, and what is wrong with each newer one.

    A file that is damaged, or another one than its name says, gets another name. It would otherwise count as newer than
    what the run saves next.

    Args:
        folder: The run's own folder.
        run_id: The run. A checkpoint of another one is refused, wherever it is.

    Raises:
        StoreError: The folder or a checkpoint cannot be read.
    """
    passed_over: list[str] = []
    for step, path in list_checkpoints(folder):
        try:
            state = read_state(path)
            with reading(path, DamagedFileError):
                if state["run_id"] != run_id:
                    raise DamagedFileError(f"{path} is of another run, {str(state['run_id'])[:12]}")
                if state["state"]["step"] != step:
                    raise DamagedFileError(f"{path} is of step {state['state']['step']}")
                if not state.get("environments"):
                    raise DamagedFileError(f"{path} does not say in which environment it was saved")
                lacking = {"/model", "/optimizer", *state.get("parts", ())}.difference(_parts(state))
                if lacking:
                    raise DamagedFileError(f"{path} is not whole: it has no {min(lacking)[1:]}")
            return state, passed_over
        except DamagedFileError as error:
            passed_over.append(str(error))
            with contextlib.suppress(OSError):  # a store that cannot be written is found out by who saves
                path.rename(path.with_suffix(REFUSED))
    return None, passed_over


def _parts(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each part of a state, with the shape of a tensor and the length of a list."""
    if isinstance(value, Tensor):
        yield f"{path} {tuple(value.shape)}"
    elif isinstance(value, list):
        yield f"{path} ({len(value)})"
        value = {index: inner for index, inner in enumerate(value) if isinstance(inner, dict | list | Tensor)}
    else:
        yield path
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from _parts(inner, f"{path}/{name}")


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
