# SPDX-License-Identifier: Apache-2.0
"""What a task is: its facts, its options, how its data is prepared, and how one example looks to a person."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from lra.atomic_io import remove_folder, scratch_folder
from lra.config.schema import ADDED_LATER
from lra.data import download
from lra.data.augment import Change
from lra.data.dataset import PreparedData, open_prepared, write_prepared
from lra.data.manifest import Manifest
from lra.data.overlap import MOSTLY, found_in
from lra.data.pickled_rows import Ids
from lra.data.places import REMOTES
from lra.data.raw_files import FOLDER, check_source, keep_source, kept_source, steady
from lra.data.split import Split, SplitName
from lra.errors import DataError, UsageError
from lra.names import legible
from lra.reading import reading
from lra.tasks import pickles
from lra.tasks.baselines import Features, linear, majority, token_counts
from lra.terminal import echo

PICKLE_OPTIONS = ("source", "max_length", "difficulty", "legacy_zero_mask")
"""Options that data from Nystromformer's pickles takes."""


class TaskOptions(BaseModel):
    """Which dataset variant of a task: the `data` section of a profile. Exact types, no unknown keys, no changes.

    An option is a `bool`, `int`, `float`, `str`, a `Literal` of words or whole numbers, or a `list` of them; a union
    such as `int | None` or `Literal["auto"] | float` has members of different kinds, where `int` and `float` are one.
    So equal values are written as one, and a run has one id.

    Raises:
        TypeError: An option of a subclass has another annotation or is excluded, or `model_config` is another.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Check a new class: every option is in the name of the data, in one form."""
        if cls.model_config != TaskOptions.model_config:
            raise TypeError(f"{cls.__name__}: leave model_config as it is in TaskOptions")
        for name, option in cls.model_fields.items():
            if option.exclude:
                raise TypeError(
                    f"option {name} of {cls.__name__}: leave out `exclude`; data of two values needs two names"
                )
            try:
                _kinds(option.annotation)
            except TypeError as error:
                raise TypeError(f"option {name} of {cls.__name__}: {error}") from None

    @field_validator("*")
    @classmethod
    def _zero_has_no_sign(cls, value: Any) -> Any:
        """Write -0.0 as 0.0, which equals it."""
        return _without_signs(value)


def _without_signs(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_signs(each) for each in value]
    return value + 0.0 if isinstance(value, float) else value


def _kinds(hint: Any) -> list[type]:
    """List what kinds of values an annotation takes; `float` stands for numbers.

    Raises:
        TypeError: It is none for an option.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin in (Union, UnionType):
        kinds = [kind for member in arguments for kind in _kinds(member)]
        if len(set(kinds)) < len(kinds):
            raise TypeError(f"of {hint}, two members take equal values; keep one (float takes integers too)")
        return kinds
    if origin is Literal and {float, bool}.isdisjoint(map(type, arguments)):  # 0.0 would be read as False
        return list({kind for value in arguments for kind in _kinds(type(value))})
    if origin is list:
        _kinds(arguments[0])
        return [list]
    if hint in (bool, int, float, str, NoneType):
        return [float if hint is int else hint]
    raise TypeError(f"its type {hint} must be bool, int, float, str, Literal, a list of these, or such a type | None")


OptionsT = TypeVar("OptionsT", bound=TaskOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """The facts of a task that no option changes."""

    name: str
    title: str
    version: int
    """Raised when the prepared arrays change for the same options; part of the folder's name."""
    vocab_size: int
    """Token ids are 0 to `vocab_size - 1`; 0 is padding and never a real token."""
    num_classes: int
    paired: bool = False
    """Whether an example is two documents through one shared encoder."""
    grid: tuple[int, int] | None = None
    """(rows, columns) when the tokens are the pixels of an image in row-major order."""
    generated: bool = False
    """Whether the harness makes the data itself when the option `source` says so."""
    normalisation: tuple[float, float] | None = None
    """Mean and standard deviation of value / 255, for tasks whose values enter through a linear map, not a table."""
    mask_rate: float = 0.15
    """Share of places that pretraining hides, as in arXiv:2310.02980."""
    denoising_loss: Literal["cross_entropy", "l1"] = "cross_entropy"
    """Loss of pretraining, as there."""
    crops: bool = False
    """Whether training may read a part of a document, see `train.crop`."""
    advice: str = "more steps, pretrain.share=0.4"
    """What is known to help a run that learns nothing, see docs/training.md."""


