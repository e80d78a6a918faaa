# SPDX-License-Identifier: Apache-2.0
"""Retrieval: does one paper cite the other, from their bytes, 2 classes (ACL Anthology Network)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from lra.atomic_io import scratch_folder
from lra.data.dataset import PreparedData
from lra.data.download import Remote, Transfer
from lra.data.pickled_rows import Ids
from lra.data.places import REMOTES
from lra.data.raw_files import missing, steady, untouched
from lra.data.split import SPLITS, Split, SplitName
from lra.errors import DataError
from lra.tasks import passages, pickles
from lra.tasks.base import Task, TaskInfo, TaskOptions
from lra.tasks.pairs import PairReader, pair_files
from lra.tasks.pairs_fetch import fetch_pairs, read_state
from lra.tasks.splits import ReadOptions, sample, sample_limits
from lra.tasks.text import printable

OFFICIAL_COUNTS: dict[SplitName, int] = {"train": 147_086, "validation": 18_090, "test": 17_437}


VERSION = 1
"""Raised when the same files give other arrays."""
OFFICIAL_STEM = "new_aan_pairs"
KEPT_BYTES = 4_000
"""Of each document that is fetched, unless a dataset variant needs more."""


class RetrievalOptions(ReadOptions):
    """Which Retrieval; the defaults are the benchmark's own pairs, cut where it cuts them."""

    source: Literal["official", "substitute", "nystromformer"] = "official"
    """`official` reads the released pairs and insists on their number; `substitute` reads other pairs in the same
    layout, and `nystromformer` the pickles that its code makes; tables say so."""
    max_length: Annotated[int, Field(ge=1, le=1 << 16)] = 4_000
    """Bytes of each document that are kept, from its start."""
    pairs: Literal["given", "passages"] = "given"
    """`passages` cuts pairs of this length out of the papers of the substitute: do they share half of their text? See
    `lra.tasks.passages`."""

    @model_validator(mode="after")
    def _passages_of_the_substitute(self) -> Self:
        if self.pairs == "passages" and self.source != "substitute":
            raise ValueError(f"pairs passages are cut out of the papers of source substitute, not of {self.source}")
        return self

    @property
    def passage_counts(self) -> dict[SplitName, int]:
        """Pairs of passages of each split."""
        return {name: self.limits[name] or passages.COUNTS[name] for name in SPLITS}


