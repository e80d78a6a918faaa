# SPDX-License-Identifier: Apache-2.0
"""From chunks to a corpus of Pathfinder images: independent of the number of processes, resumable after a kill.

Finished chunks go to the end of one file of images; a second file holds, for each, its digest and its labels. Both are
on the disk before the next chunk is added. The digest covers recipe, seed and number of the chunk as well, and all
chunks are verified before a crash's are used and again when they are read in the end.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lra.data.process_pool import in_order
from lra.errors import DataError, refusals_as
from lra.tasks.pathfinder.generator import CHUNK, generate_chunk
from lra.tasks.pathfinder.lookup_tables import Recipe
from lra.terminal import progress_bar

IMAGES, LOG = "images.bin", "chunks.bin"
_DIGEST = 32
_ENTRY = _DIGEST + CHUNK


def generate_images(
    recipe: Recipe, total: int, seed: int, folder: Path, *, workers: int | None, progress: bool
) -> Iterator[tuple[int, bytes]]:
    """Generate images, or what is missing of them, in a folder for work in progress.

    Args:
        recipe: The dataset variant.
        total: Number of images.
        seed: Which.
        folder: Holds nothing, or what an earlier call with the same arguments left there.
        workers: Processes; None takes one per core. The images do not depend on it.
        progress: Whether to show a bar, when there is a terminal.

    Yields:
        Label and gray levels, row by row, of each image.

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
        examples = (example for chunk in _sound(images, log, recipe, seed) for example in chunk)
        read = 0
        for example in itertools.islice(examples, total):
            yield example
            read += 1
        if read < total:
            raise DataError(
                f"{folder}: changed while images were generated; the same command goes on with the sound ones"
            )


def _append(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _digest(recipe: Recipe, seed: int, number: int, pictures: bytes, labels: bytes) -> bytes:
    return hashlib.sha256(f"{recipe} {seed} {number}\n".encode() + labels + pictures).digest()


def _keep_sound(images: BinaryIO, log: BinaryIO, recipe: Recipe, seed: int) -> int:
    """Truncate both files after the last complete chunk whose digest matches; return the number of chunks."""
    sound = sum(1 for _ in _sound(images, log, recipe, seed))
    images.truncate(sound * CHUNK * recipe.size**2)
    log.truncate(sound * _ENTRY)
    return sound


def _sound(images: BinaryIO, log: BinaryIO, recipe: Recipe, seed: int) -> Iterator[list[tuple[int, bytes]]]:
    """Read the chunks, as far as their digests match: label and levels of each image."""
    image_bytes = recipe.size**2
    images.seek(0)
    log.seek(0)
    number = 0
    while len(entry := log.read(_ENTRY)) == _ENTRY:
        pictures, labels = images.read(CHUNK * image_bytes), entry[_DIGEST:]
        if _digest(recipe, seed, number, pictures, labels) != entry[:_DIGEST]:
            return
        yield [
            (label, pictures[start : start + image_bytes])
            for label, start in zip(labels, range(0, len(pictures), image_bytes), strict=True)
        ]
        number += 1
