# SPDX-License-Identifier: Apache-2.0
"""Text: the sentiment of a film review from its bytes, 2 classes (IMDb, Maas et al. 2011)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lra.data.archives import stream_members
from lra.data.dataset import PreparedData
from lra.data.parquet import PARQUET_ORDER, PARQUET_SPLITS, of_split, read_rows, source_files
from lra.data.pickled_rows import Ids
from lra.data.raw_files import missing, steady
from lra.data.split import Split, SplitName
from lra.errors import DataError
from lra.tasks import pickles
from lra.tasks.base import Task, TaskInfo, TaskOptions
from lra.tasks.splits import (
    Count,
    ReadOptions,
    byte_split,
    held_out_count,
    hold_out,
    sample,
    sample_limits,
)
from lra.terminal import progress_bar

VERSION = 1
"""Raised when the same archive gives other arrays."""
OFFICIAL_COUNT = 25_000
REVIEW_LIMIT = 1 << 20
ARCHIVE_LIMIT = 1 << 30
MEMBER_LIMIT = 1 << 18
"""The archive of the reviews has 100,031."""

_NAME = re.compile(r"(?:\./)?aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt")
_LABELS = {"neg": 0, "pos": 1}


class TextOptions(ReadOptions):
    """Which Text; the defaults are the length that papers mean by it, with a held-out validation split."""

    source: Literal["archive", "nystromformer"] = "archive"
    """`nystromformer` reads the pickles that the code of Nystromformer makes, and says so in every table."""
    max_length: Annotated[int, Field(ge=1, le=1 << 16)] = 4_096
    """Bytes of a review that are kept, from its start: 1,000 in the original configuration, 4,000 or more elsewhere."""
    validation: Literal["held_out", "test"] = "held_out"
    """`held_out` draws 10 % of the training reviews; `test` validates on the test split, as the original code does."""
    train_reviews: Count = OFFICIAL_COUNT
    """Reviews that the archive must hold for training, held-out ones included."""
    test_reviews: Count = OFFICIAL_COUNT


class Text(Task[TextOptions]):
    """The Text task."""

    info: ClassVar[TaskInfo] = TaskInfo(
        name="text", title="Text", version=VERSION, vocab_size=257, num_classes=2, crops=True
    )
    options: ClassVar[type[TaskOptions]] = TextOptions

    def dataset_name(self, options: TextOptions) -> str:
        """Say how long reviews are, what validation is, and whether splits are samples."""
        if options.source == pickles.SOURCE:
            return f"IMDb, {pickles.NAME}, first {options.max_length:,} bytes at most"
        held_out = "10 % of train held out" if options.validation == "held_out" else "validation is the test split"
        parts = [f"IMDb, first {options.max_length:,} bytes", held_out, *options.sample_phrase()]
        if (options.train_reviews, options.test_reviews) != (OFFICIAL_COUNT, OFFICIAL_COUNT):
            parts.append(f"archive of {options.train_reviews:,} + {options.test_reviews:,} reviews")
        return ", ".join(parts)

    def max_length(self, options: TextOptions) -> int:
        """Return the bytes that are kept of a review."""
        return options.max_length

    def short_name(self, options: TextOptions) -> str:
        """Return the length, and `val-test` where the test split validates."""
        return f"{options.max_length}-val-test" if options.validation == "test" else str(options.max_length)

    def small(self, options: TextOptions, train: int) -> dict[str, int]:
        """Sample every split."""
        held_out = 0 if options.validation == "test" else held_out_count(options.train_reviews)
        full: dict[SplitName, int] = {
            "train": options.train_reviews - held_out,
            "validation": held_out or options.test_reviews,
            "test": options.test_reviews,
        }
        return sample_limits(full, train)

    def source_key(self, options: TextOptions) -> str:
        """Return the task's name for all dataset variants that come from the archive."""
        return self.info.name if options.source == "archive" else f"{self.info.name}-{options.source}"

    def decode_pickled(self, ids: Ids, options: TextOptions) -> bytes:
        """Return the bytes of a review."""
        return pickles.decode_bytes(ids, longest=options.max_length)

    def build(
        self,
        options: TextOptions,
        target: Path,
        *,
        source: Path | None,
        workers: int | None,  # noqa: ARG002 - an archive is one stream
        progress: bool,
    ) -> PreparedData:
        """Read the archive `aclImdb_v1.tar.gz`, or a folder of parquet files."""
        if source is None:
            raise missing(self.info.name, "aclImdb_v1.tar.gz, the archive of IMDb reviews,", target.parent)
        files = source_files(source)
        with steady(files) as sources:
            splits = self._cut(read_reviews(source, files, options, progress=progress), options)
        return self.write(
            options,
            target,
            splits,
            generated_by=f"IMDb reader {VERSION}, {source.name}",
            sources=sources,
            dataset=f"{self.dataset_name(options)}, {PARQUET_ORDER}" if files != [source] else None,
        )

    def describe_example(self, examples: Split, index: int) -> str:
        """Return the review as text; bytes that are not UTF-8 appear as escapes."""
        review = examples.tokens_of(index).tobytes()
        label = int(examples.labels[index])
        head = f"{len(review)} bytes, label {label} ({('negative', 'positive')[label]})"
        return f"{head}\n{printable(review)}"

    def encode(self, texts: Sequence[str], options: TextOptions) -> Split:
        """Return the bytes of reviews, cut to the length of the dataset variant."""
        if "" in texts:
            raise DataError(f"text {list(texts).index('')} is empty")
        return byte_split([text.encode()[: options.max_length] for text in texts], [0] * len(texts))

    @staticmethod
    def _cut(reviews: dict[str, list[tuple[bytes, int]]], options: TextOptions) -> dict[SplitName, Split]:
        chosen: dict[SplitName, list[tuple[bytes, int]]] = {"test": reviews["test"]}
        if options.validation == "test":
            chosen |= {"train": reviews["train"], "validation": reviews["test"]}
        else:
            total = len(reviews["train"])
            stay, held_out = hold_out(total, held_out_count(total), options.seed)
            chosen["train"] = [reviews["train"][i] for i in stay]
            chosen["validation"] = [reviews["train"][i] for i in held_out]
        splits: dict[SplitName, Split] = {}
        for name, rows in chosen.items():
            # validation on the test split scores the very same reviews
            drawn_as: SplitName = "test" if options.validation == "test" and name == "validation" else name
            kept = [rows[i] for i in sample(len(rows), options.limits[name], options.seed, drawn_as)]
            splits[name] = byte_split([review for review, _ in kept], [label for _, label in kept])
        return splits


