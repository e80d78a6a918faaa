# SPDX-License-Identifier: Apache-2.0
"""Looking at images: shaded text for a terminal, and a contact sheet as a PNG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lra.data.dataset import PreparedData
from lra.data.split import SplitName
from lra.errors import DataError, UsageError, refusals_as

SHADES = " .:-=+*#%@"
TEXT_COLUMNS = 64
"""A wider image is shrunk to this for text."""
GAP = 4
"""Pixels between the images of a sheet."""
SHEET_PIXELS = 128
"""Smaller images are enlarged to about this size on a sheet."""


def shade(image: npt.NDArray[np.uint8]) -> str:
    """Draw an image (rows, columns) with characters, two to a pixel; larger ones by the maximum of each block."""
    block = -(-len(image) // TEXT_COLUMNS)
    size = len(image) // block
    small = image[: size * block, : size * block].reshape(size, block, size, block).max(axis=(1, 3)).astype(np.int64)
    lines = ["".join(SHADES[level] * 2 for level in row) for row in small * len(SHADES) // 256]
    return "\n".join(line.rstrip() for line in lines)


def contact_sheet(data: PreparedData, split: SplitName, indices: Sequence[int], path: Path) -> None:
    """Write a PNG with some images side by side; those with label 1 have a white frame, the others a gray one.

    Raises:
        UsageError: The examples are not square images, the split has no such example, or none is asked for.
        DataError: The file cannot be written.
    """
    from PIL import Image

    examples = data.split(split)
    outside = [index for index in indices if not 0 <= index < len(examples)]
    if outside or not indices:
        raise UsageError(f"{split} has examples 0 to {len(examples) - 1}, not {outside[0] if outside else 'none'}")
    record = data.manifest.splits[split]
    size = math.isqrt(record.max_length)
    if record.min_length != record.max_length or size**2 != record.max_length:
        raise UsageError(f"{data.manifest.task} has no images for a contact sheet")
    zoom = max(1, SHEET_PIXELS // size)
    tile = size * zoom + 2 * GAP
    columns = math.ceil(math.sqrt(len(indices)))
    sheet = np.zeros((math.ceil(len(indices) / columns) * tile, columns * tile), dtype=np.uint8)
    for position, index in enumerate(indices):
        top, left = tile * (position // columns), tile * (position % columns)
        sheet[top + 1 : top + tile - 1, left + 1 : left + tile - 1] = 255 if examples.labels[index] == 1 else 96
        image = examples.tokens_of(index).reshape(size, size).repeat(zoom, axis=0).repeat(zoom, axis=1)
        sheet[top + GAP : top + tile - GAP, left + GAP : left + tile - GAP] = image
    with refusals_as(DataError, f"cannot write {path}"):
        Image.fromarray(sheet).save(path, format="PNG")
