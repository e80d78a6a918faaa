# SPDX-License-Identifier: Apache-2.0
"""Sprites: how a segment or a marker looks on the pixel grid, drawn once at a finer scale and shrunk.

All coordinates of a Pathfinder image are whole pixels, so a segment is one of a few hundred sprites at one of the
pixels. Drawing and collision tests are then table look-ups. Sprites are square, of odd side, (rows, columns), uint8.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

SCALE = 2
"""Fine pixels per pixel (`antialias_scale`)."""
LANCZOS_LOBES = 3


def direction(angle: float) -> npt.NDArray[np.float64]:
    """Return the unit vector (rows, columns) of an angle in radians, counted from the column axis."""
    return np.array([math.sin(angle), math.cos(angle)])


def whole_up(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Round up to whole pixels, after rounding errors of sines and cosines are removed."""
    return np.ceil(np.round(vector, 9)).astype(np.int64)


def segment_sprites(angle: float, length: int, thickness: float, margin: int) -> tuple[Bytes, Bytes]:
    """Draw a segment that starts in the centre of the sprite.

    Args:
        angle: Radians.
        length: Pixels.
        thickness: Pixels, a multiple of half a pixel.
        margin: Pixels around it that other segments must leave free.

    Returns:
        The stroke, and the area that it occupies: the stroke grown by the margin.
    """
    reach = length + math.ceil(thickness) + margin  # pixels from the centre to the edge of the sprite
    centre = reach * SCALE
    end = whole_up(length * SCALE * direction(angle))
    # An odd side, so that the segment starts in the middle of a fine pixel.
    fine = np.zeros((2 * centre + 1, 2 * centre + 1), dtype=np.uint8)
    _draw_line(fine, centre, end, round(thickness * SCALE))
    occupied = dilate(fine, margin * SCALE)
    return shrink(fine, 2 * reach + 1), shrink(occupied, 2 * reach + 1)


def marker_sprite(radius: float) -> Bytes:
    """Draw a filled circle; the sprite is wide enough for what shrinking leaves around it."""
    reach = math.ceil(radius) + LANCZOS_LOBES
    side = 2 * reach + 1
    offset = np.arange(side * SCALE) - reach * SCALE  # (fine pixels,), from the centre
    inside = offset[:, None] ** 2 + offset**2 <= (radius * SCALE) ** 2
    return shrink(np.where(inside, np.uint8(255), np.uint8(0)), side)


def dilate(image: Bytes, radius: int) -> Bytes:
    """Return the largest value within `radius` of each pixel: (rows, columns)."""
    rows, columns = image.shape
    padded = np.pad(image, radius)
    # One shifted copy of the image for each pixel of the disc: few, since the radius is a handful of fine pixels.
    grown = np.zeros_like(image)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                shifted = padded[radius + dy : radius + dy + rows, radius + dx : radius + dx + columns]
                np.maximum(grown, shifted, out=grown)
    return grown


def shrink(image: Bytes, side: int) -> Bytes:
    """Resample a square image to `side` pixels with the Lanczos kernel of three lobes, rounding after each axis.

    The kernel is widened by the scale and its weights are normalised, as common image libraries do. The kernel is
    negative in places, so values ring around an edge: those below zero are cut, those above stay as a faint haze.
    """
    scale = len(image) / side
    centres = (np.arange(side) + 0.5) * scale  # (side,), of the new pixels, in old ones
    x = (np.arange(len(image)) + 0.5 - centres[:, None]) / scale  # (side, old side), distances in new pixels
    weights = np.where(np.abs(x) < LANCZOS_LOBES, np.sinc(x) * np.sinc(x / LANCZOS_LOBES), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    # The kernel is separable: along each row, then along each column, rounded to bytes in between as Pillow does.
    rows = _to_bytes(image.astype(np.float64) @ weights.T)  # (old side, side)
    return _to_bytes(weights @ rows.astype(np.float64))


def _to_bytes(values: npt.NDArray[np.float64]) -> Bytes:
    # Nine decimals first, so that a tie is rounded the same way on every machine.
    return np.floor(np.clip(np.round(values, 9), 0, 255) + 0.5).astype(np.uint8)


def _draw_line(image: Bytes, centre: int, end: npt.NDArray[np.int64], width: int) -> None:
    """Set the pixels of a line from the centre to `centre + end`: one pixel wide, or a rectangle of the given width."""
    span = int(np.abs(end).max())
    along = np.arange(span + 1)
    if width == 1:
        # One pixel per step along the longer axis, (span + 1, 2), each coordinate rounded to the nearest.
        path = np.floor(np.round(along[:, None] * end / span, 9) + 0.5).astype(np.int64) + centre
        image[path[:, 0], path[:, 1]] = 255
        return
    y, x = np.indices(image.shape) - centre
    norm = math.hypot(*end)
    forward = (y * end[0] + x * end[1]) / norm  # (side, side), distance along the line
    aside = (y * end[1] - x * end[0]) / norm  # (side, side), signed distance from it
    # The tolerance makes ties of exact half pixels independent of rounding; one of the two long edges is excluded, so
    # that a rectangle of width w is w pixels wide.
    inside = (forward >= -1e-9) & (forward <= norm + 1e-9) & (aside > 1e-9 - width / 2) & (aside <= width / 2 + 1e-9)
    image[inside] = 255
