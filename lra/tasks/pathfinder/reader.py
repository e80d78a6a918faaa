# SPDX-License-Identifier: Apache-2.0
"""Reader of the official Pathfinder folders: PNG images, and metadata with one line for each.

Metadata files are text in the release and NumPy arrays of strings when they come from the original generator; both are
read, without pickle.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from PIL import Image

from lra.errors import DataError
from lra.tasks.pathfinder.generator import Difficulty
from lra.tasks.pathfinder.sprites import Bytes
from lra.terminal import progress_bar

VERSION = 1
"""Raised when the same folder gives other arrays."""
FOLDERS: dict[Difficulty, str] = {
    "easy": "curv_baseline",
    "medium": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
PLACES = ("lra_release/lra_release", "lra_release", ".")
"""Where a dataset can be below the given folder. The archive holds two copies of pathfinder128; the inner one
comes first here, since convolutional networks were reported not to learn the outer one."""
EMPTY_IN_RELEASE = ("pathfinder32", "curv_baseline", "imgs/0", "sample_172.png")
"""The one image of the release that is an empty file."""
COLUMNS = 11
SPLIT_SEED = 42
"""Seed of the permutation by which state-space papers split the sorted images."""
MAX_METADATA = 1 << 26
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


def find_dataset(source: Path, size: int, difficulty: Difficulty) -> Path:
    """Return the folder of a dataset variant inside an unpacked release, or the given folder if it is that.

    Raises:
        DataError: There is none.
    """
    below = Path(f"pathfinder{size}") / FOLDERS[difficulty]
    for folder in (source, source / FOLDERS[difficulty], *(source / place / below for place in PLACES)):
        if (folder / "metadata").is_dir() and folder.resolve().parts[-2:] == below.parts:
            return folder
    raise DataError(f"pathfinder: {below}/metadata not found in {source}\nunpack lra_release.gz of the benchmark there")


def read_entries(folder: Path) -> list[Entry]:
    """Read all metadata of a dataset variant, files in the order of their numbers; the known empty image is left out.

    Raises:
        DataError: With the file and the line, at the first that is not as it must be.
    """
    try:
        files = sorted((folder / "metadata").glob("*.npy"), key=lambda file: (len(file.stem), file.stem))
        entries = [entry for file in files for entry in _parse(file)]
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error
    if not entries:
        raise DataError(f"{folder / 'metadata'}: no images are listed")
    listed = {(entry.subfolder, entry.name) for entry in entries}
    if len(listed) != len(entries):
        raise DataError(f"{folder / 'metadata'}: an image is listed twice")
    if folder.resolve().parts[-2:] == EMPTY_IN_RELEASE[:2]:
        known = folder.joinpath(*EMPTY_IN_RELEASE[2:])
        if known.is_file() and known.stat().st_size == 0:
            entries = [entry for entry in entries if (entry.subfolder, entry.name) != EMPTY_IN_RELEASE[2:]]
    return entries


def split_order(count: int) -> list[int]:
    """Return the order in which the sorted images are cut into training, validation and test."""
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()


def ids_digest(entries: list[Entry]) -> str:
    """Return the SHA-256 of which images these are, in their order."""
    return hashlib.sha256("\n".join(f"{entry.subfolder}/{entry.name}" for entry in entries).encode()).hexdigest()


def copy_images(folder: Path, entries: list[Entry], size: int, target: Path, *, progress: bool) -> Bytes:
    """Decode images, in the order of the entries, into one file; return it mapped, (images, size, size).

    Raises:
        DataError: An image is missing or is not an 8-bit gray PNG of the right size, or the disk refuses.
    """
    with progress_bar(entries, title=folder.name, unit="img", shown=progress) as bar:
        try:
            with target.open("wb") as file:
                for entry in bar:
                    file.write(read_png(folder / entry.subfolder / entry.name, size).tobytes())
        except OSError as error:
            raise DataError(f"{error.filename or target}: {error.strerror or error}") from error
    return np.memmap(target, dtype=np.uint8, mode="r", shape=(len(entries), size, size))


def read_png(file: Path, size: int) -> Bytes:
    """Read an 8-bit gray PNG of `size` x `size` pixels; the header is checked before anything is decoded.

    Raises:
        DataError: It is anything else.
        OSError: The file cannot be read.
    """
    with file.open("rb") as handle:
        data = handle.read(MAX_PNG + 1)
    if not data:
        raise DataError(f"{file}: empty file")
    if len(data) > MAX_PNG or len(data) < 33 or not data.startswith(_SIGNATURE):
        raise DataError(f"{file}: not a PNG of a sane size")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if (width, height) != (size, size):
        raise DataError(f"{file}: {width} x {height} pixels, expected {size} x {size}")
    if (depth, colour) != (8, 0):
        raise DataError(f"{file}: {depth} bits of colour type {colour}, expected 8-bit gray")
    if not data.endswith(_END):
        raise DataError(f"{file}: truncated, it does not end like a PNG")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise DataError(f"{file}: damaged PNG, {str(error).splitlines()[0]}") from error
    if pixels.shape != (size, size) or pixels.dtype != np.uint8:
        raise DataError(f"{file}: damaged PNG, its pixels are not those of its header")
    return pixels


def _parse(file: Path) -> Iterator[Entry]:
    with file.open("rb") as handle:
        data = handle.read(MAX_METADATA + 1)
    if len(data) > MAX_METADATA:
        raise DataError(f"{file}: larger than {MAX_METADATA} bytes")
    rows = _array_rows(file, data) if data.startswith(b"\x93NUMPY") else _text_rows(file, data)
    for number, row in enumerate(rows, start=1):
        if len(row) != COLUMNS:
            raise DataError(f"{file}:{number}: expected {COLUMNS} fields, got {len(row)}")
        if not _SUBFOLDER.fullmatch(row[0]) or not _NAME.fullmatch(row[1]):
            raise DataError(f"{file}:{number}: {f'{row[0]}/{row[1]}'[:80]!r} is not the path of an image")
        if row[3] not in ("0", "1"):
            raise DataError(f"{file}:{number}: the label must be 0 or 1, got {row[3][:20]!r}")
        yield Entry(row[0], row[1], int(row[3]))


def _text_rows(file: Path, data: bytes) -> list[list[str]]:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: neither text nor a NumPy array") from error
    return [line.split() for line in text.rstrip("\r\n").split("\n")]


def _array_rows(file: Path, data: bytes) -> list[list[str]]:
    """Read a two-dimensional array of strings; its declared size is compared with the bytes that are there."""
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise DataError(f"{file}: an unknown version of NumPy's format")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TokenError) as error:
        raise DataError(f"{file}: a damaged NumPy array") from error
    body = data[stream.tell() :]
    if dtype.kind not in "US" or dtype.itemsize == 0 or len(shape) != 2 or by_columns:
        raise DataError(f"{file}: expected rows of strings, got {dtype} of shape {shape}")
    if shape[0] * shape[1] * dtype.itemsize != len(body):
        raise DataError(f"{file}: {len(body)} bytes do not hold {shape[0]} x {shape[1]} strings")
    try:
        return np.frombuffer(body, dtype=dtype).reshape(shape).astype(str).tolist()
    except (UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{file}: strings that are not text") from error
