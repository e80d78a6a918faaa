# SPDX-License-Identifier: Apache-2.0
"""ListOps: the value of a nested list of operators on digits, 10 classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from lra.data.augment import Change
from lra.data.dataset import PreparedData
from lra.data.pickled_rows import Ids
from lra.data.raw_files import places_in_release, steady
from lra.data.split import SPLITS, Split, SplitName
from lra.errors import DataError, UsageError
from lra.reading import is_there
from lra.tasks import pickles
from lra.tasks.base import Task, TaskInfo, TaskOptions, in_proportion
from lra.tasks.listops import baselines, generator, reader
from lra.tasks.listops.corpus import generate_examples
from lra.tasks.listops.generator import Grammar
from lra.tasks.listops.shuffle import shuffle_arguments
from lra.tasks.listops.vocabulary import CLOSE, DIGIT_0, VOCAB_SIZE, WORDS

Count = Annotated[int, Field(ge=1)]

OFFICIAL = Grammar()
OFFICIAL_COUNTS: dict[SplitName, int] = {"train": 96_000, "validation": 2_000, "test": 2_000}


class ListOpsOptions(TaskOptions):
    """Which ListOps; the defaults are the benchmark's own distribution and sizes."""

    source: Literal["generated", "official", "nystromformer"] = "generated"
    """`official` reads the released files; the grammar's shape and the seed are then not ours to set. `nystromformer`
    reads the pickles that its code makes, whose symbols have the numbers of the machine that made them."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generator, not of a run."""
    train: Count = OFFICIAL_COUNTS["train"]
    validation: Count = OFFICIAL_COUNTS["validation"]
    test: Count = OFFICIAL_COUNTS["test"]
    min_length: Annotated[int, Field(ge=4)] = OFFICIAL.min_length
    """Fewest tokens of an example."""
    max_length: Annotated[int, Field(ge=4, le=10_000)] = OFFICIAL.max_length
    max_depth: Annotated[int, Field(ge=2, le=100)] = OFFICIAL.max_depth
    max_args: Annotated[int, Field(ge=2, le=100)] = OFFICIAL.max_args
    operator_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = OFFICIAL.operator_probability

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_length < self.min_length:
            raise ValueError(f"max_length {self.max_length} is below min_length {self.min_length}")
        if self.source == "official":
            ours = ("seed", "max_depth", "max_args", "operator_probability")
            changed = [name for name in ours if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(f"source official does not take {', '.join(changed)}")
        elif self.grammar.longest_possible() < self.min_length:
            raise ValueError(f"no tree of this depth and width has {self.min_length} tokens")
        return self

    @property
    def grammar(self) -> Grammar:
        """The parameters of the generator."""
        return Grammar(
            min_length=self.min_length,
            max_length=self.max_length,
            max_depth=self.max_depth,
            max_args=self.max_args,
            operator_probability=self.operator_probability,
        )

    @property
    def counts(self) -> dict[SplitName, int]:
        """Examples of each split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


class ListOps(Task[ListOpsOptions]):
    """The ListOps task."""

    info: ClassVar[TaskInfo] = TaskInfo(
        name="listops",
        title="ListOps",
        version=1,
        vocab_size=VOCAB_SIZE,
        num_classes=10,
        generated=True,
        mask_rate=0.1,
        advice="more steps, model.positions=rotary",
    )
    options: ClassVar[type[TaskOptions]] = ListOpsOptions

    def augmentation(self, options: ListOpsOptions) -> Change | None:
        """Shuffle the arguments of operators, unless it is not known which symbols are operators."""
        return None if options.source == pickles.SOURCE else shuffle_arguments

    def dataset_name(self, options: ListOpsOptions) -> str:
        """Say where the examples come from, and all that sets them apart from the benchmark's."""
        if options.source == pickles.SOURCE:
            return f"{pickles.NAME}, numbers of symbols as in the files"
        grammar, parts = options.grammar, ["official files" if options.source == "official" else "generated"]
        if options.source == "generated" or grammar != OFFICIAL:
            parts.append(f"{grammar.min_length - 1} < length < {grammar.max_length + 1}")
        if grammar.max_depth != OFFICIAL.max_depth:
            parts.append(f"depth {grammar.max_depth}")
        if grammar.max_args != OFFICIAL.max_args:
            parts.append(f"{grammar.max_args} arguments")
        if grammar.operator_probability != OFFICIAL.operator_probability:
            parts.append(f"P(operator) {grammar.operator_probability:g}")
        if options.counts != OFFICIAL_COUNTS:
            parts.append(f"{' / '.join(map(str, options.counts.values()))} examples")
        text = ", ".join(parts)
        return text if grammar == OFFICIAL else f"{self._kind(grammar)}: {text}"

    def max_length(self, options: ListOpsOptions) -> int:
        """Return the upper bound of the lengths."""
        return min(options.max_length, options.grammar.longest_possible())

    def small(self, options: ListOpsOptions, train: int) -> dict[str, int]:
        """Generate fewer; the released files are read whole."""
        if options.source != "generated":
            raise UsageError(
                "the released ListOps files are read whole; a small dataset variant is generated: --generate"
            )
        return {str(name): count for name, count in in_proportion(options.counts, train).items()}

    def short_name(self, options: ListOpsOptions) -> str:
        """Return `generated` or `official` for the benchmark's distribution, else what it is instead."""
        return options.source if options.grammar == OFFICIAL else self._kind(options.grammar)

    def build(
        self, options: ListOpsOptions, target: Path, *, source: Path | None, workers: int | None, progress: bool
    ) -> PreparedData:
        """Generate the examples, or read them from the folder that holds the official files."""
        if options.source == "official":
            splits, sources = self._read(options, target, source, progress=progress)
            generated_by = f"official reader {reader.VERSION}"
        else:
            splits, sources = self._generate(options, workers=workers, progress=progress), {}
            generated_by = f"generator {generator.VERSION}"
        if options.grammar == OFFICIAL:
            baselines.check(splits)
        measured = baselines.measure(splits)
        return self.write(options, target, splits, generated_by=generated_by, sources=sources, baselines=measured)

    def decode_pickled(self, ids: Ids, options: ListOpsOptions) -> bytes:
        """Return the symbols of an expression, numbered as in the file."""
        return pickles.decode_symbols(ids, least=1, most=VOCAB_SIZE - 1, longest=options.max_length)

    def pickle_offset(self, options: ListOpsOptions) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def describe_pickles(self, splits: Mapping[SplitName, Split]) -> list[str]:
        """Count the close brackets, which older pickles lack: a tree ends with one, so all examples end alike."""
        texts = [split.tokens_of(index) for split in splits.values() for index in range(len(split))]
        last = {int(text[-1]) for text in texts}
        if len(last) > 1:
            return ["without close brackets"]
        return [f"{sum(int((text == text[-1]).sum()) for text in texts):,} close brackets"]

    def show(self, data: PreparedData, split: SplitName, index: int) -> str:
        """Describe one example; of pickles, as numbers whose meaning is not known."""
        if data.manifest.options["source"] != pickles.SOURCE:
            return super().show(data, split, index)
        examples = data.split(split)
        if not 0 <= index < len(examples):
            raise UsageError(f"{split} has examples 0 to {len(examples) - 1}, not {index}")
        numbers = " ".join(map(str, examples.tokens_of(index).tolist()))
        return f"{split} example {index}: label {examples.labels[index]}, symbols as numbered in the file\n{numbers}"

    def describe_example(self, examples: Split, index: int) -> str:
        """Render the tree, one node a line, indented by depth, with the value of each."""
        tokens = examples.tokens_of(index).tolist()
        head = f"{len(tokens)} tokens, label {examples.labels[index]}"
        return "\n".join([head, *_tree_lines(tokens)])

    def encode(self, texts: Sequence[str], options: ListOpsOptions) -> Split:
        """Return the tokens of expressions such as `[MAX 2 [MIN 3 4 ] 1 ]`."""
        if options.source == pickles.SOURCE:
            raise UsageError(f"the {pickles.NAME} do not say which number is which symbol, so texts cannot be read")
        rows = [reader.parse_tokens(text.encode(), f"text {number}") for number, text in enumerate(texts)]
        return Split(
            tokens=np.frombuffer(b"".join(rows), dtype=np.uint8),
            offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
            labels=np.zeros(len(rows), dtype=np.uint8),
        )

    @staticmethod
    def _kind(grammar: Grammar) -> str:
        return "short" if grammar.max_length < OFFICIAL.max_length else "altered"

    @staticmethod
    def _generate(options: ListOpsOptions, *, workers: int | None, progress: bool) -> dict[SplitName, Split]:
        total = sum(options.counts.values())
        examples = generate_examples(options.grammar, total, options.seed, workers=workers, progress=progress)
        splits: dict[SplitName, Split] = {}
        start = 0
        for name in SPLITS:
            stop = start + options.counts[name]
            offsets = examples.offsets[start : stop + 1]
            splits[name] = Split(
                tokens=examples.tokens[offsets[0] : offsets[-1]],
                offsets=offsets - offsets[0],
                labels=examples.labels[start:stop],
            )
            start = stop
        return splits

    @staticmethod
    def _read(
        options: ListOpsOptions, target: Path, source: Path | None, *, progress: bool
    ) -> tuple[dict[SplitName, Split], dict[str, str]]:
        parts = [] if source is None else reader.FOLDERS
        folders = [place for part in parts for place in places_in_release(source or target, part)]
        found: list[dict[SplitName, Path]] = [
            {split: file for split, name in names.items() if is_there(file := place / name)}
            for names in (reader.FILES, reader.SHORT_FILES)
            for place in folders
        ]
        files = next(filter(None, found), {})  # the first set, whole or not
        if len(files) < len(SPLITS):
            missing = [file for split, file in reader.FILES.items() if split not in files]
            raise DataError(
                f"listops: {', '.join(missing)} not found in {source or target.parent}\n"
                "These files are in the folder listops-1000 of the archive lra_release.gz of the benchmark.\n"
                "Read them with: lra-data prepare listops --set source=official --from FOLDER"
            )
        with steady(files.values()) as sources:
            splits = {name: reader.read_split(files[name], progress=progress) for name in SPLITS}
        for name, split in splits.items():
            file, count = files[name], options.counts[name]
            if len(split) != count:
                raise DataError(f"{file}: {len(split)} rows, expected {count}; --set {name}={len(split)} admits them")
            outside = np.flatnonzero((split.lengths < options.min_length) | (split.lengths > options.max_length))
            if len(outside):
                line, length = int(outside[0]) + 2, split.lengths[outside[0]]
                raise DataError(f"{file}:{line}: {length} tokens, not {options.min_length} to {options.max_length}")
        return splits, sources


def _tree_lines(tokens: list[int]) -> list[str]:
    """Write one node a line; a stack of open operators gives each its value when it closes."""
    lines: list[str] = []
    open_operators: list[tuple[int, list[int]]] = []
    for token in tokens:
        indent = "  " * len(open_operators)
        if token < CLOSE:
            open_operators.append((len(lines), []))
            lines.append(f"{indent}{WORDS[token]}")
            continue
        if token == CLOSE:
            line, arguments = open_operators.pop()
            value = _value(lines[line].strip(), arguments)
            lines[line] += f"  = {value}"
        else:
            value = token - DIGIT_0
            lines.append(f"{indent}{value}")
        if open_operators:
            open_operators[-1][1].append(value)
    return lines


def _value(operator: str, arguments: list[int]) -> int:
    if operator == "[SM":
        return sum(arguments) % 10
    if operator == "[MED":
        return math.floor(float(np.median(arguments)))
    return min(arguments) if operator == "[MIN" else max(arguments)
