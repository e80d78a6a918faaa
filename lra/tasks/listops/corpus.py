# SPDX-License-Identifier: Apache-2.0
"""From chunks to a corpus: distinct ListOps examples, the same for any number of worker processes."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator

import numpy as np

from lra.data.process_pool import in_order
from lra.errors import UsageError
from lra.tasks.listops.generator import Examples, Grammar, generate_chunk
from lra.terminal import progress_bar

SERIAL_CHUNKS = 8
"""Up to so many chunks, starting processes costs more than it saves."""
BARREN_CHUNKS = 32
"""So many chunks in a row without a new example mean that there are no more."""


def generate_examples(grammar: Grammar, total: int, seed: int, *, workers: int | None, progress: bool) -> Examples:
    """Generate distinct examples, in a fixed order.

    Args:
        grammar: The distribution.
        total: How many.
        seed: Which.
        workers: Processes; None takes one per core. The examples do not depend on it.
        progress: Whether to show a bar, when there is a terminal.

    Raises:
        UsageError: The grammar has fewer distinct examples.
        DataError: A worker process died.
    """
    seen: set[bytes] = set()
    parts: list[Examples] = []
    barren = 0
    with progress_bar(title="listops", total=total, unit="ex", shown=progress) as bar:
        for chunk in _chunks(grammar, total, seed, workers or os.cpu_count() or 1):
            fresh = _new_examples(chunk, seen, total - len(seen))
            parts.append(fresh)
            bar.update(len(fresh.labels))
            if len(seen) == total:
                return _join(parts)
            barren = 0 if len(fresh.labels) else barren + 1
            if barren == BARREN_CHUNKS:
                break
    raise UsageError(f"listops: these parameters gave only {len(seen)} distinct examples, {total} are asked for")


def _chunks(grammar: Grammar, total: int, seed: int, workers: int) -> Iterator[Examples]:
    """Yield chunk 0, 1, 2, ... without end, computed ahead by worker processes when that pays."""
    first = generate_chunk(seed, 0, grammar)
    yield first
    needed = total / max(1, len(first.labels))
    make = functools.partial(_chunk, seed=seed, grammar=grammar)
    yield from in_order(make, itertools.count(1), 1 if needed <= SERIAL_CHUNKS else workers)


def _chunk(number: int, seed: int, grammar: Grammar) -> Examples:
    return generate_chunk(seed, number, grammar)


def _new_examples(chunk: Examples, seen: set[bytes], room: int) -> Examples:
    """Return the first `room` examples of a chunk that are not in `seen`, and add them to it.

    `seen` holds 128-bit digests of the tokens: the one step per example, about 2 microseconds each.
    """
    data = chunk.tokens.data
    bounds = chunk.offsets.tolist()
    fresh = np.zeros(len(chunk.labels), dtype=np.bool_)
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if room == 0:
            break
        digest = hashlib.blake2b(data[start:stop], digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            fresh[index] = True
            room -= 1
    if fresh.all():
        return chunk
    lengths = np.diff(chunk.offsets)
    return Examples(
        tokens=chunk.tokens[np.repeat(fresh, lengths)],  # the flag of an example, for each of its tokens
        offsets=np.concatenate([[0], np.cumsum(lengths[fresh])]),
        labels=chunk.labels[fresh],
    )


def _join(parts: list[Examples]) -> Examples:
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Examples(
        tokens=np.concatenate([part.tokens for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.concatenate([part.labels for part in parts]),
    )
