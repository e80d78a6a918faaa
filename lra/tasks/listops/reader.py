# SPDX-License-Identifier: Apache-2.0
"""Reader of the official ListOps files: `basic_train.tsv`, `basic_val.tsv`, `basic_test.tsv`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lra.data.archives import read_lines
from lra.data.split import Split, SplitName
from lra.errors import DataError
from lra.reading import open_regular, reading
from lra.tasks.listops.evaluator import MALFORMED, tree_values
from lra.tasks.listops.vocabulary import IDS
from lra.terminal import progress_bar

VERSION = 1
"""Raised when the same file gives other arrays."""
FOLDERS = ("listops-1000", "listops/listops", "listops")
"""In the archive of the benchmark; in a copy on Kaggle."""
SHORT_FILES: dict[SplitName, str] = {"train": "train.tsv", "validation": "val.tsv", "test": "test.tsv"}
"""Names in other copies."""
FILES: dict[SplitName, str] = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = b"Source\tTarget"

_TOKENS = {word.encode(): bytes([index]) for word, index in IDS.items()}
# What bytes.split takes for space besides space itself has no business in a row: it becomes part of an unknown token.
_NO_ODD_SPACE = bytes.maketrans(b"\r\v\f", b"???")
_LABELS = {str(digit).encode(): digit for digit in range(10)}


def read_split(file: Path, *, progress: bool) -> Split:
    """Read one file: rows of `source TAB label`; parentheses are dropped from the source, the rest are its tokens.

    Lines may end in CRLF. Every label is computed again from its row.

    Args:
        file: One of `FILES`.
        progress: Whether to show a bar, when there is a terminal.

    Raises:
        DataError: With the file and the line, at the first row that is not as it must be.
    """
    rows, targets = [], []
    with (
        reading(file),
        open_regular(file) as handle,
        progress_bar(title=file.name, unit=" rows", shown=progress) as bar,
    ):
        lines = read_lines(handle, str(file))
        header = next(lines, b"")
        if header != HEADER:
            raise DataError(f"{file}:1: the header must be 'Source<TAB>Target', got {_excerpt(header)}")
        for number, line in enumerate(lines, start=2):
            row, label = _parse(line, f"{file}:{number}")
            rows.append(row)
            targets.append(label)
            bar.update()
    if not rows:
        raise DataError(f"{file}: no rows after the header")
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    tokens = np.frombuffer(b"".join(rows), dtype=np.uint8)
    labels = np.array(targets, dtype=np.uint8)
    values = tree_values(tokens, offsets)
    wrong = np.flatnonzero(values != labels)
    if len(wrong):
        number, value = int(wrong[0]) + 2, values[wrong[0]]
        if value == MALFORMED:
            raise DataError(f"{file}:{number}: the brackets do not enclose exactly one tree")
        raise DataError(f"{file}:{number}: the label is {labels[wrong[0]]}, but the value of the tree is {value}")
    return Split(tokens=tokens, offsets=offsets, labels=labels)


def _parse(line: bytes, place: str) -> tuple[bytes, int]:
    fields = line.split(b"\t")
    if len(fields) != 2:
        raise DataError(f"{place}: expected 2 fields separated by a tab, got {len(fields)}")
    source, label = fields
    if label not in _LABELS:
        raise DataError(f"{place}: the label must be 0 to 9, got {_excerpt(label)}")
    return parse_tokens(source, place), _LABELS[label]


def parse_tokens(source: bytes, place: str) -> bytes:
    """Return the tokens of an expression; parentheses are dropped.

    Args:
        source: Words separated by spaces.
        place: Where it is from, for an error.

    Raises:
        DataError: It has no tokens, or a word that is none.
    """
    try:
        tokens = b"".join(map(_TOKENS.__getitem__, source.translate(_NO_ODD_SPACE, b"()").split()))
    except KeyError as error:
        raise DataError(f"{place}: {_excerpt(error.args[0])} is not a ListOps token") from error
    if not tokens:
        raise DataError(f"{place}: no tokens")
    return tokens


def _excerpt(data: bytes) -> str:
    """Show bytes from a file on one line, whatever they are."""
    return repr(data[:40])[1:] + ("..." if len(data) > 40 else "")
