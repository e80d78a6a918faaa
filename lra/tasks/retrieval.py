# SPDX-License-Identifier: Apache-2.0
"""Retrieval: does one paper cite the other, from their bytes, 2 classes (ACL Anthology Network)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from lra.data.archives import read_lines, stream_members
from lra.data.dataset import SPLITS, PreparedData, Split, SplitName
from lra.data.raw_files import describe_source, missing, places_in_release
from lra.errors import DataError
from lra.reading import check_regular, is_hidden, reading, visible
from lra.tasks.base import Task, TaskInfo, TaskOptions
from lra.tasks.splits import ReadOptions, byte_split, sample, sample_limits
from lra.tasks.text import printable
from lra.terminal import progress_bar

OFFICIAL_COUNTS: dict[SplitName, int] = {"train": 147_086, "validation": 18_090, "test": 17_437}


VERSION = 1
"""Raised when the same files give other arrays."""
SUFFIXES: dict[SplitName, str] = {"train": ".train.tsv", "validation": ".eval.tsv", "test": ".test.tsv"}
FOLDER = "tsv_data"
"""In the archive of the benchmark."""
OFFICIAL_STEM = "new_aan_pairs"
NUM_FIELDS = 5
FILE_LIMIT = 16 << 30
ARCHIVE_LIMIT = 64 << 30
"""The benchmark's whole archive, which holds these files among much else, is near 20 GB."""
MEMBER_LIMIT = 1 << 24


class RetrievalOptions(ReadOptions):
    """Which Retrieval; the defaults are the benchmark's own pairs, cut where it cuts them."""

    source: Literal["official", "substitute"] = "official"
    """`official` reads the released pairs and insists on their number; `substitute` reads other pairs in the same
    layout, and says so in every table."""
    max_length: Annotated[int, Field(ge=1, le=1 << 16)] = 4_000
    """Bytes of each document that are kept, from its start."""


class Retrieval(Task[RetrievalOptions]):
    """The Retrieval task: two documents of an example, one encoder for both."""

    info: ClassVar[TaskInfo] = TaskInfo(
        name="retrieval", title="Retrieval", version=VERSION, vocab_size=257, num_classes=2, paired=True
    )
    options: ClassVar[type[TaskOptions]] = RetrievalOptions

    def dataset_name(self, options: RetrievalOptions) -> str:
        """Say whose pairs they are, how long documents are, and whether splits are samples."""
        origin = "AAN" if options.source == "official" else "AAN substitute"
        return ", ".join([origin, f"first {options.max_length:,} bytes", *options.sample_phrase()])

    def max_length(self, options: RetrievalOptions) -> int:
        """Return the bytes that are kept of a document."""
        return options.max_length

    def short_name(self, options: RetrievalOptions) -> str:
        """Return the length, preceded by `substitute` for other pairs than the benchmark's."""
        return f"substitute-{options.max_length}" if options.source == "substitute" else str(options.max_length)

    def small(self, options: RetrievalOptions, train: int) -> dict[str, int]:  # noqa: ARG002 - other pairs, same shares
        """Sample every split; a substitute, whose size nothing says beforehand, in the benchmark's proportions."""
        return sample_limits(OFFICIAL_COUNTS, train)

    def source_key(self, options: RetrievalOptions) -> str:
        """Return the task's name for the released pairs; a substitute is never taken for them."""
        return self.info.name if options.source == "official" else f"{self.info.name}-substitute"

    def build(
        self,
        options: RetrievalOptions,
        target: Path,
        *,
        source: Path | None,
        workers: int | None,  # noqa: ARG002 - an archive is one stream
        progress: bool,
    ) -> PreparedData:
        """Read the three files of pairs from a folder or a tar archive."""
        official = options.source == "official"
        if source is None and official:
            raise missing(self.info.name, "the archive lra_release.gz of the benchmark", target.parent)
        if source is None:
            raise DataError(
                "retrieval: the substitute for AAN is neither prepared nor kept in this folder of data\n"
                "It is any three files NAME.train.tsv, NAME.eval.tsv and NAME.test.tsv of rows "
                "label, id1, id2, text1, text2.\n"
                "Read them with: lra-data prepare retrieval --set source=substitute --from FILE-OR-FOLDER"
            )
        reader = PairReader(max_length=options.max_length, progress=progress)
        splits = reader.read(source, OFFICIAL_STEM if official else None)
        counts = {name: len(splits[name]) for name in SPLITS}
        if official and counts != OFFICIAL_COUNTS:
            raise DataError(
                f"{source}: {_listed(counts)} pairs, but the benchmark has {_listed(OFFICIAL_COUNTS)}; "
                "--set source=substitute takes other pairs"
            )
        kept = {name: _sampled(splits[name], options, name) for name in SPLITS}
        return self.write(
            options,
            target,
            kept,
            generated_by=f"pair reader {VERSION}, {describe_source(source)}",
            dataset=None if official else f"{self.dataset_name(options)}, of {_listed(counts)} pairs",
        )

    def describe_example(self, examples: Split, index: int) -> str:
        """Return both documents as text; bytes that are not UTF-8 appear as escapes."""
        label = int(examples.labels[index])
        lines = [f"label {label} ({('no citation', 'one cites the other')[label]})"]
        for document in range(2):
            text = examples.tokens_of(index, document).tobytes()
            lines += [f"document {document + 1}, {len(text)} bytes:", printable(text)]
        return "\n".join(lines)


