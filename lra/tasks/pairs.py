# SPDX-License-Identifier: Apache-2.0
"""Reader of the files of pairs of the Retrieval task: rows `label, id1, id2, text1, text2`, separated by tabs."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, cast

from lra.data.archives import read_lines, stream_members
from lra.data.raw_files import places_in_release
from lra.data.split import SPLITS, Split, SplitName, write_split
from lra.errors import DataError
from lra.reading import is_hidden, open_regular, reading, visible
from lra.terminal import progress_bar

SUFFIXES: dict[SplitName, str] = {"train": ".train.tsv", "validation": ".eval.tsv", "test": ".test.tsv"}
FOLDERS = ("tsv_data", "data/aan", "aan")
"""In the archive of the benchmark; in copies of others."""
NUM_FIELDS = 5
FILE_LIMIT = 16 << 30
ARCHIVE_LIMIT = 64 << 30
"""The benchmark's whole archive, which holds these files among much else, is near 20 GB."""
MEMBER_LIMIT = 1 << 24

Row = tuple[int, tuple[bytes, bytes]]
"""Label and the two documents of a pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairReader:
    """Reads the three files, and keeps the beginnings of the documents on the disk as it goes."""

    max_length: int
    """Bytes of each document that are kept, from its start."""
    scratch: Path
    """An empty folder for what is kept."""
    progress: bool
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that were read, by name."""

    def read(self, source: Path, files: Sequence[Path], stem: str | None) -> dict[SplitName, Split]:
        """Read the three files from a folder or from a tar archive.

        Args:
            source: Folder or archive,
            files: and what `pair_files` says of it; files of a folder may be compressed by gzip.
            stem: What their names begin with; None takes any three that end as they should.

        Raises:
            DataError: A file is missing, there twice, empty or of another set, or a row is not as it must be.
        """
        splits: dict[SplitName, Split] = {}
        places: dict[SplitName, str] = {}
        sets = set[str]()
        for name, file_name, place, handle in _opened(source, files, lambda name: split_of(name, stem)):
            if name in splits:
                raise DataError(f"{source}: both {places[name]} and {place} are a {name} split")
            sets.add(file_name.removesuffix(SUFFIXES[name]))
            if len(sets) > 1:
                raise DataError(f"{source}: {file_name} is of another set than {', '.join(places.values())}")
            digest = hashlib.sha256()
            with reading(place):
                rows = self._rows(read_lines(handle, place, digest.update), place)
                splits[name], places[name] = write_split(self.scratch / f"{name}.npy", rows, token_offset=1), place
            if not len(splits[name].labels):
                raise DataError(f"{place}: no rows")
            self.digests[PurePosixPath(file_name).name] = digest.hexdigest()
        absent = [f"{stem or 'NAME'}{SUFFIXES[name]}" for name in SPLITS if name not in splits]
        if absent:
            hint = "" if stem is None else "; --set source=substitute reads files of other names"
            raise DataError(f"{source}: {', '.join(absent)} not found{hint}")
        return splits

    def _rows(self, lines: Iterator[bytes], place: str) -> Iterator[Row]:
        with progress_bar(lines, title=place, unit=" pairs", shown=self.progress) as bar:
            for number, line in enumerate(bar, start=1):
                label, documents = parse_row(line, f"{place}:{number}")
                yield label, (documents[0][: self.max_length], documents[1][: self.max_length])


def split_of(name: str, stem: str | None) -> SplitName | None:
    """Return the split that a file of this name holds; None for other files."""
    for split, suffix in SUFFIXES.items():
        if name == f"{stem}{suffix}" or (stem is None and name.endswith(suffix)):
            return split
    return None


def parse_row(line: bytes, place: str) -> Row:
    """Return label and documents of a row. Quotes mean nothing; a label is `0`, `1`, `0.0` or `1.0`.

    Args:
        line: The row without its end.
        place: File and line, for an error.

    Raises:
        DataError: It has not five fields, or another label.
    """
    fields = line.split(b"\t")
    if len(fields) != NUM_FIELDS:
        raise DataError(f"{place}: expected {NUM_FIELDS} fields, got {len(fields)}")
    try:
        value = float(fields[0])
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        shown = repr(fields[0][:40])[1:]
        raise DataError(f"{place}: the label must be 0 or 1, got {shown}")
    return int(value), (fields[3], fields[4])


def pair_files(source: Path, stem: str | None) -> list[Path]:
    """Return the archive itself, or the files of pairs of the first folder, of those of a release, that has some."""
    if not source.is_dir():
        return [source]
    with reading(source):
        places = [place for folder in FOLDERS for place in places_in_release(source, folder)]
        found = [[file for file in visible(place) if split_of(file.name.removesuffix(".gz"), stem)] for place in places]
    return next(filter(None, found), [])


def _opened(
    source: Path, files: Sequence[Path], wanted: Callable[[str], SplitName | None]
) -> Iterator[tuple[SplitName, str, str, IO[bytes]]]:
    """Yield split, name (in an archive with its folder), place and content of every wanted file."""
    if files != [source]:
        for file in files:
            name = wanted(file.name.removesuffix(".gz"))
            assert name is not None  # only such files are wanted
            with reading(file), open_regular(file) as handle:
                unpacked = gzip.GzipFile(fileobj=handle) if file.suffix == ".gz" else handle
                yield name, file.name.removesuffix(".gz"), str(file), cast("IO[bytes]", unpacked)
        return

    def limit(member: str) -> int | None:
        return None if is_hidden(member) or wanted(PurePosixPath(member).name) is None else FILE_LIMIT

    for member in stream_members(source, limit, total_limit=ARCHIVE_LIMIT, member_limit=MEMBER_LIMIT):
        name = wanted(PurePosixPath(member.name).name)
        assert name is not None  # only such members are wanted
        yield name, member.name, member.place, member.handle