class Retrieval(Task[RetrievalOptions]):
    """The Retrieval task: two documents of an example, one encoder for both."""

    info: ClassVar[TaskInfo] = TaskInfo(
        name="retrieval", title="Retrieval", version=VERSION, vocab_size=257, num_classes=2, paired=True, crops=True
    )
    options: ClassVar[type[TaskOptions]] = RetrievalOptions

    def dataset_name(self, options: RetrievalOptions) -> str:
        """Say whose pairs they are, how long documents are, and whether splits are samples."""
        if options.source == pickles.SOURCE:
            return f"AAN, {pickles.NAME}, first {options.max_length:,} bytes at most"
        if options.pairs == "passages":
            counts = _listed(options.passage_counts)
            return (
                f"passages of {options.max_length:,} bytes of AAN substitute papers that share a half or not, {counts}"
            )
        origin = "AAN" if options.source == "official" else "AAN substitute"
        return ", ".join([origin, f"first {options.max_length:,} bytes", *options.sample_phrase()])

    def info_for(self, options: RetrievalOptions) -> TaskInfo:
        """Return the facts; of passages, nothing may be cut off, since their label is about all of them."""
        return self.info if options.pairs == "given" else replace(self.info, crops=False)

    def max_length(self, options: RetrievalOptions) -> int:
        """Return the bytes that are kept of a document."""
        return options.max_length

    def short_name(self, options: RetrievalOptions) -> str:
        """Return the length, preceded by what is not the benchmark's."""
        if options.pairs == "passages":
            return f"passages-{options.max_length}"
        return str(options.max_length) if options.source == "official" else f"{options.source}-{options.max_length}"

    def small(self, options: RetrievalOptions, train: int) -> dict[str, int]:
        """Sample every split; a substitute, whose size nothing says beforehand, in the benchmark's proportions."""
        return sample_limits(OFFICIAL_COUNTS if options.pairs == "given" else options.passage_counts, train)

    def source_key(self, options: RetrievalOptions) -> str:
        """Return the task's name for the released pairs; a substitute is never taken for them."""
        return self.info.name if options.source == "official" else f"{self.info.name}-{options.source}"

    def decode_pickled(self, ids: Ids, options: RetrievalOptions) -> bytes:
        """Return the bytes of a paper."""
        return pickles.decode_bytes(ids, longest=options.max_length)

    def fetch(
        self, options: RetrievalOptions, folder: Path, *, mirror: str | None, progress: bool, otherwise: str
    ) -> tuple[Path, str]:
        """Read the files of pairs from a server, and keep the beginning of each document."""
        first_bytes = max(options.max_length, KEPT_BYTES)
        kept = folder / f"{OFFICIAL_STEM}-first-{first_bytes}"

        def transfer(remote: Remote, size: int | None) -> Transfer:
            return Transfer(remote, mirror=mirror, size=size, progress=progress, otherwise=otherwise)

        fetched = fetch_pairs(REMOTES[self.source_key(options)], kept, first_bytes=first_bytes, transfer=transfer)
        rows = sum(state.rows for state in fetched.files.values())
        words = f"{rows:,} pairs, the first {first_bytes:,} bytes of each document"
        parts = sorted(fetched.files.keys() - fetched.digests.keys())
        return kept, f"{words}; no SHA-256 of {', '.join(parts)}, which came in parts" if parts else words

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
            raise missing(self.info.name, "the three files of pairs of the benchmark", target.parent)
        if source is None:
            raise DataError(
                "retrieval: the substitute for AAN is neither prepared nor kept in this folder of data\n"
                "It is any three files NAME.train.tsv, NAME.eval.tsv and NAME.test.tsv of rows "
                "label, id1, id2, text1, text2.\n"
                "Read them with: lra-data prepare retrieval --set source=substitute --from FILE-OR-FOLDER"
            )
        stem = OFFICIAL_STEM if official else None
        files = pair_files(source, stem)
        folder = files[0].parent if files else source
        fetched = (read_state(folder) or read_state(source)) if source.is_dir() else None
        with scratch_folder(target) as scratch:
            kept = options.max_length if options.pairs == "given" else KEPT_BYTES
            reader = PairReader(max_length=kept, scratch=scratch, progress=progress)
            with untouched(files), steady(files if fetched else []) as digests:
                if fetched is not None:
                    fetched.check(folder, options.max_length, digests)
                splits = reader.read(source, files, stem)
            counts = {name: len(splits[name]) for name in SPLITS}
            if official and counts != OFFICIAL_COUNTS:
                raise DataError(
                    f"{source}: {_listed(counts)} pairs, but the benchmark has {_listed(OFFICIAL_COUNTS)}; "
                    "--set source=substitute takes other pairs"
                )
            dataset = None if official else f"{self.dataset_name(options)}, of {_listed(counts)} pairs"
            if options.pairs == "passages":
                papers = sorted({text for split in splits.values() for text in _documents(split)})
                made = passages.passage_splits(papers, options.max_length, options.seed, options.passage_counts)
                dataset = f"{self.dataset_name(options)} pairs"
            else:
                made = {name: _sampled(splits[name], options, name) for name in SPLITS}
            return self.write(
                options,
                target,
                made,
                generated_by=f"pair reader {VERSION}, {source.name}",
                sources=reader.digests if fetched is None else fetched.digests,
                dataset=dataset,
            )

    def show(self, data: PreparedData, split: SplitName, index: int) -> str:
        """Describe one example; of passages, what their label says."""
        text = super().show(data, split, index)
        if data.manifest.options.get("pairs") != "passages":
            return text
        return text.replace("(no citation)", "(of two papers)", 1).replace("(one cites the other)", "(half shared)", 1)

    def describe_example(self, examples: Split, index: int) -> str:
        """Return both documents as text; bytes that are not UTF-8 appear as escapes."""
        label = int(examples.labels[index])
        lines = [f"label {label} ({('no citation', 'one cites the other')[label]})"]
        for document in range(2):
            text = examples.tokens_of(index, document).tobytes()
            lines += [f"document {document + 1}, {len(text)} bytes:", printable(text)]
        return "\n".join(lines)


def _documents(split: Split) -> Iterator[bytes]:
    for index in range(len(split)):
        yield from (split.tokens_of(index, document).tobytes() for document in range(split.documents))


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
