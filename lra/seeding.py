# SPDX-License-Identifier: Apache-2.0
"""Random streams as pure functions of (seed, purpose, step), so that a resumed run needs no saved generator."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose; different purposes give unrelated streams."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_all(seed: int, *purpose: str | int) -> None:
    """Seed torch's generators, on every device, and those of Python and NumPy that models of others may draw from."""
    import torch  # late, because the preparation of data uses this module without torch

    value = derive_seed(seed, *purpose)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - ours are `numpy_generator`
    if torch.accelerator.is_available():
        torch.manual_seed(value)
    else:  # the same for a processor; `manual_seed` also notes a stack for a GPU that may come, which takes 2 ms
        torch.default_generator.manual_seed(value)


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a NumPy generator for one purpose."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *purpose)))
