# SPDX-License-Identifier: Apache-2.0
"""The pickles that the code of Nystromformer makes of each task, as a dataset variant of their own.

They are made by the pipelines of the original benchmark, or by older ones, on somebody's machine: Text is cut to 1,000
bytes and validated on its test split, images have their own splits, and the symbols of ListOps have numbers in an order
that nobody wrote down. So they are never taken for the data of any other source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lra.data.pickled_rows import Ids, read_pickled_rows
from lra.data.split import SPLITS, Split, SplitName, write_split
from lra.errors import DataError
from lra.reading import is_there
from lra.terminal import progress_bar

VERSION = 1
"""Raised when the same files give other arrays."""
SOURCE = "nystromformer"
"""Value of the option `source`."""
NAME = "pickles of Nystromformer"
"""In tables."""
SUFFIXES: dict[SplitName, str] = {"train": "train", "validation": "dev", "test": "test"}

Decode = Callable[[Ids], bytes]
"""From the numbers of a document, padded with 0, to the tokens that are stored."""


def pickle_files(folder: Path, stem: str) -> dict[SplitName, Path]:
    """Return the three files `lra-STEM.SPLIT.pickle` or `STEM.SPLIT.pickle` of a folder, by split.

    Raises:
        DataError: One is not there, or is a link to nothing, or files of both names are there, whose symbols may have
            other numbers.
    """
    sets: list[dict[SplitName, Path]] = [
        {split: folder / f"{prefix}{stem}.{suffix}.pickle" for split, suffix in SUFFIXES.items()}
        for prefix in ("lra-", "")
    ]
    present = [files for files in sets if any(is_there(file) for file in files.values())]
    if len(present) > 1:
        raise DataError(f"{folder}: holds files of two sets, lra-{stem}.* and {stem}.*; leave one of them there")
    files = present[0] if present else sets[0]
    for file in files.values():
        if not file.is_file():
            raise DataError(f"{folder}: {file.name} not found")
    return files


def read_pickles(
    files: dict[SplitName, Path],
    scratch: Path,
    decode: Decode,
    *,
    documents: int,
    classes: int,
    offset: int,
    progress: bool,
) -> dict[SplitName, Split]:
    """Read the three files of a task.

    Args:
        files: By split.
        scratch: An empty folder for the tokens.
        decode: See `Decode`.
        documents: Documents of each example, 1 or 2.
        classes: Labels are 0 to `classes - 1`.
        offset: See `Split.token_offset`.
        progress: Whether to show a bar, when there is a terminal.

    Raises:
        DataError: A file is damaged, or a row is not one of the task.
    """

    def rows(file: Path) -> Iterator[tuple[int, list[bytes]]]:
        bar = progress_bar(read_pickled_rows(file), title=file.name, unit=" rows", shown=progress)
        for number, (label, arrays) in enumerate(bar):
            if not 0 <= label < classes or len(arrays) != documents:
                raise DataError(f"{file}: row {number}: label {label} and {len(arrays)} documents are not of this task")
            try:
                yield label, [decode(ids) for ids in arrays]
            except DataError as error:
                raise DataError(f"{file}: row {number}: {error}") from error

    return {split: write_split(scratch / f"{split}.npy", rows(files[split]), token_offset=offset) for split in SPLITS}


def decode_symbols(ids: Ids, *, least: int, most: int, longest: int) -> bytes:
    """Return numbers without the padding behind them.

    Raises:
        DataError: One is outside `least` to `most`, or there are more than `longest`, or none.
    """
    ends = np.flatnonzero(ids)
    real = ids[: ends[-1] + 1] if len(ends) else ids[:0]
    if not len(real) or int(real.min()) < least or int(real.max()) > most:
        raise DataError(f"numbers outside {least} to {most}, or none")
    if len(real) > longest:
        raise DataError(f"{len(real):,} tokens, more than the {longest:,} of max_length")
    return real.astype(np.uint8).tobytes()


def decode_bytes(ids: Ids, *, longest: int) -> bytes:
    """Return the text whose bytes have the ids byte + 1, without the padding behind it, cut to `longest`.

    Raises:
        DataError: An id is outside 1 to 256, or there are none.
    """
    ends = np.flatnonzero(ids)
    real = ids[: ends[-1] + 1] if len(ends) else ids[:0]
    if not len(real) or int(real.min()) < 1 or int(real.max()) > 256:
        raise DataError("ids outside 1 to 256, or none")
    return (real[:longest] - 1).astype(np.uint8).tobytes()


def decode_pixels(ids: Ids, *, count: int) -> bytes:
    """Return the gray levels of an image.

    Raises:
        DataError: They are not `count` numbers of 0 to 255.
    """
    if len(ids) != count or int(ids.min()) < 0 or int(ids.max()) > 255:
        raise DataError(f"not {count:,} gray levels of 0 to 255")
    return ids.astype(np.uint8).tobytes()
