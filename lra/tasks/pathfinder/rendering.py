"""From curves to pixels: strokes at their contrast, discs, and the rescaling of each image to the full range."""

from __future__ import annotations

import numpy as np

from lra.tasks.pathfinder.curves import Flags
from lra.tasks.pathfinder.lookup_tables import Ints, Tables, pixels
from lra.tasks.pathfinder.sprites import Bytes, marker_stamp


class Canvas:
    """Images being drawn, in the frame of the tables; where things overlap the brighter one shows."""

    def __init__(self, tables: Tables, images: int) -> None:
        self.tables = tables
        self._canvas = np.zeros((images, tables.side**2), dtype=np.float32)

    def segments(self, anchors: Ints, directions: Ints, drawn: Flags, contrast: float) -> None:
        """Draw segments: anchors, directions and whether to draw them are (images, segments)."""
        for index in range(anchors.shape[1]):
            rows = np.flatnonzero(drawn[:, index])
            direction = directions[rows, index]
            ink, value = self.tables.ink.take(direction, axis=1), self.tables.ink_value.take(direction, axis=1)
            self._draw(rows, anchors[rows, index], ink, value, contrast)

    def discs(self, anchors: Ints, radius: float) -> None:
        """Draw one filled circle in each image: (images,)."""
        stamp = marker_stamp(radius)
        ink, value = pixels(stamp > 0, self.tables.side), stamp[stamp > 0].astype(np.int64)
        self._draw(np.arange(len(anchors)), anchors, ink[:, None], value[:, None], 1.0)

    def finish(self, size: int) -> Bytes:
        """Cut the images out of their frames and stretch each from its darkest to its brightest pixel."""
        tables = self.tables
        inner = slice(tables.frame, tables.frame + size)
        images = self._canvas.reshape(-1, tables.side, tables.side)[:, inner, inner]
        low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
        return ((images - low) * (np.float32(255) / (high - low)) + np.float32(0.5)).astype(np.uint8)

    def _draw(self, rows: Ints, anchors: Ints, ink: Ints, value: Ints, contrast: float) -> None:
        flat = self._canvas.reshape(-1)
        where = ink + (rows * self._canvas.shape[1] + anchors)
        flat[where] = np.maximum(flat[where], value * np.float32(contrast / 255))
