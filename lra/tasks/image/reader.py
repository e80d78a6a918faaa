# SPDX-License-Identifier: Apache-2.0
"""Reader of the CIFAR-10 archive, python or binary version, as gray images."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lra.data.archives import stream_members
from lra.data.parquet import PARQUET_SPLITS, of_split, read_rows
from lra.errors import DataError
from lra.tasks.image.pickle_reader import COLUMNS, read_pickle
from lra.terminal import progress_bar

VERSION = 1
"""Raised when the same archive gives other arrays."""
FILE_LIMIT = 64 << 20
ARCHIVE_LIMIT = 512 << 20
MEMBER_LIMIT = 1 << 12

Bytes = npt.NDArray[np.uint8]
GrayLevels = Literal["nearest", "tensorflow"]

_NAME = re.compile(r"(?:\./)?cifar-10-batches-(py|bin)/(?:data_batch_([1-5])|test_batch)(\.bin)?")
SIDE = 32
_TEST = 6
"""The test file comes after the five of the training images."""


def read_images(
    source: Path, files: Sequence[Path], levels: GrayLevels, *, progress: bool
) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Return gray images (count, 1024) and labels (count,) of the training files, in order, then of the test file.

    Args:
        source: The archive, or a folder of parquet files,
        files: and what `lra.data.parquet.source_files` says of it.
        levels: How colours become gray levels, see `to_gray`.
        progress: Whether to show a bar, when there is a terminal.

    Raises:
        DataError: The archive is damaged, incomplete or another one.
    """
    if files != [source]:
        train_rows, test_rows = (_read_parquet(of_split(files, split), levels) for split in PARQUET_SPLITS)
        return (*train_rows, *test_rows)
    found: dict[int, tuple[Bytes, Bytes]] = {}
    with progress_bar(title=source.name, total=_TEST, unit=" files", shown=progress) as bar:
        for member in stream_members(source, _limit, total_limit=ARCHIVE_LIMIT, member_limit=MEMBER_LIMIT):
            match = _NAME.fullmatch(member.name)
            assert match is not None  # only such members are wanted
            dataset, number = match[1], int(match[2] or _TEST)
            if number in found:
                raise DataError(f"{member.place}: these images were read from another member already")
            if dataset == "py":
                batch = b"testing batch 1 of 1" if number == _TEST else b"training batch %d of 5" % number
                images, labels = read_pickle(member.read(), member.place, batch)
            else:
                images, labels = _read_binary(member.read(), member.place)
            found[number] = to_gray(images, levels), labels
            if any(np.array_equal(found[number][0], other) for key, (other, _) in found.items() if key != number):
                raise DataError(f"{member.place}: the same images as in another member")
            bar.update()
    absent = [number for number in range(1, _TEST + 1) if number not in found]
    if absent:
        names = ", ".join("test_batch" if number == _TEST else f"data_batch_{number}" for number in absent)
        raise DataError(f"{source}: {names} not found; is this the CIFAR-10 archive?")
    train = [found[number] for number in range(1, _TEST)]
    return (
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        *found[_TEST],
    )


def to_gray(images: Bytes, levels: GrayLevels = "tensorflow") -> Bytes:
    """Turn (count, 3072) bytes, plane after plane, into gray levels (count, 1024).

    Args:
        images: The colours.
        levels: `nearest` is 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), computed in whole numbers and rounded
            to the nearest, halves up: (299 red + 587 green + 114 blue + 500) // 1000. `tensorflow` is what
            `tf.image.rgb_to_grayscale` makes of bytes, through which the original benchmark reads its images: shares of
            255 in float32, weights 0.2989, 0.5870 and 0.1140 in this order, times 255.5, cut to whole numbers. It
            equals TensorFlow 2.21.0 for each of the 16,777,216 colours, and `nearest` differs from it in a quarter of
            them, by one level.
    """
    if levels == "nearest":
        red, green, blue = np.split(images.astype(np.uint32), 3, axis=1)
        return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)
    single = np.float32
    red_share, green_share, blue_share = np.split(images.astype(single) * single(1 / 255), 3, axis=1)
    level = (red_share * single(0.2989) + green_share * single(0.5870)) + blue_share * single(0.1140)
    return (level * single(255.5)).astype(np.uint8)


def halve(images: Bytes) -> Bytes:
    """Turn gray images (count, 1024) into (count, 256), half as high and wide.

    A pixel is the mean of four levels, rounded to the nearest, halves up: (a + b + c + d + 2) // 4.
    """
    squares = images.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).astype(np.uint16)  # (count, row, 2, column, 2)
    return ((squares.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8).reshape(len(images), -1)


def _read_parquet(files: Sequence[Path], levels: GrayLevels) -> tuple[Bytes, Bytes]:
    """Read rows of a PNG image and its label."""
    images, labels = [], []
    for file in files:
        for number, (image, label) in enumerate(read_rows(file, ("img", "label"))):
            if label not in range(10):
                raise DataError(f"{file}: row {number}: a label is outside 0 to 9")
            images.append(_read_png(image["bytes"] if isinstance(image, dict) else b"", f"{file}: row {number}"))
            labels.append(label)
    if not images:
        raise DataError(f"{files[0]}: no images")
    return to_gray(np.stack(images), levels), np.array(labels, dtype=np.uint8)


def _read_png(data: bytes, place: str) -> Bytes:
    """Return the pixels of a colour image, plane after plane: (3072,)."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.verify()  # the checksums, which decoding leaves out; afterwards it has to be opened again
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            stored = picture.tile[0][3]  # as it is in the file; 16 bits a colour would be cut to 8
            if (picture.size, picture.mode, stored) == ((SIDE, SIDE), "RGB", "RGB"):
                return np.asarray(picture).transpose(2, 0, 1).reshape(-1)
    except Exception as error:
        raise DataError(f"{place}: a damaged image, or none") from error
    raise DataError(f"{place}: not an RGB image of {SIDE} x {SIDE} pixels, of 8 bits per colour")


def _read_binary(data: bytes, place: str) -> tuple[Bytes, Bytes]:
    """Read rows of one label byte and 3072 bytes of the image."""
    if not data or len(data) % (1 + COLUMNS):
        raise DataError(f"{place}: {len(data):,} bytes are not a number of rows of {1 + COLUMNS:,}")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + COLUMNS)
    if rows[:, 0].max() > 9:
        raise DataError(f"{place}: a label is outside 0 to 9")
    return rows[:, 1:], rows[:, 0]


def _limit(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return FILE_LIMIT if match is not None and (match[1] == "bin") == (match[3] is not None) else None
