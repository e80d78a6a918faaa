# SPDX-License-Identifier: Apache-2.0
"""Batches as pure functions of (seed, step): which examples, in what order, padded to what length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lra.data.augment import Augmentation
from lra.data.split import Split
from lra.seeding import numpy_generator

POOL_BATCHES = 64
"""Batches that are sorted by length together; more would bucket better and shuffle worse."""
LENGTH_MULTIPLE = 8
"""Padded lengths are rounded up to a multiple of this, for which kernels are faster."""
MOST_LENGTHS = 16
"""Padded lengths at most, where code is compiled for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Padded examples on a device."""

    tokens: Tensor
    """(batch, length), or (batch, 2, length) for pairs of documents; ids: zero where padded; uint8, or int16 where the
    data has a token offset."""
    mask: Tensor | None
    """Shaped like `tokens`, bool, True = real token; None when nothing is padded."""
    labels: Tensor
    """(batch,), int64."""
    lengths: np.ndarray
    """(batch,), real tokens of each example, on the host."""

    @property
    def num_tokens(self) -> int:
        """Real tokens of the batch, known without asking the device."""
        return int(self.lengths.sum())

    def parts(self, count: int) -> Iterator[Batch]:
        """Yield at most `count` parts of nearly equal size, one after the other."""
        bounds = np.linspace(0, len(self.labels), min(count, len(self.labels)) + 1).astype(int)
        for start, stop in itertools.pairwise(bounds.tolist()):
            yield self._examples(slice(start, stop))

    def shard(self, rank: int, size: int) -> Batch:
        """Return the examples of one of several processes: equal numbers, one process after the other."""
        share = len(self.labels) // size
        return self._examples(slice(rank * share, (rank + 1) * share))

    def staged(self, device: torch.device) -> Batch:
        """Return the batch, which is on the host, in memory that a device copies from while the host goes on."""
        return self._mapped(Tensor.pin_memory) if device.type == "cuda" else self

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; the copy may still be under way, and what is asked of the device waits."""
        return self._mapped(lambda values: values.to(device, non_blocking=True))

    def _examples(self, part: slice) -> Batch:
        return replace(self._mapped(lambda values: values[part]), lengths=self.lengths[part])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        mask = None if self.mask is None else change(self.mask)
        return replace(self, tokens=change(self.tokens), mask=mask, labels=change(self.labels))


