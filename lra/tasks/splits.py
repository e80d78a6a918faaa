# SPDX-License-Identifier: Apache-2.0
"""What the tasks that are read from files share: bytes into splits, held-out examples, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from lra.data.split import Split, SplitName
from lra.seeding import numpy_generator
from lra.tasks.base import TaskOptions, in_proportion

Count = Annotated[int, Field(ge=1)]
HELD_OUT = 0.1
"""Share of the training examples that becomes the validation split of tasks without one of their own."""


class ReadOptions(TaskOptions):
    """Options of every task that is read from files."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of held-out examples and of samples, not of a run."""
    max_train: Count | None = None
    """Keep a sample of at most this many training examples; None keeps all."""
    max_validation: Count | None = None
    max_test: Count | None = None

    @property
    def limits(self) -> dict[SplitName, int | None]:
        """Most examples of each split."""
        return {"train": self.max_train, "validation": self.max_validation, "test": self.max_test}

    def sample_phrase(self) -> list[str]:
        """Say which splits are samples, for the dataset variant."""
        parts = [f"{name} {limit:,}" for name, limit in self.limits.items() if limit is not None]
        return [f"at most {', '.join(parts)}"] if parts else []


def sample_limits(full: Mapping[SplitName, int], train: int) -> dict[str, int]:
    """Return the option values that keep `train` training examples and a like share of the other splits.

    Raises:
        UsageError: There are not more than `train` to begin with.
    """
    return {f"max_{name}": count for name, count in in_proportion(full, train).items()}


def byte_split(documents: Sequence[bytes], labels: Sequence[int], *, per_example: int = 1) -> Split:
    """Join documents to a split whose ids are byte + 1.

    Args:
        documents: `per_example` documents of each example, side by side.
        labels: One per example.
        per_example: 1, or 2 for pairs.
    """
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    assert len(documents) == per_example * len(labels)
    return Split(
        tokens=np.frombuffer(b"".join(documents), dtype=np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.asarray(labels, dtype=np.uint8),
        token_offset=1,
    )


def held_out_count(total: int) -> int:
    """Return how many of `total` training examples are held out."""
    return max(1, round(HELD_OUT * total))


def hold_out(total: int, count: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut the numbers 0 to `total - 1` into those that stay and `count` drawn ones, both ascending."""
    order = numpy_generator(seed, "held out").permutation(total)
    return np.sort(order[count:]), np.sort(order[:count])


def sample(size: int, limit: int | None, seed: int, name: SplitName) -> npt.NDArray[np.int64]:
    """Return at most `limit` of the numbers 0 to `size - 1`, drawn and ascending."""
    if limit is None or limit >= size:
        return np.arange(size)
    return np.sort(numpy_generator(seed, "sample", name).permutation(size)[:limit])
