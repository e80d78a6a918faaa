# SPDX-License-Identifier: Apache-2.0
"""From chunks to a corpus of Pathfinder images: independent of the number of processes, resumable after a kill.

Finished chunks go to the end of one file of images; a second file holds, for each, its digest and its labels. Both are
on the disk before the next chunk is added. The digest covers recipe, seed and number of the chunk as well, and all
chunks are verified before a crash's are used and again in the end.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lra.data.process_pool import in_order
from lra.errors import DataError, refusals_as
from lra.tasks.pathfinder.generator import CHUNK, generate_chunk
from lra.tasks.pathfinder.lookup_tables import Recipe
from lra.tasks.pathfinder.sprites import Bytes
from lra.terminal import progress_bar

IMAGES, LOG = "images.bin", "chunks.bin"
_DIGEST = 32
_ENTRY = _DIGEST + CHUNK


def generate_images(
    recipe: Recipe, total: int, seed: int, folder: Path, *, workers: int | None, progress: bool
) -> tuple[Bytes, Bytes]:
    """Generate images, or what is missing of them, in a folder for work in progress.

    Args:
        recipe: The dataset variant.
        total: Number of images.
        seed: Which.
        folder: Holds nothing, or what an earlier call with the same arguments left there.
        workers: Processes; None takes one per core. The images do not depend on it.
        progress: Whether to show a bar, when there is a terminal.

    Returns:
        Images (total, size, size), mapped from the folder, and labels (total,), uint8.

    Raises:
        DataError: A worker process died, the disk refuses, or a finished chunk was changed; what is sound stays for
            the next call.
    """
    chunks = -(-total // CHUNK)
    with (
        refusals_as(DataError, f"cannot write to {folder}"),
        (folder / IMAGES).open("a+b") as images,
        (folder / LOG).open("a+b") as log,
    ):
        done = min(_keep_sound(images, log, recipe, seed), chunks)
        make = functools.partial(generate_chunk, recipe, seed)
        processes = min(workers or os.cpu_count() or 1, max(1, chunks - done))
        with progress_bar(title=f"pathfinder {recipe.size}", total=total, unit="img", shown=progress) as bar:
            bar.update(min(done * CHUNK, total))
            for number, (pictures, labels) in enumerate(in_order(make, range(done, chunks), processes), start=done):
                _append(images, pictures.tobytes())
                _append(log, _digest(recipe, seed, number, pictures.tobytes(), labels.tobytes()) + labels.tobytes())
                bar.update(min(CHUNK, total - bar.n))
        if _keep_sound(images, log, recipe, seed) < chunks:
            raise DataError(
                f"{folder}: changed while images were generated; the same command goes on with the sound ones"
            )
        log.seek(0)
        entries = np.frombuffer(log.read(chunks * _ENTRY), dtype=np.uint8).reshape(chunks, _ENTRY)
    pictures = np.memmap(folder / IMAGES, dtype=np.uint8, mode="r", shape=(total, recipe.size, recipe.size))
    return pictures, entries[:, _DIGEST:].reshape(-1)[:total]


def _append(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _digest(recipe: Recipe, seed: int, number: int, pictures: bytes, labels: bytes) -> bytes:
    return hashlib.sha256(f"{recipe} {seed} {number}\n".encode() + labels + pictures).digest()


def _keep_sound(images: BinaryIO, log: BinaryIO, recipe: Recipe, seed: int) -> int:
    """Truncate both files after the last complete chunk whose digest matches; return the number of chunks."""
    chunk_bytes = CHUNK * recipe.size**2
    images.seek(0)
    log.seek(0)
    sound = 0
    while len(entry := log.read(_ENTRY)) == _ENTRY:
        if _digest(recipe, seed, sound, images.read(chunk_bytes), entry[_DIGEST:]) != entry[:_DIGEST]:
            break
        sound += 1
    images.truncate(sound * chunk_bytes)
    log.truncate(sound * _ENTRY)
    return sound
