# SPDX-License-Identifier: Apache-2.0
"""What the places of the two discs alone say about the label of a Pathfinder image: a baseline without the curves.

The first curve starts near the centre, the second one at a fixed distance from that start, and where a curve ends
depends on where it starts. So two places are evidence, in the images of the original generator as well.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lra.seeding import numpy_generator
from lra.tasks.pathfinder.sprites import Bytes, marker_sprite

Floats = npt.NDArray[np.float32]

NUM_FEATURES = 500
_LEVEL = 0.9
"""Share of a disc's own brightness that counts as inside it."""


def find_discs(images: Bytes, radius: float) -> Floats:
    """Find the centres of the two discs of each image, the one nearer to the centre of the image first.

    A disc is the only shape that is filled: no stroke is as wide. So its centre is where the darkest pixel of a disc
    around it is brightest.

    Args:
        images: (images, size, size).
        radius: Of a disc, in pixels.

    Returns:
        (images, 2, 2): rows and columns, from the centre of the image, in halves of its side.
    """
    count, size = images.shape[:2]
    sprite = marker_sprite(radius)
    reach = len(sprite) // 2
    offsets = [(int(y) - reach, int(x) - reach) for y, x in np.argwhere(sprite > _LEVEL * 255)]
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)))
    darkest = np.full_like(images, 255)
    for dy, dx in offsets:
        np.minimum(darkest, padded[:, reach + dy : reach + dy + size, reach + dx : reach + dx + size], out=darkest)
    found = np.zeros((count, 2), dtype=np.int64)
    everyone, axis = np.arange(count), np.arange(size)
    for disc in range(2):
        found[:, disc] = darkest.reshape(count, -1).argmax(axis=1)
        y, x = np.divmod(found[:, disc], size)
        # Nothing within a radius of a disc that was found is another one.
        near = (abs(axis - y[:, None]) <= radius)[:, :, None] & (abs(axis - x[:, None]) <= radius)[:, None, :]
        darkest[near] = 0
    half = (size - 1) / 2
    places = (np.stack(np.divmod(found, size), axis=-1) - half) / half  # (images, 2, 2)
    order = np.argsort(np.square(places).sum(axis=2), axis=1, kind="stable")
    return places[everyone[:, None], order].astype(np.float32)


def place_features(places: Floats) -> Floats:
    """Turn places (images, 2, 2) into (images, NUM_FEATURES) fixed random features that are no longer linear."""
    rng = numpy_generator(0, "discs only")
    weight, shift = rng.standard_normal((4, NUM_FEATURES)) / 0.4, rng.standard_normal(NUM_FEATURES)
    return np.maximum(places.reshape(-1, 4) @ weight.astype(np.float32) + shift.astype(np.float32), 0.0)