def _sampled(split: Split, options: RetrievalOptions, name: SplitName) -> Split:
    limit = options.limits[name]
    if limit is None or limit >= len(split):
        return split
    chosen = sample(len(split), limit, options.seed, name)
    documents = [split.tokens_of(int(index), document) for index in chosen for document in range(2)]
    return Split(
        tokens=np.concatenate(documents),
        offsets=np.concatenate([[0], np.cumsum([len(document) for document in documents])]),
        labels=split.labels[chosen],
        token_offset=split.token_offset,
    )


def _listed(counts: dict[SplitName, int]) -> str:
    return " / ".join(f"{counts[name]:,}" for name in SPLITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairReader:
    """What is kept of the rows."""

    max_length: int
    """Bytes of each document, from its start."""
    progress: bool

    def read(self, source: Path, stem: str | None) -> dict[SplitName, Split]:
        """Read the three files from a folder or from a tar archive.

        Args:
            source: Folder or archive.
            stem: What their names begin with; None takes any three that end as they should.

        Raises:
            DataError: A file is missing, there twice or empty, or a row is not as it must be.
        """
        splits: dict[SplitName, Split] = {}
        places: dict[SplitName, str] = {}
        for name, place, lines in _files(source, lambda name: split_of(name, stem)):
            if name in splits:
                raise DataError(f"{source}: both {places[name]} and {place} are a {name} split")
            splits[name], places[name] = self._split(lines, place), place
        absent = [f"{stem or 'NAME'}{SUFFIXES[name]}" for name in SPLITS if name not in splits]
        if absent:
            hint = "" if stem is None else "; --set source=substitute reads files of other names"
            raise DataError(f"{source}: {', '.join(absent)} not found{hint}")
        return splits

    def _split(self, lines: Iterator[bytes], place: str) -> Split:
        documents: list[bytes] = []
        labels: list[int] = []
        with progress_bar(lines, title=place, unit=" pairs", shown=self.progress) as bar:
            for number, line in enumerate(bar, start=1):
                fields = line.split(b"\t")
                if len(fields) != NUM_FIELDS:
                    raise DataError(f"{place}:{number}: expected {NUM_FIELDS} fields, got {len(fields)}")
                labels.append(_label(fields[0], f"{place}:{number}"))
                documents += [fields[3][: self.max_length], fields[4][: self.max_length]]
        if not labels:
            raise DataError(f"{place}: no rows")
        return byte_split(documents, labels, per_example=2)


def split_of(name: str, stem: str | None) -> SplitName | None:
    """Return the split that a file of this name holds; None for other files."""
    for split, suffix in SUFFIXES.items():
        if name == f"{stem}{suffix}" or (stem is None and name.endswith(suffix)):
            return split
    return None


def _files(source: Path, wanted: Callable[[str], SplitName | None]) -> Iterator[tuple[SplitName, str, Iterator[bytes]]]:
    """Yield (split, where it is, lines) of every wanted file."""
    if source.is_dir():
        with reading(source):
            folders = [folder for folder in places_in_release(source, FOLDER) if folder.is_dir()]
            found = [[file for file in visible(folder) if wanted(file.name)] for folder in folders]
        for file in next(filter(None, found), []):
            name = wanted(file.name)
            assert name is not None  # only such files are wanted
            with reading(file):
                check_regular(file)
                with file.open("rb") as handle:
                    yield name, str(file), read_lines(handle, str(file))
        return

    def limit(member: str) -> int | None:
        return None if is_hidden(member) or wanted(PurePosixPath(member).name) is None else FILE_LIMIT

    for member in stream_members(source, limit, total_limit=ARCHIVE_LIMIT, member_limit=MEMBER_LIMIT):
        name = wanted(PurePosixPath(member.name).name)
        assert name is not None  # only such members are wanted
        yield name, member.place, member.lines()


def _label(field: bytes, place: str) -> int:
    """Read `0`, `1`, `0.0` or `1.0`; the released files write labels as real numbers."""
    try:
        value = float(field)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        shown = repr(field[:40])[1:]
        raise DataError(f"{place}: the label must be 0 or 1, got {shown}")
    return int(value)
