# SPDX-License-Identifier: Apache-2.0
"""Rows of parquet files, as Hugging Face has IMDb and CIFAR-10; needs pyarrow (extra `export`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lra.errors import DataError, UsageError
from lra.reading import open_regular, reading, visible

FOLDERS = (".", "plain_text")
"""Where the files are below the folder that a user names."""
PARQUET_SPLITS = ("train", "test")
PARQUET_ORDER = "in the order of the parquet files"
"""Said in tables, because the held-out examples are others than those of the archives."""
SIZE_LIMIT = 1 << 30
"""Bytes of all columns of a file, decompressed."""
BATCH = 1_000


def of_split(files: Iterable[Path], split: str) -> list[Path]:
    """Return the files `SPLIT.parquet` or `SPLIT-*.parquet` among parquet files."""
    return [file for file in files if file.stem.partition("-")[0] == split]


def source_files(source: Path) -> list[Path]:
    """Return the files that a source consists of: the archive itself, or the parquet files of a folder.

    Those of a folder may also lie in `plain_text` below it; they are in order.

    Raises:
        DataError: The folder has none, or they lie in several folders, or one cannot be read or is a copy of another.
    """
    if not source.is_dir():
        return [source]
    files = list[Path]()
    for split in PARQUET_SPLITS:
        places = [of_split(visible(source / folder, f"{split}*.parquet"), split) for folder in FOLDERS]
        if not any(places):
            raise DataError(f"{source}: no {split}-*.parquet in it; a folder must be of parquet files")
        files += next(filter(None, places))
    if len({file.parent for file in files}) > 1:
        raise DataError(f"{source}: its parquet files lie in several folders; name one of them")
    first: dict[str, Path] = {}
    for file in files:
        with reading(file), open_regular(file) as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if (other := first.setdefault(digest, file)) != file:
            raise DataError(f"{file}: a copy of {other.name}")
    return files


def read_rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns, row by row.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: The file is damaged, too large, or has not these columns.
    """
    if find_spec("pyarrow") is None:
        raise UsageError("reading parquet needs pyarrow; pip install 'lra-harness[export]'")
    from pyarrow.parquet import ParquetFile

    with reading(file), open_regular(file) as handle, ParquetFile(handle, page_checksum_verification=True) as table:
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        if size > SIZE_LIMIT:
            raise DataError(f"{file}: {size:,} bytes once decompressed, more than the {SIZE_LIMIT:,} it may have")
        there = table.schema_arrow.names
        if absent := [column for column in columns if column not in there]:
            raise DataError(f"{file}: no column {', '.join(absent)}; there are {', '.join(there)[:80]}")
        for batch in table.iter_batches(batch_size=BATCH, columns=list(columns)):
            yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
