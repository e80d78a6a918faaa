"""Reader of pairs of papers: tab-separated rows `label, id1, id2, text1, text2`, no header, no quoting, as bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from lra.archives import read_lines, stream_members
from lra.errors import DataError
from lra.prepared import SPLITS, Split, SplitName
from lra.tasks.sampling import byte_split

VERSION = 1
"""Raised when the same files give other arrays."""
SUFFIXES: dict[SplitName, str] = {"train": ".train.tsv", "validation": ".eval.tsv", "test": ".test.tsv"}
OFFICIAL_STEM = "new_aan_pairs"
NUM_FIELDS = 5
FILE_LIMIT = 16 << 30
ARCHIVE_LIMIT = 64 << 30
"""The benchmark's whole archive, which holds these files among much else, is near 20 GB."""


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
        with tqdm(lines, desc=place, unit=" pairs", disable=None if self.progress else True) as bar:
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
        for file in sorted(source.iterdir()):
            name = wanted(file.name)
            if name is not None:
                try:
                    with file.open("rb") as handle:
                        yield name, str(file), read_lines(handle, str(file))
                except OSError as error:
                    raise DataError(f"{file}: {error.strerror or error}") from error
        return

    def limit(member: str) -> int | None:
        return None if wanted(PurePosixPath(member).name) is None else FILE_LIMIT

    for member in stream_members(source, limit, total_limit=ARCHIVE_LIMIT):
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