class Task(ABC, Generic[OptionsT]):
    """One task of the arena."""

    info: ClassVar[TaskInfo]
    options: ClassVar[type[TaskOptions]]
    program: Callable[[TaskOptions], str] | None = None
    """Finds the program of a third party's task with its options: see `lra.tasks.plugins`. None for our own."""
    _files_read: Collection[str] = ()
    """What the code of third parties has read in the preparation that goes on,"""
    _files_source: Path | None = None
    """and the file or folder that is to be read in it."""

    def origin(self, options: OptionsT) -> str:
        """Return what identifies the program of a third party's task with these options; empty for our own."""
        return "" if self.program is None else self.program(options)

    def info_for(self, options: OptionsT) -> TaskInfo:  # noqa: ARG002
        """Return the facts with the vocabulary and the classes of a dataset variant, if options decide these."""
        return self.info

    def defaults(self, options: OptionsT) -> dict[str, Any]:  # noqa: ARG002
        """Return what options stand for that are left empty, by name; the empty value is the default of the field."""
        return {}

    def default_recipe(self) -> dict[str, dict[str, Any]] | None:
        """Return the sections of a recipe for profiles that do not define the task; None if there is none."""
        return None

    def augmentation(self, options: OptionsT) -> Change | None:  # noqa: ARG002
        """Return what `train.augment` does to the stored tokens of a document; None if there is nothing."""
        return None

    @abstractmethod
    def dataset_name(self, options: OptionsT) -> str:
        """Say in one phrase which dataset variant the options describe, for tables."""

    @abstractmethod
    def max_length(self, options: OptionsT) -> int:
        """Return the longest token sequence that this variant of the dataset can hold."""

    @abstractmethod
    def short_name(self, options: OptionsT) -> str:
        """Return a word for the dataset variant, for the name of its folder."""

    @abstractmethod
    def small(self, options: OptionsT, train: int) -> dict[str, int]:
        """Return the options of the same dataset with `train` training examples, other splits in proportion.

        Raises:
            UsageError: The dataset has `train` training examples or fewer, or cannot be made smaller.
        """

    def generates(self, options: OptionsT) -> bool:
        """Return whether the harness makes this variant of the dataset itself, from no file."""
        return self.info.generated and getattr(options, "source", None) == "generated"

    def source_key(self, options: OptionsT) -> str | None:  # noqa: ARG002
        """Name the source that the data is read from, for `lra.data.raw_files`; None if it is generated."""
        return None

    def fetch(
        self, options: OptionsT, folder: Path, *, mirror: str | None, progress: bool, otherwise: str
    ) -> tuple[Path, str]:
        """Download what a dataset variant is read from.

        Args:
            options: Which dataset variant; its `source_key` must be in `lra.data.places.REMOTES`.
            folder: Where to.
            mirror: See `lra.data.download.Transfer`, as for the other arguments.
            progress: Whether to show a bar.
            otherwise: What to do where nothing came at all.

        Returns:
            The file or folder to read, and how it was checked.

        Raises:
            DataError: A server does not have the data, or has other data.
        """
        (remote,) = REMOTES[self.source_key(options) or ""]
        return download.fetch(remote, folder, mirror=mirror, progress=progress, otherwise=otherwise), (
            "of the known SHA-256"
        )

    @abstractmethod
    def build(
        self, options: OptionsT, target: Path, *, source: Path | None, workers: int | None, progress: bool
    ) -> PreparedData:
        """Make the prepared folder `target`.

        Raises:
            DataError: The source is missing or not what it should be, or the folder cannot be written.
        """

    def pickle_stem(self, options: OptionsT) -> str:  # noqa: ARG002
        """Return what the names of Nystromformer's pickles of the task begin with."""
        return self.info.name

    def decode_pickled(self, ids: Ids, options: OptionsT) -> bytes:  # noqa: ARG002
        """Return the stored tokens of a document of these pickles.

        Raises:
            UsageError: There are none of this task.
            DataError: It is no document of the task.
        """
        raise UsageError(f"there are no {pickles.NAME} of task {self.info.name}")

    def pickle_offset(self, options: OptionsT) -> int:  # noqa: ARG002
        """Return the token offset of data from these pickles, see `lra.data.split.Split`."""
        return 1

    def describe_pickles(self, splits: Mapping[SplitName, Split]) -> list[str]:  # noqa: ARG002
        """Say what else tables should say of data from these pickles."""
        return []

    def build_from_pickles(
        self, options: OptionsT, target: Path, *, source: Path | None, progress: bool
    ) -> PreparedData:
        """Make the prepared folder `target` from Nystromformer's pickles.

        Raises:
            UsageError: An option is set that these pickles leave no choice of.
            DataError: The pickles are missing or damaged, or the folder cannot be written.
        """
        name = self.info.name
        fields = type(options).model_fields
        changed = [key for key in fields if key not in PICKLE_OPTIONS and getattr(options, key) != fields[key].default]
        if changed:
            raise UsageError(f"source {pickles.SOURCE} does not take {', '.join(changed)}")
        if source is None:
            raise DataError(
                f"{name}: the {pickles.NAME} are neither prepared nor kept in {target.parent}\n"
                f"Read them with: lra-data prepare {name} --set source={pickles.SOURCE} --from FOLDER"
            )
        files = pickles.pickle_files(source, self.pickle_stem(options))
        with scratch_folder(target) as scratch:
            with steady(files.values()) as sources:
                splits = pickles.read_pickles(
                    files,
                    scratch,
                    lambda ids: self.decode_pickled(ids, options),
                    documents=2 if self.info.paired else 1,
                    classes=self.info.num_classes,
                    offset=self.pickle_offset(options),
                    progress=progress,
                )
            counts = " / ".join(f"{len(split):,}" for split in splits.values())
            phrases = [self.dataset_name(options), f"{counts} examples", *self.describe_pickles(splits)]
            return self.write(
                options,
                target,
                splits,
                generated_by=f"pickle reader {pickles.VERSION}, folder {source.name}",
                sources=sources,
                dataset=", ".join(phrases),
            )

    @abstractmethod
    def describe_example(self, examples: Split, index: int) -> str:
        """Describe one example to a person: facts and label in the first line, then the example itself."""

    def show(self, data: PreparedData, split: SplitName, index: int) -> str:
        """Describe one example of a split to a person.

        Raises:
            UsageError: The split has no such example.
        """
        examples = data.split(split)
        if not 0 <= index < len(examples):
            raise UsageError(f"{split} has examples 0 to {len(examples) - 1}, not {index}")
        return f"{split} example {index}: {self.describe_example(examples, index)}"

    def encode(self, texts: Sequence[str], options: OptionsT) -> Split:  # noqa: ARG002
        """Turn texts into examples whose labels are unknown, and 0; for tasks whose examples are texts.

        Args:
            texts: One for each example.
            options: The dataset variant whose rules apply.

        Raises:
            UsageError: The examples of the task are no texts.
            DataError: A text is not an example of the task.
        """
        raise UsageError(f"the examples of task {self.info.name} are no texts; text and listops have these")

    def baseline_features(self) -> Mapping[str, Features]:
        """Return the features on which linear baselines are fitted, by the names of the baselines."""
        return {"bag of tokens": token_counts}

    def fitted(self, splits: Mapping[SplitName, Split], classes: int) -> dict[str, float]:
        """Return the accuracies in % of the linear baselines on the test split, by name."""
        return {name: linear(features, splits, classes) for name, features in self.baseline_features().items()}

    def write(
        self,
        options: OptionsT,
        target: Path,
        splits: Mapping[SplitName, Split],
        *,
        generated_by: str,
        sources: Mapping[str, str] | None = None,
        baselines: Mapping[str, float] | None = None,
        dataset: str | None = None,
    ) -> PreparedData:
        """Measure the baselines and write the prepared folder.

        Args:
            options: Which dataset variant.
            target: The folder to make.
            splits: All three splits.
            generated_by: Generator or reader, with its version.
            sources: SHA-256 of the files that were read, by name.
            baselines: Further accuracies in % that the task measured, by name.
            dataset: What tables call the data, if not `dataset_name(options)`. Where most test examples are in another
                split, that is added.

        Raises:
            DataError: The folder cannot be written, another process made it from other files, the code of a third party
                has read files that its program does not have, or two baselines would look alike.
        """
        classes = self.info_for(options).num_classes
        measured = majority(splits, classes)
        for name, value in (*(baselines or {}).items(), *self.fitted(splits, classes).items()):
            others = {*map(str.casefold, measured), "mlp only, trained"}
            same = math.isclose(measured.get(name, math.nan), value)  # a count and a mean differ in the last bit
            if name != legible(name) or (name.casefold() in others and not same):
                raise DataError(
                    f"{self.info.name}: no baseline can be called {name!r}, as another one would look alike"
                )
            measured[name] = value
        name, program = dataset or self.dataset_name(options), self.origin(options)
        if program:
            self._check_read(program)
        return write_prepared(
            target,
            task=self.info.name,
            dataset=", ".join([name, *_repeated(splits, name)]),
            generated_by=", ".join(filter(None, [generated_by, program])),
            options=options.model_dump(mode="json", exclude=self._as_before(options)),
            num_classes=classes,
            splits=splits,
            baselines=measured,
            sources=sources,
        )

    def _check_read(self, program: str) -> None:
        """Check that the code of a third party has read what its program covers and the source, and nothing else.

        Raises:
            DataError: It has read another file.
        """
        from attention_zoo.program import ProgramError, check_programs  # here, since it imports torch

        source = None if self._files_source is None else self._files_source.resolve()
        unknown = [
            path for path in self._files_read if source is None or not Path(path).resolve().is_relative_to(source)
        ]
        try:
            check_programs(program, unknown)
        except ProgramError as error:
            raise DataError(str(error)) from error

    def folder_name(self, options: OptionsT) -> str:
        """Name the folder of a dataset variant: readable, with a hash of the options and the task's version.

        Raises:
            UsageError: An option has a value that cannot be written, or is written as another one.
        """
        later = self._as_before(options)
        text = options.model_dump_json(exclude=later)
        try:
            read = type(options).model_validate(json.loads(text) | {name: getattr(options, name) for name in later})
        except ValidationError:
            read = None
        if read is None or repr(dict(read)) != repr(dict(options)):  # 1 is not 1.0: a run has its options in its id
            raise UsageError(
                f"task {self.info.name}: its options are written as {text}, which is not what they are; they take "
                "finite numbers, validators leave values of the annotated type, and there are no serializers"
            )
        identity = f"{self.info.version}\n{text}{self.origin(options)}"
        return f"{self.info.name}-{self.short_name(options)}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def _as_before(self, options: OptionsT) -> set[str]:
        """Name the options that came later and have the value as before; they are left out of what is written."""
        paths = {name: f"data.{self.info.name}.{name}" for name in type(options).model_fields}
        return {
            name for name, path in paths.items() if path in ADDED_LATER and ADDED_LATER[path] == getattr(options, name)
        }

    def prepare(
        self,
        options: OptionsT,
        home: Path,
        *,
        source: Path | None = None,
        known: Mapping[str, str] = MappingProxyType({}),
        workers: int | None = None,
        progress: bool = True,
    ) -> PreparedData:
        """Open the prepared data of a dataset variant, making it first if it is not there.

        Args:
            options: Which dataset variant.
            home: Folder of all prepared data, see `lra.data.dataset.data_home`.
            source: File or folder to read from, for datasets that are read. It is remembered once it was read; where
                the data is there already, it is not read.
            known: SHA-256 of files by name, which those that are read must have.
            workers: Processes that build; None takes one per core. The result does not depend on it.
            progress: Whether to show a progress bar, when there is a terminal.

        Raises:
            UsageError: There is a source, and the dataset variant is generated.
            DataError: In at most three lines: what is missing or damaged, and what mends it.
        """
        if source is not None:
            if self.generates(options):
                raise UsageError(f"{self.info.name} is generated; --set source=official reads it from --from")
            check_source(source)
        target, key, program = home / self.folder_name(options), self.source_key(options), self.origin(options)
        if not target.is_dir():
            _check_writable(home)
            origin = kept_source(home, key) if source is None and key is not None else source
            with contextlib.ExitStack() as stack:
                if origin is not None:
                    stack.enter_context(reading(origin))
                if origin is not None and source is None and not origin.is_relative_to((home / FOLDER).resolve()):
                    echo(f"{self.info.name}: reading {origin}, which was read before; --from names another.", err=True)
                if program:
                    from attention_zoo.program import reads_below  # here, since it imports torch

                    self._files_read, self._files_source = stack.enter_context(reads_below(Task.prepare)), origin
                if getattr(options, "source", None) == pickles.SOURCE:
                    data = self.build_from_pickles(options, target, source=origin, progress=progress)
                else:
                    data = self.build(options, target, source=origin, workers=workers, progress=progress)
            if not known.items() <= data.manifest.sources.items():
                remove_folder(target)
                raise DataError(f"{source}: has changed since it was fetched; fetch again")
            if source is not None and key is not None:
                keep_source(home, key, source)
            self._check_manifest(data.manifest, options, target)
            return data
        return self.opened(options, home)

    def opened(self, options: OptionsT, home: Path) -> PreparedData:
        """Open the prepared data of a dataset variant.

        Args:
            options: Which dataset variant.
            home: Folder of all prepared data.

        Raises:
            DataError: It is not there or damaged, or the folder holds other data than its name says.
        """
        folder = home / self.folder_name(options)
        data = open_prepared(folder, verify=False)
        self._check_manifest(data.manifest, options, folder)
        return data

    def check_name(self, manifest: Manifest, folder: Path) -> None:
        """Check that a prepared folder of this task has the name of what it holds.

        Raises:
            DataError: It has another one.
        """
        try:
            options: Any = self.options.model_validate(manifest.options)
        except ValidationError as error:
            raise DataError(f"{folder}: holds data of another task or version than its name says") from error
        if folder.name != self.folder_name(options):
            raise DataError(f"{folder}: holds other data than its name says; remove the folder and prepare it again")
        self._check_manifest(manifest, options, folder)

    def _check_manifest(self, manifest: Manifest, options: OptionsT, folder: Path) -> None:
        described = options.model_dump(mode="json", exclude=self._as_before(options))
        same_program = manifest.generated_by.endswith(self.origin(options))
        if manifest.task != self.info.name or manifest.options != described or not same_program:
            raise DataError(f"{folder}: holds other data than its name says; remove the folder and prepare it again")


def _repeated(splits: Mapping[SplitName, Split], name: str) -> list[str]:
    """Say which splits hold most test examples, if the name of the data does not."""
    test_split = "validation is the test split"
    words = []
    for other in ("validation", "train"):
        share = found_in(splits["test"], splits[other]).mean()
        if share > MOSTLY and not (other == "validation" and test_split in name):
            whole = other == "validation" and share == 1.0
            words.append(test_split if whole else f"{share:.0%} of the test examples in {other}")
    return words


def in_proportion(full: Mapping[SplitName, int], train: int) -> dict[SplitName, int]:
    """Shrink the sizes of splits to `train` training examples; none becomes empty.

    Raises:
        UsageError: There are `train` or fewer to begin with.
    """
    if train >= full["train"]:
        raise UsageError(
            f"a small dataset variant must have fewer than the {full['train']:,} training examples of the full one"
        )
    return {name: max(1, round(count * train / full["train"])) for name, count in full.items()}


def _check_writable(home: Path) -> None:
    """Find out before the work, not after it, that its result cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {home}: {error.strerror or error}; --data-dir names another folder") from error
    if not os.access(home, os.W_OK):
        raise DataError(f"{home} is not writable; --data-dir names another folder")
