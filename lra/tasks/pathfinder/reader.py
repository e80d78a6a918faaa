# SPDX-License-Identifier: Apache-2.0
"""Reader of the official Pathfinder folders: PNG images, and metadata with one line for each.

Metadata files are text in the release and NumPy arrays of strings when they come from the original generator; both are
read, without pickle.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np
from PIL import Image

from lra.data.raw_files import places_in_release
from lra.errors import DataError
from lra.reading import is_there, read_file, reading, reason, visible
from lra.tasks.pathfinder.generator import CONTOUR_LENGTHS, Difficulty
from lra.tasks.pathfinder.sprites import Bytes
from lra.terminal import progress_bar

VERSION = 1
"""Raised when the same folder gives other arrays."""
FOLDERS: dict[Difficulty, str] = {
    "easy": "curv_baseline",
    "medium": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
RELEASE = "lra_release"
Copy = Literal["inner", "outer", "unknown"]
KAGGLE_PLACES = ("pathfinder/pathfinder", "pathfinder")
EMPTY_IN_RELEASE = ("pathfinder32", "curv_baseline", "imgs/0", "sample_172.png")
"""The one image of the release that is an empty file."""
COLUMNS = 11
SPLIT_SEED = 42
"""Seed of the permutation by which state-space papers split the sorted images."""
MAX_METADATA = 1 << 24
"""Bytes of a file; a released one has 1,000 lines."""
OUTER_COPY = (
    "A convolutional network was reported not to learn it (google-research/long-range-arena, issue 38), and later work "
    "reads the inner one, lra_release/lra_release/pathfinder128."
)
COPIES: dict[Copy, str] = {"inner": "the inner", "outer": "the outer", "unknown": "one, and nothing tells which,"}
ROWS_AT_A_TIME = 1_000
MAX_IMAGES = 1_000_000
"""Of one dataset variant; the released ones have 200,000."""
MAX_PNG = 1 << 20
_SIGNATURE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_SUBFOLDER, _NAME = re.compile(r"imgs/\d{1,9}"), re.compile(r"sample_\d{1,9}\.png")


@dataclass(frozen=True)
class Entry:
    """One line of metadata."""

    subfolder: str
    name: str
    label: int
    contour_length: str
    """Segments of a curve, as written."""


def name_in_release(size: int, difficulty: Difficulty) -> str:
    """Return the path of a dataset variant below the folder `RELEASE`."""
    return f"pathfinder{size}/{FOLDERS[difficulty]}"


def find_dataset(source: Path, size: int, difficulty: Difficulty) -> Path:
    """Return the folder of a dataset variant inside an unpacked release, or the given folder if it is that.

    Raises:
        DataError: There is none.
    """
    below = name_in_release(size, difficulty)
    kaggle = [source / place / below for place in KAGGLE_PLACES]
    for folder in (source, source / FOLDERS[difficulty], *places_in_release(source, below), *kaggle):
        if is_there(folder) and _is_called(folder, below):  # the first, whole or not
            return folder
    raise DataError(f"pathfinder: {below} not found in {source}\nunpack lra_release.gz of the benchmark there")


def copy_in_release(folder: Path) -> Copy:
    """Say which of the two copies of pathfinder128 in the release a dataset variant is in, see `OUTER_COPY`.

    The release holds a folder with its own name, and the inner copy is in that: lra_release/lra_release/pathfinder128.
    The names of the folders and the other copy at its place tell, of a link and of where it leads. If that can be read
    in two ways, as when only the first part of the paths is gone, or if nothing tells, the copy is unknown.
    """
    told = {_copy_of(path) for path in _paths(folder)} - {None}
    return told.pop() or "unknown" if len(told) == 1 else "unknown"


def _copy_of(path: Path) -> Copy | None:
    """Say which copy a path is of; None if nothing tells."""
    release, below = path.parent.parent, Path(path.parent.name, path.name)
    depth = _depth(release)
    has_inner, has_outer = (release / RELEASE / below).is_dir(), depth > 0 and (release.parent / below).is_dir()
    if has_inner or has_outer:
        return "outer" if has_inner and depth else "inner" if has_outer and depth > 1 else "unknown"
    by_name: tuple[Copy | None, ...] = (None, "outer", "inner")
    return by_name[depth]


def _depth(release: Path) -> int:
    """Say whether a folder, and the one that it is in, have the name of the release: 0, 1 or 2."""
    return (release.name == RELEASE) + (release.name == release.parent.name == RELEASE)


def _is_called(folder: Path, name: str) -> bool:
    """Say whether a path ends in `name`, as it is given or with its links followed."""
    return any(path.as_posix().endswith(f"/{name}") for path in _paths(folder))


def _paths(folder: Path) -> set[Path]:
    """Return the absolute path of a folder with its links followed, and as it is given, unless `..` follows a link."""
    given = Path(os.path.abspath(folder))  # noqa: PTH100 - `resolve` loses the names of links
    return {folder.resolve()} | ({given} if given.exists() and given.samefile(folder) else set())


def metadata(folder: Path) -> list[Path]:
    """List the files of metadata of a dataset variant, in the order of their numbers."""
    return sorted(visible(folder / "metadata", "*.npy"), key=lambda file: (len(file.stem), file.stem))


def read_entries(folder: Path) -> list[Entry]:
    """Read all metadata of a dataset variant, files in the order of their numbers.

    Raises:
        DataError: With the file and the line, at the first that is not as it must be.
    """
    with reading(folder):
        entries: list[Entry] = []
        for file in metadata(folder):
            with reading(file):
                entries += _parse(file)
            if len(entries) > MAX_IMAGES:
                raise DataError(f"{folder / 'metadata'}: more than {MAX_IMAGES:,} images are listed")
    if not entries:
        raise DataError(f"{folder / 'metadata'}: no images are listed")
    listed = {(entry.subfolder, entry.name) for entry in entries}
    if len(listed) != len(entries):
        raise DataError(f"{folder / 'metadata'}: an image is listed twice")
    return entries


def without_empty(folder: Path, entries: list[Entry]) -> list[Entry]:
    """Return the entries of a dataset variant without that of the known empty image."""
    known = folder.joinpath(*EMPTY_IN_RELEASE[2:])
    if _is_called(folder, "/".join(EMPTY_IN_RELEASE[:2])) and known.is_file() and known.stat().st_size == 0:
        return [entry for entry in entries if (entry.subfolder, entry.name) != EMPTY_IN_RELEASE[2:]]
    return entries


def other_difficulties(entries: list[Entry], difficulty: Difficulty) -> list[str]:
    """List what images are by the contour length in their metadata, if it is not that of the given difficulty."""
    names = {str(length): name for name, length in CONTOUR_LENGTHS.items()}
    others = {entry.contour_length for entry in entries} - {str(CONTOUR_LENGTHS[difficulty])}
    known = [names[length] for length in names if length in others]
    return known + (["of another contour length"] if others - names.keys() else [])


def split_order(count: int) -> list[int]:
    """Return the order in which the sorted images are cut into training, validation and test."""
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()


def labels_digest(entries: list[Entry]) -> str:
    """Return the SHA-256 of the list of images and labels, in the order of the metadata."""
    return hashlib.sha256("\n".join(f"{e.subfolder}/{e.name} {e.label}" for e in entries).encode()).hexdigest()


def ids_digest(entries: list[Entry]) -> str:
    """Return the SHA-256 of which images these are, in their order."""
    return hashlib.sha256("\n".join(f"{entry.subfolder}/{entry.name}" for entry in entries).encode()).hexdigest()


def read_images(folder: Path, entries: list[Entry], size: int, *, progress: bool) -> Iterator[tuple[int, bytes]]:
    """Yield label and gray levels, row by row, of each image in the order of the entries.

    Raises:
        DataError: An image is missing or is not an 8-bit gray PNG of the right size.
    """
    with progress_bar(entries, title=folder.name, unit="img", shown=progress) as bar:
        for entry in bar:
            yield entry.label, read_png(folder / entry.subfolder / entry.name, size).tobytes()


def read_png(file: Path, size: int) -> Bytes:
    """Read an 8-bit gray PNG of `size` x `size` pixels; the header is checked before anything is decoded.

    Raises:
        DataError: It is anything else.
    """
    data = read_file(file, MAX_PNG)
    if not data:
        raise DataError(f"{file}: empty file")
    if len(data) < 33 or not data.startswith(_SIGNATURE):
        raise DataError(f"{file}: not a PNG of a sane size")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if (width, height) != (size, size):
        raise DataError(f"{file}: {width} x {height} pixels, expected {size} x {size}")
    if (depth, colour) != (8, 0):
        raise DataError(f"{file}: {depth} bits of colour type {colour}, expected 8-bit gray")
    if not data.endswith(_END):
        raise DataError(f"{file}: truncated, it does not end like a PNG")
    _check_chunks(data, file)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.array(image)
    except Exception as error:
        raise DataError(f"{file}: damaged PNG, {reason(error)}") from error
    if pixels.shape != (size, size) or pixels.dtype != np.uint8:
        raise DataError(f"{file}: damaged PNG, its pixels are not those of its header")
    return pixels


def _check_chunks(data: bytes, file: Path) -> None:
    """Check that one header and at least one piece of data are there, before anything is believed or decoded."""
    kinds, start = [], 8
    while start + 12 <= len(data):
        kinds.append(data[start + 4 : start + 8])
        start += 12 + int.from_bytes(data[start : start + 4], "big")
    if kinds.count(b"IHDR") != 1 or b"IDAT" not in kinds or start != len(data):
        raise DataError(f"{file}: damaged PNG, it has not one header, then data, then an end")


def _parse(file: Path) -> Iterator[Entry]:
    data = read_file(file, MAX_METADATA)
    rows = _array_rows(file, data) if data.startswith(b"\x93NUMPY") else _text_rows(file, data)
    for number, row in enumerate(rows, start=1):
        if number > MAX_IMAGES:
            raise DataError(f"{file}: more than {MAX_IMAGES:,} images")
        if len(row) != COLUMNS:
            raise DataError(f"{file}:{number}: expected {COLUMNS} fields, got {len(row)}")
        if not _SUBFOLDER.fullmatch(row[0]) or not _NAME.fullmatch(row[1]):
            raise DataError(f"{file}:{number}: {f'{row[0]}/{row[1]}'[:80]!r} is not the path of an image")
        if row[3] not in ("0", "1"):
            raise DataError(f"{file}:{number}: the label must be 0 or 1, got {row[3][:20]!r}")
        yield Entry(row[0], row[1], int(row[3]), row[5])


def _text_rows(file: Path, data: bytes) -> Iterator[list[str]]:
    body = data.rstrip(b"\r\n")
    if not body.isascii():
        raise DataError(f"{file}: neither text nor a NumPy array")
    for line in io.BytesIO(body or b"\n"):
        yield line.decode("ascii").split(maxsplit=COLUMNS)


def _array_rows(file: Path, data: bytes) -> Iterator[list[str]]:
    """Read a two-dimensional array of strings; its declared size is compared with the bytes that are there."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise DataError(f"{file}: an unknown version of NumPy's format")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TokenError) as error:
        raise DataError(f"{file}: a damaged NumPy array") from error
    body = data[stream.tell() :]
    if dtype.kind not in "US" or dtype.itemsize == 0 or len(shape) != 2 or by_columns or shape[1] > 2 * COLUMNS:
        raise DataError(f"{file}: expected rows of strings, got {dtype} of shape {shape}")
    if shape[0] * shape[1] * dtype.itemsize != len(body):
        raise DataError(f"{file}: {len(body)} bytes do not hold {shape[0]} x {shape[1]} strings")
    rows = np.frombuffer(body, dtype=dtype).reshape(shape)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        yield from rows[start : start + ROWS_AT_A_TIME].astype(str).tolist()
