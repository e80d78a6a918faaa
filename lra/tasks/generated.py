# SPDX-License-Identifier: Apache-2.0
"""Tasks whose examples a seeded function draws: all that a task of one file has to define.

Such a task has typed options, a function that draws one example, and facts: its vocabulary, classes and longest length.
It may add baselines, sizes of a model that learns it, and a certified distance. It needs no profile: what a profile
does not say comes from `recipe`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, model_validator

from lra.data.dataset import PreparedData
from lra.data.split import SPLITS, Split, SplitName
from lra.errors import DataError
from lra.seeding import numpy_generator
from lra.tasks.base import Task, TaskInfo, TaskOptions, in_proportion
from lra.tasks.baselines import majority
from lra.terminal import progress_bar

Count = Annotated[int, Field(ge=1)]
Tokens = npt.NDArray[np.uint8]
Lengths = Annotated[list[Count], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)]

MODEL: Mapping[str, Any] = {
    "dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "positions": "sinusoidal",
    "pooling": "masked_mean",
    "embedding_std": 1.0,
}
"""The model of a task that no profile has; its longest length is that of the data."""
TRAIN: Mapping[str, Any] = {
    "batch_size": 32,
    "steps": 1000,
    "lr": 2e-3,
    "schedule": "cosine",
    "warmup_steps": 50,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "eval_every": 250,
}


class GeneratedOptions(TaskOptions):
    """Options of every task whose examples are drawn; a task adds its own, each with a default."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the examples, not of a run."""
    length: Count = 64
    """Longest example of training and validation, in tokens."""
    shortest: Count | None = None
    """Training examples are drawn for lengths from this to `length`, each equally often; None: all for `length`."""
    test_length: Lengths = Field(default=[])
    """Lengths of the test examples, such as 256 or [64, 128, 256]; there are `test` examples of each, in this order.
    Empty: `length`."""
    train: Count = 20_000
    validation: Count = 1_000
    test: Count = 1_000

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        """Refuse lengths that make no sense, and write `shortest` as if it was not given where it changes nothing."""
        if self.shortest is not None and self.shortest > self.length:
            raise ValueError(f"shortest is {self.shortest}, above length, which is {self.length}")
        if len(set(self.test_length)) < len(self.test_length):
            raise ValueError("test_length has a length twice, whose examples would be the same")
        if self.shortest == self.length:
            object.__setattr__(self, "shortest", None)  # frozen: nobody has it yet
        return self

    @property
    def counts(self) -> dict[SplitName, int]:
        """Examples of each split and length."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def lengths(self, split: SplitName) -> list[int]:
        """List the lengths for which a split has examples."""
        return (self.test_length if split == "test" else []) or [self.length]

    @property
    def extremes(self) -> list[int]:
        """The shortest and the longest length of training, and those of the test."""
        return sorted({self.shortest or self.length, self.length, *self.test_length})


OptionsT = TypeVar("OptionsT", bound=GeneratedOptions)


class GeneratedTask(Task[OptionsT]):
    """A task whose examples are drawn from a seed. Write `info`, `options` and `example`; the rest has defaults."""

    recipe: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings for profiles that do not define the task, in the sections `model` and `train`, where they differ from
    `MODEL` and `TRAIN`."""

    @abstractmethod
    def example(
        self, options: OptionsT, length: int, generator: np.random.Generator
    ) -> tuple[Sequence[int] | npt.NDArray[Any], int]:
        """Draw one example.

        Args:
            options: Which dataset variant.
            length: Most tokens that the example may have.
            generator: The only source of chance.

        Returns:
            Tokens, 1 to `vocab_size - 1` of `info_for(options)`, since 0 is padding; and the label.
        """

    def certified_distance(self, options: OptionsT, length: int) -> int:  # noqa: ARG002
        """Return how far from the first token an answer must look, see `lra.tasks.probes`; 0 if nothing is claimed."""
        return 0

    def baselines(self, options: OptionsT, splits: Mapping[SplitName, Split]) -> dict[str, float]:  # noqa: ARG002
        """Return accuracies in % on the test split of answers that need no training, by name.

        Chance, the most frequent label and a linear map of the bag of tokens are always there, also at each length of
        the test. A name that begins with `oracle` says that the answer knows something hidden: a bound, which a trained
        model need not beat. A name such as `fixed width at 64` says that the number is that at one length of the test.
        """
        return {}

    def by_length(self, options: OptionsT, splits: Mapping[SplitName, Split]) -> dict[str, float]:
        """Return the baselines that are always there at each length of the test, such as `majority at 64`.

        There are none if the test has one length. Chance is the same at all.
        """
        classes, lengths = self.info_for(options).num_classes, options.lengths("test")
        found: dict[str, float] = {}
        for number, length in enumerate(lengths if len(lengths) > 1 else []):
            part: dict[SplitName, Split] = {**splits, "test": _part(splits["test"], number, len(lengths))}
            at_length = {"majority": majority(part, classes)["majority"], **self.fitted(part, classes)}
            found |= {f"{name} at {length}": value for name, value in at_length.items()}
        return found

    def defaults(self, options: OptionsT) -> dict[str, Any]:
        """Return the lengths of the test, which are that of training."""
        return {"test_length": [options.length]}

    def max_length(self, options: OptionsT) -> int:
        """Return the longest length of all splits."""
        return options.extremes[-1]

    def short_name(self, options: OptionsT) -> str:
        """Return the length."""
        return str(options.length)

    def dataset_name(self, options: OptionsT) -> str:
        """Name the lengths, the certified distance of the shortest test, and every option that is not its default."""
        fields = type(options).model_fields
        shown = {"length", "shortest", "test_length"}
        parts = [
            f"length {options.length}" if options.shortest is None else f"length {options.shortest} to {options.length}"
        ]
        if options.test_length:
            parts.append(f"tested at {', '.join(map(str, options.test_length))}")
        if distance := self.certified_distance(options, min(options.lengths("test"))):
            parts.append(f"certified distance {distance}")
        values = {name: getattr(options, name) for name in fields if name not in shown}
        parts += [f"{name} {value}" for name, value in values.items() if value != fields[name].default]
        return ", ".join(parts)

    def small(self, options: OptionsT, train: int) -> dict[str, int]:
        """Draw fewer."""
        return {str(name): count for name, count in in_proportion(options.counts, train).items()}

    def generates(self, options: OptionsT) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def build(
        self,
        options: OptionsT,
        target: Path,
        *,
        source: Path | None,  # noqa: ARG002 - `prepare` refuses one
        workers: int | None,  # noqa: ARG002 - one process is enough
        progress: bool,
    ) -> PreparedData:
        """Draw the examples.

        Raises:
            DataError: An example is not what the facts of the task say.
        """
        splits = {name: self.draw(options, name, progress=progress) for name in SPLITS}
        baselines = self.baselines(options, splits) | self.by_length(options, splits)
        return self.write(options, target, splits, generated_by=f"generator {self.info.version}", baselines=baselines)

    def draw(self, options: OptionsT, name: SplitName, *, most: int | None = None, progress: bool = False) -> Split:
        """Draw one split.

        Args:
            options: Which dataset variant.
            name: The split.
            most: Draw at most this many examples of each length; None draws all.
            progress: Whether to show a bar, when there is a terminal.

        Raises:
            DataError: An example is not what the facts of the task say.
        """
        info, lengths = self.info_for(options), options.lengths(name)
        count = min(options.counts[name], options.counts[name] if most is None else most)
        texts: list[Tokens] = []
        labels = np.zeros(count * len(lengths), dtype=np.uint8)
        with progress_bar(title=f"{info.name} {name}", total=len(labels), unit="ex", shown=progress) as bar:
            for length in lengths:
                generator = numpy_generator(options.seed, info.name, name, length)
                shortest = (options.shortest if name == "train" else None) or length
                for _ in range(count):
                    room = int(generator.integers(shortest, length + 1)) if shortest < length else length
                    tokens, label = self.example(options, room, generator)
                    labels[len(texts)] = _checked_label(info, label)
                    texts.append(_checked_tokens(info, np.asarray(tokens), length))
                    bar.update(1)
        return Split(
            tokens=np.concatenate(texts),
            offsets=np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64),
            labels=labels,
        )

    def describe_example(self, examples: Split, index: int) -> str:
        """Show the numbers of the tokens."""
        tokens = examples.tokens_of(index).tolist()
        return f"{len(tokens)} tokens, label {examples.labels[index]}\n{' '.join(map(str, tokens))}"

    def default_recipe(self) -> dict[str, dict[str, Any]]:
        """Return the sections of a profile's recipe."""
        sections = {"model": MODEL, "train": TRAIN}
        return {name: {**common, **self.recipe.get(name, {})} for name, common in sections.items()}