def read_reviews(
    source: Path, files: Sequence[Path], options: TextOptions, *, progress: bool
) -> dict[str, list[tuple[bytes, int]]]:
    """Return (bytes, label) of the reviews of `train` and `test`, cut to the length.

    Those of the archive are ordered by label and number; parquet has no numbers, and its order stays.

    Args:
        source: The archive, or a folder of parquet files,
        files: and what `source_files` says of it.
        options: How long reviews are, and how many there must be.
        progress: Whether to show a bar, when there is a terminal.

    Raises:
        UsageError: pyarrow is not installed, for a folder of parquet files.
        DataError: The archive is damaged or is another one, or a review is empty.
    """
    if files == [source]:
        reviews = _archive_reviews(source, options, progress=progress)
    else:
        reviews = {split: _parquet_reviews(of_split(files, split), options) for split in PARQUET_SPLITS}
    for split, expected in zip(PARQUET_SPLITS, (options.train_reviews, options.test_reviews), strict=True):
        count = len(reviews[split])
        if count != expected:
            hint = f"; --set {split}_reviews={count} admits them" if count else ": is this the IMDb archive?"
            raise DataError(f"{source}: {count} reviews in aclImdb/{split}, expected {expected}{hint}")
    return reviews


def _parquet_reviews(files: Iterable[Path], options: TextOptions) -> list[tuple[bytes, int]]:
    reviews = []
    for file in files:
        for number, (text, label) in enumerate(read_rows(file, ("text", "label"))):
            if not isinstance(text, str) or not text or label not in (0, 1):
                raise DataError(f"{file}: row {number} is not a review with the label 0 or 1")
            reviews.append((text.encode()[: options.max_length], int(label)))
    return reviews


def _archive_reviews(source: Path, options: TextOptions, *, progress: bool) -> dict[str, list[tuple[bytes, int]]]:
    found: dict[tuple[str, int, int], bytes] = {}
    total = options.train_reviews + options.test_reviews
    with progress_bar(title=source.name, total=total, unit=" reviews", shown=progress) as bar:
        for member in stream_members(source, _limit, total_limit=ARCHIVE_LIMIT, member_limit=MEMBER_LIMIT):
            match = _NAME.fullmatch(member.name)
            assert match is not None  # only such members are wanted
            split, sentiment, number = match.groups()
            key = (split, _LABELS[sentiment], int(number))
            if key in found:
                raise DataError(f"{member.place}: the number {number} is there twice")
            found[key] = member.read()[: options.max_length]
            if not found[key]:
                raise DataError(f"{member.place}: an empty review")
            bar.update()
    reviews: dict[str, list[tuple[bytes, int]]] = {split: [] for split in PARQUET_SPLITS}
    for split, label, number in sorted(found):
        reviews[split].append((found[split, label, number], label))
    return reviews


def printable(data: bytes) -> str:
    """Return bytes as text for a terminal: control characters and what is not UTF-8 appear as escapes."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def _limit(name: str) -> int | None:
    return REVIEW_LIMIT if _NAME.fullmatch(name) else None