def collate(
    split: Split,
    indices: Sequence[int],
    padded_length: int | None,
    limit: int,
    device: torch.device,
    multiple: int = LENGTH_MULTIPLE,
    *,
    always_masked: bool = False,
    augmentation: Augmentation | None = None,
    generator: np.random.Generator | None = None,
) -> Batch:
    """Pad examples to `padded_length`, or to the longest of them rounded up to a multiple (never past `limit`).

    With `augmentation`, examples are changed first, in their order, by draws from `generator`.
    """
    lengths = split.document_lengths[np.asarray(indices)]  # (batch, documents)
    if augmentation is not None:
        lengths = augmentation.lengths(lengths)
    longest = max(1, int(lengths.max()))
    length = padded_length or min(limit, -(-longest // multiple) * multiple)
    tokens = np.zeros((*lengths.shape, length), dtype=np.uint8)  # (batch, documents, length)
    for row, index in enumerate(indices):
        for document, end in enumerate(lengths[row]):
            text = split.tokens_of(int(index), document)
            if augmentation is not None and generator is not None:
                text = augmentation(text, generator)
            tokens[row, document, :end] = text
    # No mask without padding: attention is faster without one.
    unmasked = int(lengths.min()) == length and not always_masked
    mask = None if unmasked else np.arange(length) < lengths[..., None]
    if split.documents == 1:
        tokens, mask = tokens[:, 0], None if mask is None else mask[:, 0]
    labels = split.labels[np.asarray(indices)].astype(np.int64)
    if split.token_offset:  # ids above 255 need int16; NumPy adds, so that no second thread starts threads of torch
        ids = tokens.astype(np.int16) + np.int16(split.token_offset)
        tokens = ids if mask is None else ids * mask  # the offset was added to padding as well
    return Batch(
        tokens=torch.from_numpy(tokens),
        mask=None if mask is None else torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
        lengths=lengths.sum(axis=1),
    ).to(device)


class TrainingBatches:
    """The endless stream of training batches, addressed by step.

    The stream is one permutation of the examples after another, so each example comes once per epoch and every batch is
    full. With bucketing, each pool of `POOL_BATCHES` batches is sorted by length before it is cut, and the batches of a
    pool come in random order.

    Args:
        split: The examples.
        batch_size: Examples of a batch.
        seed: Seed of the order.
        padded_length: Fixed length to pad to; None pads to the longest of the batch.
        limit: Longest length there is.
        coarse: Round lengths up to one of `MOST_LENGTHS`. All batches then have a mask, or none has, so that there are
            no more shapes than lengths.
        augmentation: What is done to an example each time that it is read; None: nothing.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        padded_length: int | None,
        limit: int,
        coarse: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.split, self.batch_size, self.seed, self.augmentation = split, batch_size, seed, augmentation
        self.padded_length, self.limit = padded_length, limit
        self._multiple, self._always_masked = LENGTH_MULTIPLE, False
        if coarse:
            self._multiple *= -(-limit // (LENGTH_MULTIPLE * MOST_LENGTHS))
            lengths = split.document_lengths
            self._always_masked = int(lengths.min()) < int(lengths.max())
        self._pool: tuple[int, np.ndarray] = (-1, np.empty((0, 0), dtype=np.int64))
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int, device: torch.device) -> Batch:
        """Return the batch of one step."""
        return collate(
            self.split,
            self.indices(step).tolist(),
            self.padded_length,
            self.limit,
            device,
            self._multiple,
            always_masked=self._always_masked,
            augmentation=self.augmentation,
            generator=None if self.augmentation is None else numpy_generator(self.seed, "augment", step),
        )

    def indices(self, step: int) -> np.ndarray:
        """Return the examples of one step: (batch_size,)."""
        number, position = divmod(step, POOL_BATCHES)
        if self._pool[0] != number:
            self._pool = (number, self._make_pool(number))
        return self._pool[1][position]

    def _make_pool(self, number: int) -> np.ndarray:
        size = POOL_BATCHES * self.batch_size
        examples = self._stream(number * size, size)  # (POOL_BATCHES x batch_size,)
        if self.padded_length is None:
            # A stable sort keeps the shuffled order of equal lengths, on every platform.
            lengths = self.split.lengths[examples]
            if self.augmentation is not None:
                lengths = self.augmentation.lengths(lengths)
            examples = examples[np.argsort(lengths, kind="stable")]
        batches = examples.reshape(POOL_BATCHES, self.batch_size)
        # Otherwise the batches of a pool would come from short to long.
        return numpy_generator(self.seed, "pool", number).permutation(batches, axis=0)

    def _stream(self, start: int, count: int) -> np.ndarray:
        """Return `count` positions of the stream of permutations."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, len(self.split))
            if self._epoch[0] != epoch:
                order = numpy_generator(self.seed, "epoch", epoch).permutation(len(self.split))
                self._epoch = (epoch, order)
            piece = self._epoch[1][offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces)


def evaluation_batches(
    split: Split,
    *,
    max_tokens: int,
    padded_length: int | None,
    limit: int,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield (indices, batch) over a whole split, each example once, similar lengths together.

    Args:
        split: The examples.
        max_tokens: Padded tokens that a batch may hold; a single longer example is a batch of its own.
        padded_length: Fixed length to pad to; None pads to the longest of the batch.
        limit: Longest length there is.
        device: Where the batches go.
        share: (rank, size): of several processes that share the work, only the batches of this one.
    """
    order = np.argsort(split.lengths, kind="stable")[::-1]  # longest first: the largest batch is the first
    start = number = 0
    rank, size = share
    while start < len(order):
        # An upper bound of the padded length: the first example is the longest, and rounding adds less than a multiple.
        longest = padded_length or min(limit, int(split.lengths[order[start]]) + LENGTH_MULTIPLE)
        indices = order[start : start + max(1, max_tokens // (longest * split.documents))]
        if number % size == rank:
            yield indices, collate(split, indices.tolist(), padded_length, limit, device)
        start, number = start + len(indices), number + 1
