"""Stamps: how a segment or a marker looks on the pixel grid, drawn once at a finer scale and shrunk.

All coordinates of a Pathfinder image are whole pixels, so a segment is one of a few hundred pictures at one of the
pixels. Drawing and collision tests then are table look-ups. Stamps are square, of odd side, (rows, columns), uint8.
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
    """Round up to whole pixels, blind to rounding errors of sines."""
    return np.ceil(np.round(vector, 9)).astype(np.int64)


def segment_stamps(angle: float, length: int, thickness: float, margin: int) -> tuple[Bytes, Bytes]:
    """Draw a segment that starts in the centre of the stamp.

    Args:
        angle: Radians.
        length: Pixels.
        thickness: Pixels, a multiple of half a pixel.
        margin: Pixels around it that other segments must leave free.

    Returns:
        The stroke, and the area that it claims: the stroke grown by the margin.
    """
    reach = length + math.ceil(thickness) + margin
    centre = reach * SCALE
    end = whole_up(length * SCALE * direction(angle))
    fine = np.zeros((2 * centre + 1, 2 * centre + 1), dtype=np.uint8)
    _draw_line(fine, centre, end, round(thickness * SCALE))
    claimed = dilate(fine, margin * SCALE)
    return shrink(fine, 2 * reach + 1), shrink(claimed, 2 * reach + 1)


def marker_stamp(radius: float) -> Bytes:
    """Draw a filled circle; the stamp is wide enough for what shrinking leaves around it."""
    reach = math.ceil(radius) + LANCZOS_LOBES
    side = 2 * reach + 1
    offset = np.arange(side * SCALE) - reach * SCALE
    inside = offset[:, None] ** 2 + offset**2 <= (radius * SCALE) ** 2
    return shrink(np.where(inside, np.uint8(255), np.uint8(0)), side)


def dilate(image: Bytes, radius: int) -> Bytes:
    """Return the largest value within `radius` of each pixel: (rows, columns)."""
    rows, columns = image.shape
    padded = np.pad(image, radius)
    grown = np.zeros_like(image)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                shifted = padded[radius + dy : radius + dy + rows, radius + dx : radius + dx + columns]
                np.maximum(grown, shifted, out=grown)
    return grown


def shrink(image: Bytes, side: int) -> Bytes:
    """Resample a square image to `side` pixels with the Lanczos kernel of three lobes, rounding after each axis.

    The kernel is widened by the scale and its weights are normalised, as common image libraries do. Values that ring
    below zero are cut; those above stay, which leaves a faint haze around strokes.
    """
    scale = len(image) / side
    centres = (np.arange(side) + 0.5) * scale
    x = (np.arange(len(image)) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(x) < LANCZOS_LOBES, np.sinc(x) * np.sinc(x / LANCZOS_LOBES), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = _to_bytes(image.astype(np.float64) @ weights.T)
    return _to_bytes(weights @ rows.astype(np.float64))


def _to_bytes(values: npt.NDArray[np.float64]) -> Bytes:
    # nine decimals first, so that a tie does not fall differently on another machine
    return np.floor(np.clip(np.round(values, 9), 0, 255) + 0.5).astype(np.uint8)


def _draw_line(image: Bytes, centre: int, end: npt.NDArray[np.int64], width: int) -> None:
    """Light the pixels of a line from the centre by `end`; one pixel wide, or a rectangle of the given width."""
    span = int(np.abs(end).max())
    along = np.arange(span + 1)
    if width == 1:
        path = np.floor(np.round(along[:, None] * end / span, 9) + 0.5).astype(np.int64) + centre
        image[path[:, 0], path[:, 1]] = 255
        return
    y, x = np.indices(image.shape) - centre
    norm = math.hypot(*end)
    forward = (y * end[0] + x * end[1]) / norm
    aside = (y * end[1] - x * end[0]) / norm
    inside = (forward >= -1e-9) & (forward <= norm + 1e-9) & (aside > 1e-9 - width / 2) & (aside <= width / 2 + 1e-9)
    image[inside] = 255
