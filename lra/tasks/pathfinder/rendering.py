# SPDX-License-Identifier: Apache-2.0
"""From curves to pixels: strokes at their contrast, discs, and the rescaling of each image to the full range."""

from __future__ import annotations

import numpy as np

from lra.tasks.pathfinder.curves import Flags
from lra.tasks.pathfinder.lookup_tables import Ints, Tables, pixels
from lra.tasks.pathfinder.sprites import Bytes, marker_sprite


class Canvas:
    """Images being drawn, with the border of the tables; where strokes overlap, the brighter one shows."""

    def __init__(self, tables: Tables, images: int) -> None:
        self.tables = tables
        self._canvas = np.zeros((images, tables.side**2), dtype=np.float32)  # (images, side x side), 0 to the contrast

    def segments(self, origins: Ints, directions: Ints, drawn: Flags, contrast: float) -> None:
        """Draw segments: origins, directions and whether to draw them are (images, segments)."""
        # One segment of each image at a time: two of the same image may share pixels, of which one write would be lost.
        for index in range(origins.shape[1]):
            rows = np.flatnonzero(drawn[:, index])
            direction = directions[rows, index]
            stroke = self.tables.stroke.take(direction, axis=1)  # (stroke pixels, rows), shifts from the origin
            value = self.tables.stroke_value.take(direction, axis=1)  # (stroke pixels, rows), brightness
            self._draw(rows, origins[rows, index], stroke, value, contrast)

    def discs(self, origins: Ints, radius: float) -> None:
        """Draw one filled circle in each image: (images,)."""
        sprite = marker_sprite(radius)
        stroke, value = pixels(sprite > 0, self.tables.side), sprite[sprite > 0].astype(np.int64)  # (stroke pixels,)
        self._draw(np.arange(len(origins)), origins, stroke[:, None], value[:, None], 1.0)

    def finish(self, size: int) -> Bytes:
        """Cut the images out of their borders and stretch each from its darkest to its brightest pixel."""
        tables = self.tables
        inner = slice(tables.border, tables.border + size)
        images = self._canvas.reshape(-1, tables.side, tables.side)[:, inner, inner]
        # Targets, distractors and discs have contrasts above and below 1: the brightest of an image becomes 255.
        low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
        return ((images - low) * (np.float32(255) / (high - low)) + np.float32(0.5)).astype(np.uint8)

    def _draw(self, rows: Ints, origins: Ints, stroke: Ints, value: Ints, contrast: float) -> None:
        flat = self._canvas.reshape(-1)
        where = stroke + (rows * self._canvas.shape[1] + origins)  # (stroke pixels, rows), flat over all images
        flat[where] = np.maximum(flat[where], value * np.float32(contrast / 255))