def _part(split: Split, number: int, count: int) -> Split:
    """Return one of `count` equal parts of a split."""
    size = len(split) // count
    offsets = split.offsets[number * size : (number + 1) * size + 1]
    return Split(
        tokens=split.tokens[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        labels=split.labels[number * size : (number + 1) * size],
    )


def _checked_tokens(info: TaskInfo, tokens: npt.NDArray[Any], length: int) -> Tokens:
    if not (tokens.ndim == 1 and 1 <= len(tokens) <= length and np.issubdtype(tokens.dtype, np.integer)):
        raise DataError(
            f"{info.name}: example() gave tokens of shape {tokens.shape} and type {tokens.dtype}, not 1 to {length} "
            "integers"
        )
    if not 1 <= tokens.min() <= tokens.max() <= min(info.vocab_size - 1, 255):
        raise DataError(
            f"{info.name}: example() gave tokens {tokens.min()} to {tokens.max()}; with vocab_size={info.vocab_size} "
            f"they are 1 to {min(info.vocab_size - 1, 255)}, since 0 is padding and tokens are stored as bytes"
        )
    return tokens.astype(np.uint8)


def _checked_label(info: TaskInfo, label: int) -> int:
    if not 0 <= label < min(info.num_classes, 256) or label != int(label):
        raise DataError(f"{info.name}: example() gave label {label}; with num_classes={info.num_classes} there is none")
    return label
